import { NativeSelect, Stack, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { causeText } from "../../shared/text/cause";
import { figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { EvaluationView, JobView } from "../api/schema";
import { useClient } from "../api/use";
import type { Series } from "../model/scale";
import { Calibration } from "./calibration";
import { Chart } from "./chart";
import { BySite } from "./evaluated-sites";

/** A metric by round: pooled over the hold-outs, and each site's where it disclosed it. */
function seriesOf(found: readonly EvaluationView[], metric: string, pooled: string): Series[] {
  const sites = [...new Set(found.flatMap((one) => Object.keys(one.sites)))].sort();
  const over = (name: string, value: (one: EvaluationView) => number | undefined): Series => ({
    name,
    points: found.flatMap((one) => {
      const y = value(one);
      return y === undefined ? [] : [[one.round, y] as const];
    }),
  });
  return [
    over(pooled, (one) => one.pooled[metric]?.value),
    ...sites.map((site) => over(site, (one) => one.sites[site]?.measures[metric]?.value)),
  ];
}

function Newest({ found }: { found: EvaluationView }) {
  const { say, language } = useText();
  const named = (measures: EvaluationView["pooled"]) => Object.entries(measures).sort(([a], [b]) => a.localeCompare(b));
  const rows = [...named(found.pooled), ...named(found.gain).map(([name, one]) => [say("evaluation.gain", { metric: name }), one] as const)];
  return (
    <Rows compact label={say("evaluation.newest", { round: found.round })} rows={rows} id={([name]) => name} columns={[
      { head: say("draft.metric"), cell: ([name]) => name },
      { head: say("evaluation.value"), right: true, cell: ([, one]) => figure(one.value, language) },
      { head: say("evaluation.interval"), right: true, cell: ([, one]) => `${figure(one.low, language, 3)} – ${figure(one.high, language, 3)}` },
      { head: say("job.records"), right: true, cell: ([, one]) => figure(one.records, language) },
      { head: say("field.sites"), right: true, cell: ([, one]) => figure(one.sites, language) },
    ]} />
  );
}

/** What the sites have found of the job's models, each on its own hold-out. */
export function Evaluations({ job }: { job: JobView }) {
  const { say } = useText();
  const words = useText();
  const client = useClient();
  const [wanted, choose] = useState("");
  const asked = job.experiment.evaluate !== null && job.experiment.evaluate !== undefined;
  const found = useQuery({ queryKey: ["job", job.id, "evaluations"], queryFn: () => client.evaluations(job.id), enabled: asked });
  if (!asked) return null;
  if (found.isError) return <Failure error={found.error} retry={() => void found.refetch()} />;
  const items = found.data?.items ?? [];
  const newest = items.at(-1);
  const metrics = [...new Set(items.flatMap((one) => Object.keys(one.pooled)))].sort();
  const metric = metrics.includes(wanted) ? wanted : (metrics[0] ?? "");
  return (
    <Section title={say("evaluation.title")} hint={say("evaluation.hint")} actions={metrics.length > 1 && (
      <NativeSelect aria-label={say("chart.choose")} data={metrics} value={metric} onChange={(event) => choose(event.currentTarget.value)} />
    )}>
      <Stack>
        {metric === "" && <Text size="sm" className="quiet">{say("evaluation.none")}</Text>}
        {metric !== "" && items.length > 1 && (
          <Chart label={say("chart.metric", { metric })} xLabel={say("job.round")} series={seriesOf(items, metric, say("evaluation.pooled"))} />
        )}
        {newest && <Newest found={newest} />}
        {newest && newest.cause !== "" && <Text size="sm">{causeText(newest.cause, words)}</Text>}
        {newest && newest.summed.length > 0 && <Text size="sm" className="quiet">{say("evaluation.summed", { sites: newest.summed.join(", ") })}</Text>}
        {newest && <BySite found={newest} />}
        {newest && <Calibration found={newest} />}
        {newest && Object.entries(newest.without).map(([site, why]) => <Text key={site} size="sm">{say("job.rejected", { site, cause: causeText(why, words) })}</Text>)}
      </Stack>
    </Section>
  );
}
