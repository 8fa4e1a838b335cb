import { NativeSelect, Text } from "@mantine/core";
import { IconShieldLock } from "@tabler/icons-react";
import { useQueries, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "wouter";

import { figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Empty, Failure, Waiting } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { JobView } from "../api/schema";
import { useClient } from "../api/use";
import { spentBySite } from "../model/spent";
import { State } from "../ui/marks";

const NEWEST = 100; // jobs of a study that are looked at

function Spending({ jobs }: { jobs: readonly JobView[] }) {
  const { say, language } = useText();
  const sites = spentBySite(jobs);
  return (
    <>
      <Section title={say("budgets.sites")} hint={say("budgets.sites.hint")} flush>
        <Rows label={say("budgets.sites")} rows={sites} id={(row) => row.site} columns={[
          { head: say("field.site"), cell: (row) => <Text fw={560}>{row.site}</Text> },
          { head: say("budgets.jobs"), right: true, cell: (row) => figure(row.jobs, language) },
          { head: say("budgets.epsilon"), right: true, cell: (row) => figure(row.epsilon, language, 4) },
          { head: say("budgets.delta"), right: true, cell: (row) => figure(row.delta, language) },
        ]} />
      </Section>
      <Section title={say("budgets.of_jobs")} flush>
        <Rows label={say("budgets.of_jobs")} rows={jobs} id={(row) => row.id} columns={[
          { head: say("field.name"), wide: true, cell: (row) => <Link href={`/experiments/${encodeURIComponent(row.id)}`}>{row.experiment.name || row.id}</Link> },
          { head: say("field.state"), cell: (row) => <State of={row.state} /> },
          { head: say("draft.level"), cell: (row) => (row.experiment.privacy?.dp ? say(`level.${row.experiment.privacy.dp.level}`) : "–") },
          { head: say("job.rounds"), right: true, cell: (row) => figure(row.round, language) },
          { head: say("job.epsilon"), right: true, cell: (row) => figure(row.rounds.at(-1)?.epsilon ?? 0, language, 4) },
          { head: say("draft.delta"), right: true, cell: (row) => figure(row.experiment.privacy?.dp?.delta ?? 1e-5, language) },
        ]} />
      </Section>
    </>
  );
}

function OfStudy({ study }: { study: string }) {
  const { say } = useText();
  const client = useClient();
  const list = useQuery({ queryKey: ["jobs", study, "budget"], queryFn: () => client.jobs({ study, limit: NEWEST }) });
  const noisy = (list.data?.items ?? []).filter((job) => job.experiment.privacy?.dp);
  const whole = useQueries({ queries: noisy.map((job) => ({ queryKey: ["job", job.id], queryFn: () => client.job(job.id) })) });
  const failed = list.isError ? list : whole.find((query) => query.isError);
  const jobs = whole.flatMap((query) => (query.data ? [query.data] : []));
  if (failed?.isError) return <Failure error={failed.error} retry={() => void failed.refetch()} />;
  if (list.isPending || jobs.length < noisy.length) return <Waiting lines={6} />;
  if (jobs.length === 0) return <Section><Empty title={say("budgets.none")} hint={say("budgets.none.hint")} icon={<IconShieldLock stroke={1.5} />} /></Section>;
  return <Spending jobs={jobs} />;
}

/** What the experiments of a study have cost its sites' patients, as far as the hub knows. */
export default function Budgets() {
  const { say } = useText();
  const client = useClient();
  const studies = useQuery({ queryKey: ["studies", "all"], queryFn: () => client.studies({ limit: 500 }) });
  const [chosen, setChosen] = useState("");
  const names = (studies.data?.items ?? []).map((view) => view.study.name);
  const study = chosen || (names[0] ?? "");
  return (
    <Page title={say("nav.budgets")} lead={say("budgets.lead")}>
      {studies.isError && <Failure error={studies.error} retry={() => void studies.refetch()} />}
      {studies.isPending && <Waiting lines={4} />}
      {studies.isSuccess && names.length === 0 && <Section><Empty title={say("studies.none")} hint={say("studies.none.hint")} /></Section>}
      {study !== "" && (
        <>
          <NativeSelect label={say("field.study")} maw={320} data={names} value={study} onChange={(event) => setChosen(event.currentTarget.value)} />
          <OfStudy key={study} study={study} />
        </>
      )}
    </Page>
  );
}
