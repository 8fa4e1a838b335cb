import { Autocomplete, Group, NativeSelect, Stack } from "@mantine/core";
import { IconMessages } from "@tabler/icons-react";
import { useInfiniteQuery } from "@tanstack/react-query";
import { useState } from "react";
import { useSearchParams } from "wouter";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { More } from "../../shared/ui/more";
import { Mark, Page, Section, type Tone } from "../../shared/ui/page";
import { Empty, Failure, Waiting } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { useClient } from "../api/use";

const LEVELS = ["debug", "info", "warning", "error"] as const;
const TONES: Readonly<Record<string, Tone>> = { warning: "waiting", error: "bad" };
const LINES = 100; // of one answer

/** What plans printed and the agent said of jobs: time, level, who; it stays at the site. */
export default function JobLog() {
  const { say, language } = useText();
  const client = useClient();
  const [query] = useSearchParams();
  const [job, setJob] = useState(query.get("job") ?? "");
  const [level, setLevel] = useState("info");
  const pages = useInfiniteQuery({
    queryKey: ["job-log", job, level],
    queryFn: ({ pageParam }) => client.jobLog({ job, level, before: pageParam, limit: LINES }),
    initialPageParam: null as number | null,
    getNextPageParam: (last) => last.next,
    refetchInterval: 5_000,
  });
  const lines = pages.data?.pages.flatMap((page) => page.lines) ?? [];
  const jobs = pages.data?.pages[0]?.jobs ?? [];
  return (
    <Page title={say("joblog.title")} lead={say("joblog.lead")} back={{ to: "/runs", label: say("nav.runs") }}>
      <Section>
        <Group align="flex-end">
          <Autocomplete label={say("joblog.job")} placeholder={say("joblog.all")} value={job} data={[...jobs]} onChange={setJob} clearable w={280} />
          <NativeSelect label={say("joblog.level")} value={level} data={LEVELS.map((one) => ({ value: one, label: say(`joblog.from.${one}`) }))} onChange={(event) => setLevel(event.currentTarget.value)} />
        </Group>
      </Section>
      <Section flush>
        {pages.isPending && <Stack p="lg"><Waiting /></Stack>}
        {pages.isError && <Failure error={pages.error} retry={() => void pages.refetch()} />}
        {pages.isSuccess && lines.length === 0 && <Empty title={say("joblog.none")} hint={say("joblog.none.hint")} icon={<IconMessages stroke={1.5} />} />}
        {lines.length > 0 && (
          <Rows compact stacked label={say("joblog.title")} rows={lines.map((line, at) => ({ ...line, at_row: at }))} id={(row) => row.at_row} columns={[
            { head: say("field.when"), cell: (row) => moment(row.at, language) },
            { head: say("joblog.level"), cell: (row) => <Mark tone={TONES[row.level] ?? "plain"}>{say(`joblog.${row.level}`)}</Mark> },
            { head: say("joblog.job"), cell: (row) => <span className="mono">{row.job || "–"}</span> },
            { head: say("joblog.who"), cell: (row) => say(`joblog.who.${row.who}`) },
            { head: say("joblog.text"), wide: true, least: "20rem", cell: (row) => <span className="mono" style={{ whiteSpace: "pre-wrap" }}>{row.text}</span> },
          ]} />
        )}
        <More shown={pages.hasNextPage} busy={pages.isFetchingNextPage} load={() => void pages.fetchNextPage()} />
      </Section>
    </Page>
  );
}
