import { Stack, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { causeText } from "../../shared/text/cause";
import { figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { Figure, JobView } from "../api/schema";
import { useClient } from "../api/use";
import { aboutOf, betweenOf, identityOf, paidOf, toldOf, type Paid } from "../model/statistics";

/** What a question of sums has come to; a number that may not be told is a dash. */
export function Statistics({ job }: { job: JobView }) {
  const { say, language } = useText();
  const words = useText();
  const client = useClient();
  const asked = (job.experiment.privacy?.statistics ?? null) !== null;
  const found = useQuery({ queryKey: ["job", job.id, "statistics"], queryFn: () => client.statistics(job.id), enabled: asked && job.state === "done" });
  if (!asked) return null;
  const view = found.data;
  const paid = view ? paidOf(view) : null;
  return (
    <Section title={say("statistics.title")} hint={view && say(view.masked ? "statistics.masked" : "statistics.plain", { sites: view.sites.length })} flush>
      {found.isError && <Failure error={found.error} retry={() => void found.refetch()} />}
      {!found.isError && !view && <Text p="lg" size="sm" className="quiet">{say("statistics.none")}</Text>}
      {view && (
        <Stack gap="xs">
          {paid && <Text size="sm" px="lg" pt="sm">{say("statistics.paid", shownOf(paid, language))}</Text>}
          <Rows compact label={say("statistics.title")} rows={view.figures} id={identityOf} columns={[
            { head: say("statistics.statistic"), cell: (row) => say(`statistics.is.${row.statistic}`) },
            { head: say("statistics.of"), wide: true, cell: (row) => aboutOf(row) || "–" },
            { head: say("statistics.group"), cell: (row) => row.group || "–" },
            { head: say("evaluation.value"), right: true, cell: (row) => toldOf(row, row.value, language) },
            ...(paid ? [{ head: say("statistics.error"), right: true, cell: (row: Figure) => (row.error === null ? "–" : figure(row.error, language, 3)) }] : []),
            { head: say(paid ? "statistics.without_noise" : "statistics.between"), right: true, cell: (row) => betweenOf(row, language) },
            { head: say("field.sites"), right: true, cell: (row) => figure(row.sites, language) },
          ]} />
          {Object.entries(view.without).map(([site, why]) => <Text key={site} size="sm" px="lg" pb="xs">{say("job.rejected", { site, cause: causeText(why, words) })}</Text>)}
        </Stack>
      )}
    </Section>
  );
}

function shownOf(paid: Paid, language: string) {
  return {
    epsilon: figure(paid.epsilon, language, 3),
    delta: figure(paid.delta, language, 3),
    noise: figure(paid.noise, language, 3),
    count: paid.records,
  };
}
