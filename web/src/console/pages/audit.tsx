import { Button, Group, NativeSelect, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconBook2, IconDownload } from "@tabler/icons-react";
import { useInfiniteQuery } from "@tanstack/react-query";
import { useState } from "react";

import { figure, moment, shortDigest, withShortDigests } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { More } from "../../shared/ui/more";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Empty, Failure, Waiting } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { useClient } from "../api/use";
import { Action, Actor, Outcome } from "../audit-words";
import { Verify } from "../verify";

interface Filter {
  readonly text: string;
  readonly actor: string;
  readonly action: string;
  readonly since: string;
  readonly until: string;
}

const NO_FILTER: Filter = { text: "", actor: "", action: "", since: "", until: "" };
const TYPING_PAUSE = 350; // milliseconds

function Trail({ filter, actions }: { filter: Filter; actions: (found: readonly string[]) => void }) {
  const { say, language } = useText();
  const client = useClient();
  const pages = useInfiniteQuery({
    queryKey: ["audit", filter],
    queryFn: async ({ pageParam }) => {
      const page = await client.audit({ ...filter, before: pageParam, limit: 50 });
      actions(page.actions);
      return page;
    },
    initialPageParam: null as number | null,
    getNextPageParam: (last) => last.next,
  });
  if (pages.isPending) return <Waiting lines={8} />;
  if (pages.isError) return <Failure error={pages.error} retry={() => void pages.refetch()} />;
  const lines = pages.data.pages.flatMap((page) => page.lines);
  if (lines.length === 0) return <Empty title={say("audit.none")} hint={say("audit.none.hint")} icon={<IconBook2 stroke={1.5} />} />;
  return (
    <>
      <Rows compact stacked label={say("nav.audit")} rows={lines} id={(row) => row.seq} columns={[
        { head: "#", right: true, cell: (row) => figure(row.seq, language) },
        { head: say("field.when"), cell: (row) => moment(row.at, language) },
        { head: say("audit.actor"), cell: (row) => <Actor code={row.actor} />, wide: true, least: "5rem" },
        { head: say("audit.action"), cell: (row) => <Action code={row.action} />, wide: true, least: "8.4rem" },
        { head: say("audit.subject"), wide: true, least: "7rem", cell: (row) => <span className="mono" title={row.subject}>{row.subject.includes(":") ? shortDigest(row.subject) : row.subject}</span> },
        { head: say("field.outcome"), cell: (row) => <Mark tone="plain"><Outcome code={row.outcome} /></Mark> },
        { head: say("field.detail"), wide: true, cell: (row) => <span title={row.detail}>{withShortDigests(row.detail)}</span> },
      ]} />
      <More shown={pages.hasNextPage} busy={pages.isFetchingNextPage} load={() => void pages.fetchNextPage()} />
    </>
  );
}

export default function Audit() {
  const { say, knows } = useText();
  const worded = (code: string) => {
    const key = `act.${code.replaceAll("-", "_")}`;
    return knows(key) ? `${say(key)} (${code})` : code;
  };
  const client = useClient();
  const [filter, setFilter] = useState(() => ({ ...NO_FILTER, text: new URLSearchParams(window.location.search).get("text") ?? "" }));
  const [known, setKnown] = useState<readonly string[]>([]);
  const [settled] = useDebouncedValue(filter, TYPING_PAUSE);
  const edit = (part: Partial<Filter>) => setFilter((old) => ({ ...old, ...part }));
  return (
    <Page title={say("nav.audit")} lead={say("audit.lead")} actions={
      <>
        <Button component="a" href="/api/audit/export?format=csv" download variant="default" leftSection={<IconDownload size={17} aria-hidden />}>CSV</Button>
        <Button component="a" href="/api/audit/export?format=json" download variant="default" leftSection={<IconDownload size={17} aria-hidden />}>JSON</Button>
      </>
    }>
      <Section>
        <Group align="flex-end">
          <TextInput label={say("audit.search")} value={filter.text} onChange={(event) => edit({ text: event.currentTarget.value })} style={{ flex: 2, minWidth: 180 }} />
          <TextInput label={say("audit.actor")} value={filter.actor} onChange={(event) => edit({ actor: event.currentTarget.value })} style={{ flex: 1, minWidth: 120 }} />
          <NativeSelect label={say("audit.action")} value={filter.action} onChange={(event) => edit({ action: event.currentTarget.value })}
            data={[{ value: "", label: say("audit.any") }, ...known.map((value) => ({ value, label: worded(value) }))]} style={{ flex: 1, minWidth: 140 }} />
          <TextInput type="date" label={say("audit.since")} value={filter.since} onChange={(event) => edit({ since: event.currentTarget.value })} />
          <TextInput type="date" label={say("audit.until")} value={filter.until} onChange={(event) => edit({ until: event.currentTarget.value })} />
          <Button variant="default" onClick={() => setFilter(NO_FILTER)}>{say("action.clear")}</Button>
        </Group>
      </Section>
      <Section flush><Trail filter={settled} actions={setKnown} /></Section>
      <Verify title={say("audit.verify")} hint={say("verify.hint")} run={client.verifyAudit} />
    </Page>
  );
}
