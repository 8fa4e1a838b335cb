import { Alert, Button, Grid, Group, NativeSelect, NumberInput, SimpleGrid, Stack, Switch, Text, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconAlertTriangle, IconCircleCheck, IconPlayerPlay } from "@tabler/icons-react";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { useLocation, useSearchParams } from "wouter";

import { figure, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Failure, Waiting } from "../../shared/ui/states";
import { useChange, useClient } from "../api/use";
import { draftOf, experimentOf, FIRST, type Draft } from "../model/draft";
import { AskedFields } from "../ui/asked";
import { Pairs } from "../ui/pairs";

const TYPING_PAUSE = 400; // milliseconds until the hub is asked
const STRATEGIES = ["fedavg", "fedprox", "fedavgm", "fedadagrad", "fedyogi", "fedadam"];
const RULES = ["mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"];
const COMPRESSIONS = ["none", "int8", "int16", "top-5%", "int8+top-5%"];
type Edit = (part: Partial<Draft>) => void;

function Amount(props: { label: string; hint?: string; value: number; set: (value: number) => void; whole?: boolean; min?: number; max?: number; step?: number }) {
  const more = { ...(props.hint ? { description: props.hint } : {}), ...(props.max === undefined ? {} : { max: props.max }) };
  return (
    <NumberInput label={props.label} {...more} value={props.value} min={props.min ?? 0} step={props.step ?? 1} allowDecimal={!props.whole}
      onChange={(value) => { if (typeof value === "number") props.set(value); }} />
  );
}

function What({ draft, edit }: { draft: Draft; edit: Edit }) {
  const { say } = useText();
  const client = useClient();
  const studies = useQuery({ queryKey: ["studies", "all"], queryFn: () => client.studies({ limit: 500 }) });
  const plans = useQuery({ queryKey: ["plans", draft.study, "all"], queryFn: () => client.plans({ study: draft.study, limit: 100 }), enabled: draft.study !== "" });
  const names = (studies.data?.items ?? []).filter((view) => view.state === "submitted").map((view) => view.study.name);
  const known = (plans.data?.items ?? []).map((plan) => ({ value: plan.digest, label: `${plan.name} (${shortDigest(plan.digest)})` }));
  const missing = draft.plan !== "" && !known.some((plan) => plan.value === draft.plan) ? [{ value: draft.plan, label: shortDigest(draft.plan) }] : [];
  return (
    <Section title={say("draft.what")}>
      <Stack>
        <NativeSelect label={say("field.study")} required value={draft.study} onChange={(event) => edit({ study: event.currentTarget.value, plan: "" })}
          data={[{ value: "", label: say("draft.choose") }, ...new Set([...names, ...(draft.study ? [draft.study] : [])])]} />
        <NativeSelect label={say("field.plan")} description={say("draft.plan.hint")} required value={draft.plan} onChange={(event) => edit({ plan: event.currentTarget.value })}
          data={[{ value: "", label: say("draft.choose") }, ...missing, ...known]} />
        <TextInput label={say("field.name")} description={say("draft.name.hint")} value={draft.name} onChange={(event) => edit({ name: event.currentTarget.value })} />
        <Amount label={say("job.rounds")} whole min={1} value={draft.rounds} set={(rounds) => edit({ rounds })} />
        <Pairs label={say("job.arguments")} hint={say("draft.arguments.hint")} pairs={draft.arguments} change={(list) => edit({ arguments: list })} />
      </Stack>
    </Section>
  );
}

function How({ draft, edit }: { draft: Draft; edit: Edit }) {
  const { say } = useText();
  return (
    <Section title={say("draft.how")}>
      <Stack>
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <NativeSelect label={say("draft.strategy")} data={STRATEGIES} value={draft.strategy} onChange={(event) => edit({ strategy: event.currentTarget.value, options: [] })} />
          <NativeSelect label={say("draft.aggregate")} data={RULES} value={draft.aggregate} onChange={(event) => edit({ aggregate: event.currentTarget.value })} />
          <Amount label={say("draft.min_sites")} hint={say("draft.min_sites.hint")} whole min={1} value={draft.minSites} set={(minSites) => edit({ minSites })} />
          <Amount label={say("draft.min_updates")} hint={say("draft.min_updates.hint")} whole min={1} value={draft.minUpdates} set={(minUpdates) => edit({ minUpdates })} />
          <Amount label={say("draft.fraction")} hint={say("draft.fraction.hint")} min={0} max={1} step={0.1} value={draft.fraction} set={(fraction) => edit({ fraction })} />
          <Amount label={say("draft.deadline")} hint={say("draft.deadline.hint")} min={1} value={draft.deadline} set={(deadline) => edit({ deadline })} />
          <Amount label={say("draft.seed")} whole value={draft.seed} set={(seed) => edit({ seed })} />
          <TextInput label={say("draft.base")} description={say("draft.base.hint")} value={draft.base} onChange={(event) => edit({ base: event.currentTarget.value })} />
        </SimpleGrid>
        <Pairs label={say("draft.options")} hint={say("draft.options.hint")} pairs={draft.options} change={(options) => edit({ options })} />
        <Switch label={say("draft.early")} checked={draft.stopEarly} onChange={(event) => edit({ stopEarly: event.currentTarget.checked })} />
        {draft.stopEarly && (
          <SimpleGrid cols={{ base: 1, sm: 3 }}>
            <TextInput label={say("draft.metric")} value={draft.metric} onChange={(event) => edit({ metric: event.currentTarget.value })} />
            <NativeSelect label={say("draft.better")} value={draft.better} onChange={(event) => edit({ better: event.currentTarget.value === "higher" ? "higher" : "lower" })}
              data={[{ value: "lower", label: say("draft.better.lower") }, { value: "higher", label: say("draft.better.higher") }]} />
            <Amount label={say("draft.patience")} whole min={1} value={draft.patience} set={(patience) => edit({ patience })} />
          </SimpleGrid>
        )}
      </Stack>
    </Section>
  );
}

function Judging({ draft, edit }: { draft: Draft; edit: Edit }) {
  const { say } = useText();
  const client = useClient();
  const study = useQuery({ queryKey: ["study", draft.study], queryFn: () => client.study(draft.study), enabled: draft.study !== "" && draft.evaluate });
  const ask = (part: Partial<Draft["asked"]>) => edit({ asked: { ...draft.asked, ...part } });
  return (
    <Section title={say("draft.judging")} hint={say("draft.judging.hint")}>
      <Stack>
        <Switch label={say("draft.evaluate")} checked={draft.evaluate} onChange={(event) => edit({ evaluate: event.currentTarget.checked })} />
        {draft.evaluate && (
          <>
            <Amount label={say("draft.every")} hint={say("draft.every.hint")} whole value={draft.asked.every} set={(every) => ask({ every })} />
            <AskedFields asked={draft.asked} edit={ask} sites={study.data?.study.sites ?? []} />
          </>
        )}
      </Stack>
    </Section>
  );
}

const PROTECTIONS = ["default", "secure", "ckks", "plain"] as const;
const LEVELS = ["record", "patient", "client"] as const;

function Protection({ draft, edit }: { draft: Draft; edit: Edit }) {
  const { say } = useText();
  return (
    <Section title={say("draft.protection")} hint={say("draft.protection.hint")}>
      <Stack>
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <NativeSelect label={say("draft.aggregation")} value={draft.protection} data={PROTECTIONS.map((value) => ({ value, label: say(`protection.${value}`) }))}
            onChange={(event) => edit({ protection: PROTECTIONS.find((known) => known === event.currentTarget.value) ?? "default" })} />
          <NativeSelect label={say("draft.compress")} data={[...new Set([...COMPRESSIONS, draft.compress])]} value={draft.compress} onChange={(event) => edit({ compress: event.currentTarget.value })} />
        </SimpleGrid>
        <Switch label={say("draft.dp")} checked={draft.dp} onChange={(event) => edit({ dp: event.currentTarget.checked })} />
        {draft.dp && (
          <SimpleGrid cols={{ base: 1, sm: 3 }}>
            <NativeSelect label={say("draft.level")} value={draft.level} data={LEVELS.map((value) => ({ value, label: say(`level.${value}`) }))}
              onChange={(event) => edit({ level: LEVELS.find((known) => known === event.currentTarget.value) ?? "record" })} />
            <Amount label={say("draft.noise")} step={0.1} value={draft.noise} set={(noise) => edit({ noise })} />
            <Amount label={say("draft.clip")} step={0.1} value={draft.clip} set={(clip) => edit({ clip })} />
            {draft.level !== "client" && <Amount label={say("draft.sampling")} step={0.05} max={1} value={draft.sampling} set={(sampling) => edit({ sampling })} />}
            {draft.level !== "client" && <Amount label={say("draft.steps")} whole min={1} value={draft.steps} set={(steps) => edit({ steps })} />}
            <Amount label={say("draft.delta")} step={0.00001} value={draft.delta} set={(delta) => edit({ delta })} />
          </SimpleGrid>
        )}
      </Stack>
    </Section>
  );
}

/** What the hub says of the draft: what keeps it from starting, what it would wait for, its cost. */
function Check({ draft }: { draft: Draft }) {
  const { say, language } = useText();
  const client = useClient();
  const [, go] = useLocation();
  const [settled] = useDebouncedValue(draft, TYPING_PAUSE);
  const ready = settled.study !== "" && settled.plan !== "";
  const body = experimentOf(settled);
  const checked = useQuery({ queryKey: ["validate", body], queryFn: () => client.validate(body), enabled: ready, placeholderData: keepPreviousData });
  const cost = useQuery({ queryKey: ["privacy", body], queryFn: () => client.privacy(body), enabled: ready && settled.dp, placeholderData: keepPreviousData });
  const start = useChange(client.startJob);
  const problems = checked.data?.problems ?? [];
  const warnings = checked.data?.warnings ?? [];
  const good = ready && settled === draft && checked.isSuccess && problems.length === 0;
  return (
    <Section title={say("draft.check")}>
      <Stack>
        <div role="status">
          {!ready && <Text size="sm" className="quiet">{say("draft.check.idle")}</Text>}
          {ready && checked.isPending && <Waiting lines={2} />}
          {checked.isError && <Failure error={checked.error} />}
          {problems.length > 0 && (
            <Alert color="brick" icon={<IconAlertTriangle aria-hidden />} title={say("draft.problems", { count: problems.length })}>
              <Stack gap={4}>{problems.map((problem) => <Text key={problem} size="sm" style={{ overflowWrap: "anywhere" }}>{problem}</Text>)}</Stack>
            </Alert>
          )}
          {good && <Alert color="teal" icon={<IconCircleCheck aria-hidden />} title={say("draft.good")} />}
          {warnings.length > 0 && (
            <Alert color="amber" title={say("draft.warnings")} mt="sm">
              <Stack gap={4}>{warnings.map((warning) => <Text key={warning} size="sm">{warning}</Text>)}</Stack>
            </Alert>
          )}
        </div>
        {settled.dp && cost.isError && <Failure error={cost.error} />}
        {settled.dp && cost.data && (
          <Facts items={[
            [say("draft.cost.round"), cost.data.round === null ? "" : figure(cost.data.round, language, 3)],
            [say("draft.cost.job"), cost.data.job === null ? "" : figure(cost.data.job, language, 3)],
            [say("draft.delta"), figure(cost.data.delta, language)],
          ]} />
        )}
        {start.isError && <Failure error={start.error} />}
        <Button leftSection={<IconPlayerPlay size={17} aria-hidden />} disabled={!good} loading={start.isPending}
          onClick={() => start.mutate(body, { onSuccess: (job) => go(`/experiments/${encodeURIComponent(job.id)}`) })}>
          {say("draft.start")}
        </Button>
        <details>
          <summary><Text span size="sm" className="quiet">{say("draft.record")}</Text></summary>
          <pre className="code" tabIndex={0} aria-label={say("draft.record")} role="region">{JSON.stringify(body, null, 2)}</pre>
        </details>
      </Stack>
    </Section>
  );
}

function Builder({ first }: { first: Draft }) {
  const [draft, setDraft] = useState(first);
  const edit: Edit = (part) => setDraft((old) => ({ ...old, ...part }));
  return (
    <Grid>
      <Grid.Col span={{ base: 12, lg: 7.5 }}>
        <Stack gap="lg"><What draft={draft} edit={edit} /><How draft={draft} edit={edit} /><Judging draft={draft} edit={edit} /><Protection draft={draft} edit={edit} /></Stack>
      </Grid.Col>
      <Grid.Col span={{ base: 12, lg: 4.5 }}><Group pos="sticky" top={16} grow><Check draft={draft} /></Group></Grid.Col>
    </Grid>
  );
}

/** A new experiment; `from` names a job to begin from, `study` a study. */
export default function NewExperiment() {
  const { say } = useText();
  const client = useClient();
  const [search] = useSearchParams();
  const from = search.get("from") ?? "";
  const job = useQuery({ queryKey: ["job", from], queryFn: () => client.job(from), enabled: from !== "", refetchOnWindowFocus: false });
  return (
    <Page title={say("experiments.new")} lead={say("draft.lead")} back={{ to: "/experiments", label: say("nav.experiments") }}>
      {from === ""
        ? <Builder first={{ ...FIRST, study: search.get("study") ?? "", base: search.get("base") ?? "" }} />
        : <Answer query={job}>{(view) => <Builder first={draftOf(view)} />}</Answer>}
    </Page>
  );
}
