import { Button, Group, NativeSelect, SimpleGrid, Stack, Text, Textarea } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { Problem } from "../../shared/api/request";
import { figure, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { ColumnSummary, LoadingPlanView, LoadingPreviewView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { PreviewTable } from "./dataset";

const TYPING_PAUSE = 600; // milliseconds without a key before the preview is asked for

function Summary({ columns, label }: { columns: readonly ColumnSummary[]; label: string }) {
  const { say, language } = useText();
  return (
    <Rows compact label={label} rows={columns} id={(row) => row.name} columns={[
      { head: say("column.name"), cell: (row) => row.name },
      { head: say("column.type"), cell: (row) => <span className="mono">{row.type}</span> },
      { head: say("column.absent"), right: true, cell: (row) => figure(row.missing, language) },
    ]} />
  );
}

function BeforeAfter({ preview }: { preview: LoadingPreviewView }) {
  const { say } = useText();
  return (
    <SimpleGrid cols={{ base: 1, lg: 2 }}>
      <Section title={say("loading.before")} flush>
        <PreviewTable preview={preview.before} label={say("loading.before")} />
        <Summary columns={preview.summary_before} label={say("loading.before")} />
      </Section>
      <Section title={say("loading.after")} flush>
        <PreviewTable preview={preview.after} label={say("loading.after")} />
        <Summary columns={preview.summary_after} label={say("loading.after")} />
      </Section>
    </SimpleGrid>
  );
}

function Preview({ yaml, dataset }: { yaml: string; dataset: string }) {
  const { say } = useText();
  const client = useClient();
  const [settled] = useDebouncedValue(yaml, TYPING_PAUSE);
  const preview = useQuery({
    queryKey: ["loading-preview", dataset, settled],
    queryFn: () => client.previewLoading({ dataset, yaml: settled, rows: 12 }),
    enabled: dataset !== "" && settled.trim() !== "",
    placeholderData: (last) => last,
    gcTime: 0,
  });
  if (dataset === "") return <Text className="quiet">{say("loading.choose_dataset")}</Text>;
  return (
    <Stack>
      {preview.isError && <Failure error={preview.error} />}
      {preview.data && !preview.isError && <BeforeAfter preview={preview.data} />}
    </Stack>
  );
}

function Attachments({ plan, dataset }: { plan: LoadingPlanView; dataset: string }) {
  const { say } = useText();
  const client = useClient();
  const [study, setStudy] = useState("");
  const studies = useQuery({ queryKey: ["studies"], queryFn: client.studies });
  const attach = useChange(() => client.attachLoading(plan.name, { dataset, study }));
  const detach = useChange((at: { dataset: string; study: string }) => client.detachLoading(plan.name, at));
  const names = [...new Set((studies.data?.studies ?? []).map((one) => one.name))];
  return (
    <Section title={say("loading.attach.title")} hint={say("loading.attach.hint")}>
      <Stack>
        {plan.attached.map((at) => (
          <Group key={`${at.dataset} ${at.study}`} justify="space-between">
            <Text>{at.dataset} · {at.study || say("loading.every_study")}</Text>
            <Confirm label={say("loading.detach")} title={say("loading.detach")} consequence={say("loading.detach.consequence")} act={() => detach.mutateAsync(at)} />
          </Group>
        ))}
        <Group align="flex-end">
          <NativeSelect label={say("field.study")} value={study} data={[{ value: "", label: say("loading.every_study") }, ...names]}
            onChange={(event) => setStudy(event.currentTarget.value)} />
          <Button disabled={dataset === ""} loading={attach.isPending} onClick={() => attach.mutate(undefined)}>
            {dataset === "" ? say("loading.attach") : say("loading.attach_to", { dataset })}
          </Button>
        </Group>
        {attach.isError && <Failure error={attach.error} />}
      </Stack>
    </Section>
  );
}

function Editor({ name, plan }: { name: string; plan: LoadingPlanView | null }) {
  const { say, language } = useText();
  const client = useClient();
  const mayEdit = useMay("data_manager");
  const [yaml, setYaml] = useState(plan?.yaml ?? `name: ${name}\nblocks:\n`);
  const [dataset, setDataset] = useState("");
  const datasets = useQuery({ queryKey: ["datasets"], queryFn: client.datasets });
  const save = useChange(() => client.saveLoadingPlan(name, { yaml }));
  return (
    <>
      {plan && (
        <Section>
          <Facts items={[
            [say("field.version"), plan.version],
            [say("field.saved"), `${moment(plan.at, language)} · ${plan.by}`],
            [say("field.digest"), <span key="d" className="mono" title={plan.digest}>{shortDigest(plan.digest)}</span>],
          ]} />
        </Section>
      )}
      <Section title={say("loading.blocks")} hint={say("loading.blocks.hint")}
        actions={mayEdit && <Button loading={save.isPending} disabled={yaml === plan?.yaml} onClick={() => save.mutate(undefined)}>{say("action.save")}</Button>}>
        <Stack>
          <Textarea aria-label={say("loading.blocks")} value={yaml} readOnly={!mayEdit} autosize minRows={8} maxRows={24} spellCheck={false}
            styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: "0.85rem" } }}
            onChange={(event) => setYaml(event.currentTarget.value)} />
          {save.isError && <Failure error={save.error} />}
          {mayEdit && (
            <NativeSelect maw={320} label={say("loading.preview_on")} value={dataset} onChange={(event) => setDataset(event.currentTarget.value)}
              data={[{ value: "", label: say("field.choose") }, ...(datasets.data?.datasets ?? []).map((one) => one.name)]} />
          )}
        </Stack>
      </Section>
      {mayEdit && <Preview yaml={yaml} dataset={dataset} />}
      {mayEdit && plan && <Attachments plan={plan} dataset={dataset} />}
    </>
  );
}

/** Write a data loading plan and see at once what it makes of a dataset. */
export default function LoadingPlan({ name }: { name: string }) {
  const { say } = useText();
  const client = useClient();
  const plan = useQuery({
    queryKey: ["loading-plans", name],
    queryFn: () =>
      client.loadingPlan(name).catch((error: unknown) => {
        if (error instanceof Problem && error.status === 404) return null; // a new one
        throw error;
      }),
  });
  return (
    <Page title={name} lead={say("loading.lead")} back={{ to: "/loading-plans", label: say("nav.loading") }}>
      <Answer query={plan}>{(data) => <Editor key={data?.digest ?? "new"} name={name} plan={data} />}</Answer>
    </Page>
  );
}
