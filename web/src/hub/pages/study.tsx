import { Button, Stack, Text } from "@mantine/core";
import { IconDatabase, IconFileCheck, IconPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { day, figure, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { StudyView } from "../api/schema";
import { useChange, useClient, useMay, usePerson } from "../api/use";
import { READERS } from "../shell";
import { Listing } from "../ui/listing";
import { State } from "../ui/marks";
import { JobList } from "./experiments";

/** How federated a study with a data centre is, by sites and by records. */
function degreeOf(degree: NonNullable<StudyView["degree"]>, say: ReturnType<typeof useText>["say"]): string {
  const sites = degree.sites.toFixed(2);
  if (degree.records == null) return say("study.degree.sites", { sites });
  return say("study.degree.both", { sites, records: degree.records.toFixed(2) });
}

function Particulars({ view }: { view: StudyView }) {
  const { say, language } = useText();
  const { study } = view;
  return (
    <Section title={say("study.particulars")}>
      <Facts items={[
        [say("study.purpose"), study.purpose],
        [say("study.controller"), study.controller],
        [say("study.legal_basis"), study.legal_basis],
        [say("study.ethics"), study.ethics],
        [say("study.until"), study.until ? day(study.until, language) : ""],
        [say("study.retention"), study.retention_days ? say("study.days", { count: study.retention_days }) : ""],
        [say("study.residency"), study.residency],
        [say("study.data_centre"), study.data_centre],
        [say("study.degree"), view.degree?.data_centre ? degreeOf(view.degree, say) : ""],
        [say("study.pooled"), view.degree?.pooled.map((one) => `${one.site}: ${say(`study.pool.${one.state}`)}`).join(", ")],
        [say("study.tags"), study.tags.join(", ")],
        [say("study.min_records"), study.min_records ? figure(study.min_records, language) : ""],
        [say("field.author"), view.author],
        [say("field.digest"), view.digest ? <span className="mono">{view.digest}</span> : say("study.no_digest")],
      ]} />
    </Section>
  );
}

/** What each site has decided, and which datasets it then offers. */
function Decisions({ view }: { view: StudyView }) {
  const { say, language } = useText();
  const client = useClient();
  const accepted = Object.keys(view.sites).filter((site) => view.sites[site] === "accepted"); // theirs are told
  const offers = useQuery({ queryKey: ["offers", view.study.name, accepted], queryFn: () => client.offers(view.study.name), enabled: view.state === "submitted" });
  const sites = Object.entries(view.sites).map(([site, state]) => ({
    site, state, offered: (offers.data ?? []).filter((offer) => offer.site === site),
  }));
  return (
    <Section title={say("study.decisions")} hint={say("study.decisions.hint")} flush>
      <Rows label={say("study.decisions")} rows={sites} id={(row) => row.site} columns={[
        { head: say("field.site"), cell: (row) => <Text fw={560}>{row.site}</Text> },
        { head: say("field.state"), cell: (row) => view.state === "draft" ? say("study.not_asked") : <State of={row.state} /> },
        {
          head: say("study.offers"), wide: true,
          cell: (row) => row.offered.length === 0 ? <Text span size="sm" className="quiet">–</Text> : (
            <Stack gap={2}>
              {row.offered.map(({ dataset }) => (
                <Text key={dataset.name} size="sm"><IconDatabase size={14} aria-hidden /> {dataset.name} · {say("study.records", { count: figure(dataset.records, language) })} · {say("study.columns", { count: Object.keys(dataset.columns ?? {}).length })}</Text>
              ))}
            </Stack>
          ),
        },
      ]} />
    </Section>
  );
}

function Plans({ study }: { study: string }) {
  const { say, language } = useText();
  const client = useClient();
  return (
    <Section title={say("study.plans")} hint={say("study.plans.hint")} flush>
      <Listing
        queryKey={["plans", study]}
        load={(cursor) => client.plans({ study, cursor, limit: 50 })}
        label={say("study.plans")}
        id={(row) => row.digest}
        refresh={10_000}
        empty={<Empty title={say("study.plans.none")} hint={say("study.plans.none.hint")} icon={<IconFileCheck stroke={1.5} />} />}
        columns={[
          { head: say("field.name"), cell: (row) => <Link href={`/plans/${encodeURIComponent(row.digest)}`}>{row.name}</Link> },
          { head: say("field.digest"), cell: (row) => <span className="mono" title={row.digest}>{shortDigest(row.digest)}</span> },
          { head: say("study.approved_by"), wide: true, cell: (row) => row.approved.join(", ") || "–" },
          { head: say("field.when"), cell: (row) => day(row.created, language) },
        ]}
      />
    </Section>
  );
}

function Actions({ view }: { view: StudyView }) {
  const { say } = useText();
  const client = useClient();
  const person = usePerson();
  const name = view.study.name;
  const submit = useChange(() => client.submitStudy(name));
  const close = useChange(() => client.closeStudy(name));
  const operator = useMay("operator");
  if (!operator && view.author !== person.name) return null;
  if (view.state === "draft") {
    return (
      <>
        <Button component={Link} href={`/studies/${encodeURIComponent(name)}/edit`} variant="default">{say("action.edit")}</Button>
        <Confirm filled label={say("study.submit")} title={say("study.submit")} consequence={say("study.submit.consequence")} act={() => submit.mutateAsync(undefined)} />
      </>
    );
  }
  if (view.state !== "submitted") return null;
  return (
    <>
      <Button component={Link} href={`/experiments/new?study=${encodeURIComponent(name)}`} leftSection={<IconPlus size={17} aria-hidden />}>{say("experiments.new")}</Button>
      <Button component={Link} href={`/studies/${encodeURIComponent(name)}/edit`} variant="default">{say("study.revise")}</Button>
      <Confirm danger typed={name} label={say("study.close")} title={say("study.close")} consequence={say("study.close.consequence")} act={() => close.mutateAsync(undefined)} />
    </>
  );
}

export default function Study({ name }: { name: string }) {
  const { say } = useText();
  const client = useClient();
  const reader = useMay(...READERS);
  const study = useQuery({ queryKey: ["study", name], queryFn: () => client.study(name), refetchInterval: 10_000 });
  return (
    <Page title={name} back={{ to: "/studies", label: say("nav.studies") }} badge={study.data && <State of={study.data.state} />}
      actions={study.data && <Actions view={study.data} />}>
      <Answer query={study}>
        {(view) => (
          <>
            <Particulars view={view} />
            <Decisions view={view} />
            {view.state !== "draft" && <Plans study={name} />}
            {reader && view.state !== "draft" && <Section title={say("nav.experiments")} flush><JobList study={name} /></Section>}
          </>
        )}
      </Answer>
    </Page>
  );
}
