import { Button, NativeSelect, Stack, Text } from "@mantine/core";
import { IconSend } from "@tabler/icons-react";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { moment, withShortDigests } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { More } from "../../shared/ui/more";
import { Mark, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure, Waiting } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { ReleaseView } from "../api/schema";
import { useClient } from "../api/use";
import { Action, Outcome } from "../audit-words";

const KINDS = ["", "release", "mask", "advertise", "pool"] as const;
const EACH = 200; // lines of a folded row that are shown, the newest

function Detail({ row }: { row: ReleaseView }) {
  return <span title={row.detail} style={{ overflowWrap: "anywhere" }}>{withShortDigests(row.detail)}</span>;
}

/** Advertisements that follow one another, as one line that can be opened. */
function Folded({ row }: { row: ReleaseView }) {
  const { say, language } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const each = useQuery({
    queryKey: ["releases", "each", row.oldest, row.seq],
    queryFn: () => client.releases({ before: row.seq + 1, least: row.oldest, kind: "advertise", limit: EACH }),
    enabled: open,
  });
  return (
    <Stack gap={4} align="flex-start">
      <Text size="sm">{say("released.folded", { count: row.count, since: moment(row.since, language) })}</Text>
      <Button size="compact-xs" variant="default" aria-expanded={open} onClick={() => setOpen(!open)}>
        {say(open ? "released.close" : "released.open")}
      </Button>
      {open && (
        <Answer query={each}>
          {(found) => (
            <ul style={{ margin: 0, paddingInlineStart: "1.1rem" }}>
              {found.releases.map((one) => (
                <li key={one.seq}><span className="figures">{moment(one.at, language)}</span>{" · "}<Detail row={one} /></li>
              ))}
            </ul>
          )}
        </Answer>
      )}
    </Stack>
  );
}

function Lines({ kind }: { kind: string }) {
  const { say, language } = useText();
  const client = useClient();
  const pages = useInfiniteQuery({
    queryKey: ["releases", kind],
    queryFn: ({ pageParam }) => client.releases({ before: pageParam, kind, fold: true, limit: 30 }),
    initialPageParam: null as number | null,
    getNextPageParam: (last) => last.next,
  });
  if (pages.isPending) return <Waiting />;
  if (pages.isError) return <Failure error={pages.error} retry={() => void pages.refetch()} />;
  const releases: readonly ReleaseView[] = pages.data.pages.flatMap((page) => page.releases);
  if (releases.length === 0) {
    return <Empty title={say("released.none")} hint={say("released.none.hint")} icon={<IconSend stroke={1.5} />} />;
  }
  return (
    <>
      <Rows compact stacked label={say("released.title")} rows={releases} id={(row) => row.seq} columns={[
        { head: say("field.when"), cell: (row) => moment(row.at, language) },
        { head: say("released.what"), cell: (row) => <Action code={row.action} /> },
        { head: say("released.task"), wide: true, cell: (row) => <span className="mono">{row.subject}</span> },
        { head: say("field.outcome"), cell: (row) => <Mark tone="plain"><Outcome code={row.outcome} /></Mark> },
        { head: say("field.detail"), wide: true, cell: (row) => (row.count > 1 ? <Folded row={row} /> : <Detail row={row} />) },
      ]} />
      <More shown={pages.hasNextPage} busy={pages.isFetchingNextPage} load={() => void pages.fetchNextPage()} />
    </>
  );
}

/** What left the site, newest first; what the site tells of itself again and again is folded. */
export function Released() {
  const { say } = useText();
  const [kind, setKind] = useState("");
  return (
    <Section title={say("released.title")} hint={say("released.hint")} flush actions={
      <NativeSelect aria-label={say("released.kind")} value={kind} onChange={(event) => setKind(event.currentTarget.value)}
        data={KINDS.map((value) => ({ value, label: say(`released.kind.${value || "all"}`) }))} />
    }>
      <Lines kind={kind} />
    </Section>
  );
}
