import { Button, Group, NativeSelect, Stack, Text } from "@mantine/core";
import { IconArrowsExchange, IconCircleCheck } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "wouter";

import { figure, percent } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { HarmonyView, LoadingPlanView, SiteColumn } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";

function Cell({ column, reference }: { column: SiteColumn | undefined; reference: string }) {
  const { say, language } = useText();
  if (!column?.name) return <Mark tone="bad">{say("harmony.absent")}</Mark>;
  const { mean, deviation } = column;
  const numbers = mean !== null && deviation !== null;
  return (
    <Stack gap={0}>
      <Text size="sm" fw={560}>{column.name === reference ? column.type : `${column.name} · ${column.type}`}{column.unit && ` · ${column.unit}`}</Text>
      {numbers && <Text size="xs" className="quiet figures">{say("harmony.about", { mean: figure(mean, language), deviation: figure(deviation, language) })}</Text>}
      {column.levels.length > 0 && !numbers && <Text size="xs" className="quiet">{column.levels.join(", ")}</Text>}
      {column.missing !== null && column.missing > 0 && <Text size="xs" className="quiet">{say("harmony.missing", { share: percent(column.missing, language) })}</Text>}
    </Stack>
  );
}

function Comparison({ found }: { found: HarmonyView }) {
  const { say } = useText();
  const sites = found.columns[0]?.sites.map((one) => one.site) ?? [];
  return (
    <Section title={say("harmony.columns")} hint={say("harmony.columns.hint")} flush>
      <Rows compact label={say("harmony.columns")} rows={found.columns} id={(row) => row.name} columns={[
        { head: say("column.name"), cell: (row) => row.name },
        ...sites.map((site) => ({
          head: site === found.reference ? say("harmony.reference_of", { site }) : site,
          wide: true,
          cell: (row: HarmonyView["columns"][number]) => <Cell column={row.sites.find((one) => one.site === site)} reference={row.name} />,
        })),
      ]} />
    </Section>
  );
}

function Proposal(props: { digest: string; found: HarmonyView; accepted: (plan: LoadingPlanView) => void }) {
  const { say, knows } = useText();
  const { found } = props;
  const client = useClient();
  const mayAccept = useMay("data_manager");
  const accept = useChange(() => client.acceptProposal(props.digest, { dataset: found.dataset, yaml: found.proposal }));
  const actions = mayAccept && found.proposal && (
    <Button loading={accept.isPending} leftSection={<IconCircleCheck size={17} aria-hidden />} onClick={() => accept.mutate(undefined, { onSuccess: props.accepted })}>
      {say("harmony.accept", { count: found.blocks })}
    </Button>
  );
  if (found.differences.length === 0) {
    return <Section><Empty title={say("harmony.none")} hint={say("harmony.none.hint")} icon={<IconCircleCheck stroke={1.5} />} /></Section>;
  }
  return (
    <Section title={say("harmony.differences")} hint={say(found.proposal ? "harmony.accept.hint" : "harmony.no_proposal")} actions={actions} flush>
      {accept.isError && <Stack px="lg" pb="md"><Failure error={accept.error} /></Stack>}
      <Rows compact label={say("harmony.differences")} rows={found.differences} id={(row) => `${row.column} ${row.about}`} columns={[
        { head: say("column.name"), cell: (row) => row.column },
        { head: say("harmony.about_what"), cell: (row) => <Mark tone={row.block ? "waiting" : "plain"}>{say(row.about === "missing" ? "harmony.missing_values" : `harmony.${row.about}`)}</Mark> },
        { head: say("field.detail"), wide: true, cell: (row) => (knows(`harmony.said.${row.key}`) ? say(`harmony.said.${row.key}`, row.values) : row.said) },
        { head: say("harmony.block"), wide: true, cell: (row) => row.block ? <code className="mono" style={{ whiteSpace: "pre-wrap" }}>{row.block}</code> : say("harmony.by_hand") },
      ]} />
    </Section>
  );
}

/** Before training: where this site's table differs from the others', and the blocks that mend it. */
export default function Harmony({ digest }: { digest: string }) {
  const { say } = useText();
  const client = useClient();
  const [dataset, setDataset] = useState("");
  const [reference, setReference] = useState("");
  const [taken, setTaken] = useState<LoadingPlanView | null>(null);
  const harmony = useQuery({
    queryKey: ["harmony", digest, dataset, reference],
    queryFn: () => client.harmony(digest, { dataset, reference }),
    staleTime: 60_000,
  });
  return (
    <Page title={say("harmony.title")} lead={say("harmony.lead")} back={{ to: `/studies/${encodeURIComponent(digest)}`, label: say("field.study") }}>
      <div role="status">
        {taken && (
          <Section title={say("harmony.accepted", { plan: taken.name, version: taken.version })}>
            <Link href={`/loading-plans/${encodeURIComponent(taken.name)}`}>{say("harmony.open_plan")}</Link>
          </Section>
        )}
      </div>
      <Answer query={harmony}>
        {(found) => (
          <>
            <Section>
              <Group align="flex-end">
                <NativeSelect label={say("field.dataset")} value={found.dataset} data={[...found.datasets]} onChange={(event) => setDataset(event.currentTarget.value)} />
                <NativeSelect label={say("harmony.reference")} value={found.reference} data={[...found.sites]} onChange={(event) => setReference(event.currentTarget.value)} />
                <Text size="sm" className="quiet" pb={8}>
                  {found.plan ? say("harmony.plan", { plan: found.plan, version: found.version }) : say("harmony.no_plan")}
                </Text>
              </Group>
              {found.as_in_file.length > 0 && <Text size="sm" className="quiet" mt="sm">{say("harmony.as_in_file", { sites: found.as_in_file.join(", ") })}</Text>}
              {found.silent.length > 0 && <Text size="sm" className="quiet" mt="sm">{say("harmony.silent", { sites: found.silent.join(", ") })}</Text>}
            </Section>
            <Proposal digest={digest} found={found} accepted={setTaken} />
            {found.columns.length > 0 ? <Comparison found={found} /> : <Section><Empty title={say("harmony.nothing")} icon={<IconArrowsExchange stroke={1.5} />} /></Section>}
          </>
        )}
      </Answer>
    </Page>
  );
}
