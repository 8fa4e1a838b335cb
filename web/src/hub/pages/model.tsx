import { Alert, Button, List, Stack, Tabs, Text } from "@mantine/core";
import { IconDownload, IconPlayerPlay } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { address } from "../../shared/api/request";
import { useServer } from "../../shared/api/server";
import { bytes, figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { download } from "../api/client";
import type { ModelCard, SetStage } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { stretches } from "../model/lineage";
import { Chart } from "../ui/chart";
import { metricNames } from "../ui/job-charts";
import { State } from "../ui/marks";

/** From what everything began with, through the jobs, to this version. */
function Lineage({ card }: { card: ModelCard }) {
  const { say } = useText();
  const parts = stretches(card.lineage);
  return (
    <ol className="lineage" aria-label={say("model.lineage")}>
      {parts.map((part, index) => (
        <li key={part.first}>
          {index > 0 && <svg width={26} height={12} viewBox="0 0 26 12" aria-hidden><path d="M0 6h22m-5-4 5 4-5 4" fill="none" stroke="var(--quiet)" strokeWidth={1.5} /></svg>}
          <div className="box" data-here={index === parts.length - 1}>
            {part.job === ""
              ? <><Text size="sm" fw={560}>{say("model.uploaded")}</Text><Text className="mono">{part.first}</Text></>
              : <><Link href={`/experiments/${encodeURIComponent(part.job)}`}>{part.job}</Link>
                  <Text size="xs" className="quiet">{say("model.rounds", { from: part.from, to: part.to })}</Text></>}
          </div>
        </li>
      ))}
    </ol>
  );
}

function Card({ card }: { card: ModelCard }) {
  const { say, language } = useText();
  const { model, study } = card;
  return (
    <Stack gap="lg">
      {card.caveats.length > 0 && (
        <Alert color="amber" title={say("model.caveats")}><List size="sm">{card.caveats.map((caveat) => <List.Item key={caveat}>{caveat}</List.Item>)}</List></Alert>
      )}
      <Facts items={[
        [say("study.purpose"), study.purpose], [say("study.controller"), study.controller], [say("study.legal_basis"), study.legal_basis], [say("study.ethics"), study.ethics],
        [say("field.study"), model.study], [say("field.plan"), <span key="p">{card.plan} <span className="mono">{model.plan}</span></span>], [say("plan.description"), card.description],
        [say("plan.requirements"), card.requirements.join(", ")],
        [say("field.sites"), model.sites.join(", ")], [say("model.withdrawn"), model.withdrawn.join(", ")], [say("job.records"), figure(model.records, language)],
        [say("draft.strategy"), model.strategy.name], [say("job.arguments"), Object.entries(model.arguments).map(([k, v]) => `${k} = ${String(v)}`).join(", ")],
        [say("job.epsilon"), card.epsilon === null ? say("model.not_private") : say("model.epsilon", { epsilon: figure(card.epsilon, language, 3), delta: figure(card.delta ?? 0, language) })],
        [say("model.bytes"), bytes(model.bytes, language)], [say("model.digest"), <span key="d" className="mono">{model.digest}</span>],
        [say("model.software"), card.software], [say("field.when"), moment(model.created, language)],
      ]} />
    </Stack>
  );
}

function Metrics({ card }: { card: ModelCard }) {
  const { say } = useText();
  const names = metricNames(card.rounds);
  if (names.length === 0) return <Empty title={say("chart.none")} />;
  return (
    <Stack gap="xl">
      {names.map((name) => (
        <Chart key={name} label={say("chart.metric", { metric: name })} xLabel={say("job.round")}
          series={[{ name, points: card.rounds.flatMap((round) => (round.metrics[name] === undefined ? [] : [[round.round, round.metrics[name]] as const])) }]} />
      ))}
    </Stack>
  );
}

function Decisions({ card }: { card: ModelCard }) {
  const { say, language } = useText();
  if (card.stages.length === 0) return <Empty title={say("model.undecided")} hint={say("model.undecided.hint")} />;
  return (
    <Rows label={say("model.decisions")} rows={card.stages} id={(row) => row.at} columns={[
      { head: say("models.stage"), cell: (row) => <State of={row.stage} /> },
      { head: say("field.who"), cell: (row) => row.actor },
      { head: say("field.when"), cell: (row) => moment(row.at, language) },
      { head: say("field.reason"), wide: true, cell: (row) => row.reason },
    ]} />
  );
}

/** Propose, release, retire: a release takes somebody else than who proposed it. */
function Actions({ card }: { card: ModelCard }) {
  const { say } = useText();
  const client = useClient();
  const server = useServer();
  const { model } = card;
  const decides = useMay("operator", "researcher", "reviewer");
  const releases = useMay("operator", "reviewer");
  const trains = useMay("operator", "researcher");
  const reads = useMay("operator", "researcher", "reviewer", "downstream");
  const set = useChange((body: SetStage) => client.setStage(model.id, body));
  const fetching = useMutation({ mutationFn: () => download(server, address("/api/v1/models/{id}/frame", { id: model.id }), `${model.id}.frame`) });
  const decide = (stage: SetStage["stage"], shown: boolean, danger: boolean) => shown && (
    <Confirm label={say(`stage.${stage}`)} title={say(`stage.${stage}`)} consequence={say(`stage.${stage}.consequence`)} reason="required" danger={danger} filled={!danger}
      act={(reason) => set.mutateAsync({ stage, reason })} />
  );
  return (
    <>
      {decide("candidate", decides && model.stage !== "candidate" && model.stage !== "released", false)}
      {decide("released", releases && model.stage === "candidate", false)}
      {decide("retired", decides && (model.stage === "candidate" || model.stage === "released"), true)}
      {reads && model.deleted === null && (
        <Button variant="default" loading={fetching.isPending} onClick={() => fetching.mutate()} leftSection={<IconDownload size={17} aria-hidden />}>{say("model.download")}</Button>
      )}
      {trains && <Button component={Link} href={`/experiments/new?${new URLSearchParams({ study: model.study, base: model.id }).toString()}`} variant="default" leftSection={<IconPlayerPlay size={17} aria-hidden />}>{say("model.continue")}</Button>}
      {fetching.isError && <Failure error={fetching.error} />}
    </>
  );
}

export default function Model({ id }: { id: string }) {
  const { say, language } = useText();
  const client = useClient();
  const card = useQuery({ queryKey: ["card", id], queryFn: () => client.card(id) });
  const model = card.data?.model;
  return (
    <Page title={id} back={{ to: "/models", label: say("nav.models") }} badge={model?.stage ? <State of={model.stage} /> : null} actions={card.data && <Actions card={card.data} />}>
      <Answer query={card} lines={8}>
        {(found) => (
          <>
            {found.model.deleted !== null && <Alert color="amber">{say("model.deleted", { at: moment(found.model.deleted, language) })}</Alert>}
            <Section title={say("model.lineage")}><Lineage card={found} /></Section>
            <Section flush>
              <Tabs defaultValue="card" keepMounted={false}>
                <Tabs.List>
                  <Tabs.Tab value="card">{say("model.card")}</Tabs.Tab>
                  <Tabs.Tab value="metrics">{say("model.metrics")}</Tabs.Tab>
                  <Tabs.Tab value="decisions">{say("model.decisions")}</Tabs.Tab>
                </Tabs.List>
                <Tabs.Panel value="card" p="lg"><Card card={found} /></Tabs.Panel>
                <Tabs.Panel value="metrics" p="lg"><Metrics card={found} /></Tabs.Panel>
                <Tabs.Panel value="decisions"><Decisions card={found} /></Tabs.Panel>
              </Tabs>
            </Section>
          </>
        )}
      </Answer>
    </Page>
  );
}
