import { Button, Center, Stack, Text } from "@mantine/core";
import { useState } from "react";
import { Link } from "wouter";

import { causeText } from "../../shared/text/cause";
import { bytes, figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { JobView, RoundView } from "../api/schema";

const SHOWN = 50;

function Noted({ round }: { round: RoundView }) {
  const { say } = useText();
  const words = useText();
  const rejected = Object.entries(round.rejected);
  if (rejected.length === 0 && round.alarms.length === 0) return <Text span size="sm" className="quiet">–</Text>;
  return (
    <Stack gap={2}>
      {rejected.map(([site, cause]) => <Text key={site} size="sm">{say("job.rejected", { site, cause: causeText(cause, words) })}</Text>)}
      {round.alarms.map((alarm) => <Text key={alarm} size="sm" fw={560}>{alarm}</Text>)}
    </Stack>
  );
}

/** Closed rounds, newest first. */
export function RoundTable({ job }: { job: JobView }) {
  const { say, language } = useText();
  const [count, setCount] = useState(SHOWN);
  const rounds = [...job.rounds].reverse();
  if (rounds.length === 0) return <Empty title={say("job.no_rounds")} hint={say("job.no_rounds.hint")} />;
  const metrics = (round: RoundView) => Object.entries(round.metrics).map(([name, value]) => `${name} ${figure(value, language)}`).join(", ");
  return (
    <>
      <Rows compact label={say("job.tab.rounds")} rows={rounds.slice(0, count)} id={(row) => row.round} columns={[
        { head: say("job.round"), right: true, cell: (row) => <Link href={`/models/${encodeURIComponent(row.model)}`}>{figure(row.round, language)}</Link> },
        { head: say("chart.mean"), wide: true, cell: (row) => metrics(row) || "–" },
        { head: say("field.sites"), wide: true, cell: (row) => row.sites.join(", ") },
        { head: say("job.records"), right: true, cell: (row) => figure(row.records, language) },
        { head: say("job.seconds"), right: true, cell: (row) => figure(row.seconds, language, 3) },
        { head: say("chart.bytes"), right: true, cell: (row) => `${bytes(row.bytes_in, language)} / ${bytes(row.bytes_out, language)}` },
        { head: say("job.noted"), wide: true, cell: (row) => <Noted round={row} /> },
      ]} />
      {rounds.length > count && <Center p="md"><Button variant="default" onClick={() => setCount(count + SHOWN)}>{say("action.more")}</Button></Center>}
    </>
  );
}
