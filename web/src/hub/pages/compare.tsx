import { Table, Text } from "@mantine/core";
import { useQueries } from "@tanstack/react-query";
import { Link, useSearchParams } from "wouter";

import { figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Empty, Failure, Waiting } from "../../shared/ui/states";
import type { ModelCard } from "../api/schema";
import { useClient } from "../api/use";
import { Chart } from "../ui/chart";
import { metricNames } from "../ui/job-charts";

const MOST = 6;
type Row = readonly [label: string, values: readonly string[]];

/** What is on record of some models, line by line. */
function useRows(cards: readonly ModelCard[]): Row[] {
  const { say, language } = useText();
  const metrics = [...new Set(cards.flatMap((card) => Object.keys(card.model.metrics)))].sort();
  const shown = (value: number | null | undefined) => (value === null || value === undefined ? "–" : figure(value, language));
  const row = (label: string, value: (card: ModelCard) => string): Row => [label, cards.map(value)];
  return [
    ...metrics.map((name) => row(name, (card) => shown(card.model.metrics[name]))),
    row(say("job.epsilon"), (card) => shown(card.epsilon)),
    row(say("models.stage"), (card) => (card.model.stage ? say(`state.${card.model.stage}`) : "–")),
    row(say("field.study"), (card) => card.model.study),
    row(say("field.plan"), (card) => card.plan),
    row(say("job.round"), (card) => shown(card.model.round)),
    row(say("field.sites"), (card) => card.model.sites.join(", ")),
    row(say("job.records"), (card) => shown(card.model.records)),
    row(say("draft.strategy"), (card) => card.model.strategy.name ?? ""),
    row(say("job.arguments"), (card) => Object.entries(card.model.arguments).map(([k, v]) => `${k} = ${String(v)}`).join(", ") || "–"),
    row(say("field.when"), (card) => moment(card.model.created, language)),
  ];
}

function Beside({ cards }: { cards: readonly ModelCard[] }) {
  const { say } = useText();
  const rows = useRows(cards);
  return (
    <Table.ScrollContainer minWidth={200 + 150 * cards.length} scrollAreaProps={{ viewportProps: { tabIndex: 0, "aria-label": say("compare.title"), role: "region" } }}>
      <Table aria-label={say("compare.title")} horizontalSpacing="lg">
        <Table.Thead>
          <Table.Tr><Table.Th><Text span size="sm" className="quiet">{say("compare.what")}</Text></Table.Th>{cards.map(({ model }) => <Table.Th key={model.id}><Link href={`/models/${encodeURIComponent(model.id)}`}>{model.id}</Link></Table.Th>)}</Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {rows.map(([label, values]) => (
            <Table.Tr key={label} className={new Set(values).size > 1 ? "differs" : undefined}>
              <Table.Th scope="row" fw={500}>{label}</Table.Th>
              {values.map((value, index) => <Table.Td key={cards[index]?.model.id} className="figures" style={{ overflowWrap: "anywhere" }}>{value}</Table.Td>)}
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

function Courses({ cards }: { cards: readonly ModelCard[] }) {
  const { say } = useText();
  const names = [...new Set(cards.flatMap((card) => metricNames(card.rounds)))].sort();
  return names.map((name) => (
    <Section key={name} title={say("chart.metric", { metric: name })}>
      <Chart label={say("chart.metric", { metric: name })} xLabel={say("job.round")} series={cards.map((card) => ({
        name: card.model.id,
        points: card.rounds.flatMap((round) => (round.metrics[name] === undefined ? [] : [[round.round, round.metrics[name]] as const])),
      }))} />
    </Section>
  ));
}

/** Two to six model versions beside each other; what differs is marked. */
export default function Compare() {
  const { say } = useText();
  const client = useClient();
  const [search] = useSearchParams();
  const ids = [...new Set((search.get("ids") ?? "").split(",").filter((id) => id !== ""))].slice(0, MOST);
  const found = useQueries({ queries: ids.map((id) => ({ queryKey: ["card", id], queryFn: () => client.card(id) })) });
  const failed = found.find((query) => query.isError);
  const cards = found.flatMap((query) => (query.data ? [query.data] : []));
  return (
    <Page title={say("compare.title")} lead={say("compare.lead")} back={{ to: "/models", label: say("nav.models") }}>
      {ids.length < 2 && <Section><Empty title={say("compare.none")} hint={say("compare.none.hint")} /></Section>}
      {failed && <Failure error={failed.error} retry={() => void failed.refetch()} />}
      {!failed && cards.length < ids.length && <Waiting lines={8} />}
      {ids.length >= 2 && cards.length === ids.length && <><Section flush><Beside cards={cards} /></Section><Courses cards={cards} /></>}
    </Page>
  );
}
