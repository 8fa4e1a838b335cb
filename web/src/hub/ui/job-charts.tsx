import { NativeSelect, SimpleGrid, Text } from "@mantine/core";
import { useState } from "react";

import { bytes } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Section } from "../../shared/ui/page";
import type { JobView, RoundView } from "../api/schema";
import { siteFigures, type Live } from "../model/happenings";
import type { Series } from "../model/scale";
import { Chart } from "./chart";

function overRounds(rounds: readonly RoundView[], name: string, value: (round: RoundView) => number | null | undefined): Series {
  const points = rounds.flatMap((round) => {
    const found = value(round);
    return found === null || found === undefined ? [] : [[round.round, found] as const];
  });
  return { name, points };
}

/** Every metric that a round told, by name. */
export function metricNames(rounds: readonly RoundView[]): string[] {
  return [...new Set(rounds.flatMap((round) => Object.keys(round.metrics)))].sort();
}

function Metric({ job, live, names }: { job: JobView; live: Live; names: readonly string[] }) {
  const { say } = useText();
  const [chosen, choose] = useState(names.includes("loss") ? "loss" : (names[0] ?? ""));
  const mean = overRounds(job.rounds, say("chart.mean"), (round) => round.metrics[chosen]);
  const sites = siteFigures(live, chosen, job.experiment.privacy?.aggregation);
  const series = [mean, ...sites.map(([name, points]) => ({ name, points: points.filter(([round]) => round > 0) }))];
  return (
    <Section title={say("chart.metric", { metric: chosen })} actions={names.length > 1 && (
      <NativeSelect aria-label={say("chart.choose")} data={[...names]} value={chosen} onChange={(event) => choose(event.currentTarget.value)} />
    )}>
      <Chart label={say("chart.metric", { metric: chosen })} xLabel={say("job.round")} series={series} />
      {sites.length === 0 && <Text size="xs" className="quiet" pt={6}>{say("chart.sums_only")}</Text>}
    </Section>
  );
}

/** Rounds as lines: what was measured, per site where sites disclose it; time, bytes, epsilon. */
export function Charts({ job, live }: { job: JobView; live: Live }) {
  const { say, language } = useText();
  const names = metricNames(job.rounds);
  const trained = job.rounds.filter((round) => round.round > 0);
  if (trained.length === 0) return null;
  const private_ = trained.some((round) => round.epsilon !== null);
  const written = (value: number) => bytes(value, language);
  return (
    <SimpleGrid cols={{ base: 1, lg: 2 }}>
      {names.length > 0 && <Metric key={names.join()} job={job} live={live} names={names} />}
      <Section title={say("chart.seconds")}>
        <Chart label={say("chart.seconds")} xLabel={say("job.round")} series={[overRounds(trained, say("chart.seconds.of_round"), (round) => round.seconds)]} />
      </Section>
      <Section title={say("chart.bytes")}>
        <Chart label={say("chart.bytes")} xLabel={say("job.round")} written={written} series={[
          overRounds(trained, say("chart.bytes.in"), (round) => round.bytes_in),
          overRounds(trained, say("chart.bytes.out"), (round) => round.bytes_out),
        ]} />
      </Section>
      {private_ && (
        <Section title={say("chart.epsilon")} hint={say("chart.epsilon.hint")}>
          <Chart label={say("chart.epsilon")} xLabel={say("job.round")} series={[overRounds(trained, say("job.epsilon"), (round) => round.epsilon)]} />
        </Section>
      )}
    </SimpleGrid>
  );
}
