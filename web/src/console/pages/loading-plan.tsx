import { Button, Group, NativeSelect, SimpleGrid, Stack, Tabs, Text, Textarea } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { Problem } from "../../shared/api/request";
import { figure, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Failure, Waiting } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { ColumnSummary, LoadingPlanView, LoadingPreviewView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { draftOf } from "../loading-text";
import { PreviewTable } from "./dataset";
import { BlockEditor } from "./loading-blocks";

const CHECK_PAUSE = 250; // milliseconds without a key before a draft is checked
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
        <Summary columns={preview.summary_before} label={say("loading.before.columns")} />
      </Section>
      <Section title={say("loading.after")} flush>
        <PreviewTable preview={preview.after} label={say("loading.after")} />
        <Summary columns={preview.summary_after} label={say("loading.after.columns")} />
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
      {preview.isPending && <Waiting />}
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

/** What the server says of a draft, once one stops typing; nothing while the draft is another. */
function useChecked(yaml: string, dataset: string, enabled: boolean) {
  const client = useClient();
  const [settled] = useDebouncedValue(yaml, CHECK_PAUSE);
  const check = useQuery({
    queryKey: ["loading-check", dataset, settled],
    queryFn: () => client.checkLoading({ yaml: settled, dataset }),
    enabled: enabled && settled.trim() !== "",
    placeholderData: (last) => last,
    gcTime: 0,
  });
  return check.data;
}

function YamlText({ yaml, edit, mayEdit }: { yaml: string; edit: (yaml: string) => void; mayEdit: boolean }) {
  return (
    <Textarea aria-label="YAML" value={yaml} readOnly={!mayEdit} autosize minRows={8} maxRows={24} spellCheck={false}
      styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: "0.85rem" } }}
      onChange={(event) => edit(event.currentTarget.value)} />
  );
}

function Version({ plan }: { plan: LoadingPlanView }) {
  const { say, language } = useText();
  return (
    <Section>
      <Facts items={[
        [say("field.version"), plan.version],
        [say("field.saved"), `${moment(plan.at, language)} · ${plan.by}`],
        [say("field.digest"), <span key="d" className="mono" title={plan.digest}>{shortDigest(plan.digest)}</span>],
      ]} />
    </Section>
  );
}

function Editor({ name, plan, datasets }: { name: string; plan: LoadingPlanView | null; datasets: readonly string[] }) {
  const { say } = useText();
  const client = useClient();
  const mayEdit = useMay("data_manager");
  const [yaml, setYaml] = useState(plan?.yaml ?? `name: ${name}\nblocks: []\n`);
  const [dataset, setDataset] = useState(plan?.attached[0]?.dataset ?? datasets[0] ?? "");
  const found = useChecked(yaml, dataset, mayEdit);
  const save = useChange(() => client.saveLoadingPlan(name, { yaml }));
  const empty = draftOf(yaml).readable && draftOf(yaml).blocks.length === 0;
  return (
    <>
      {plan && <Version plan={plan} />}
      <Section title={say("loading.blocks")} hint={say("loading.blocks.hint")}
        actions={mayEdit && <Button loading={save.isPending} disabled={yaml === plan?.yaml || empty} onClick={() => save.mutate(undefined)}>{say("action.save")}</Button>}>
        <Stack>
          {mayEdit && (
            <NativeSelect maw={320} label={say("loading.preview_on")} value={dataset} onChange={(event) => setDataset(event.currentTarget.value)}
              data={[{ value: "", label: say("field.choose") }, ...datasets]} />
          )}
          {mayEdit ? (
            <Tabs defaultValue="form" keepMounted={false}>
              <Tabs.List mb="md">
                <Tabs.Tab value="form">{say("loading.form")}</Tabs.Tab>
                <Tabs.Tab value="text">YAML</Tabs.Tab>
              </Tabs.List>
              <Tabs.Panel value="form"><BlockEditor yaml={yaml} edit={setYaml} found={found} /></Tabs.Panel>
              <Tabs.Panel value="text"><YamlText yaml={yaml} edit={setYaml} mayEdit /></Tabs.Panel>
            </Tabs>
          ) : <YamlText yaml={yaml} edit={setYaml} mayEdit={false} />}
          {save.isError && <Failure error={save.error} />}
        </Stack>
      </Section>
      {mayEdit && !empty && !found?.problem && <Preview yaml={yaml} dataset={dataset} />}
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
  const datasets = useQuery({ queryKey: ["datasets"], queryFn: client.datasets });
  return (
    <Page title={name} lead={say("loading.lead")} back={{ to: "/loading-plans", label: say("nav.loading") }}>
      <Answer query={plan}>
        {(data) => (
          <Answer query={datasets}>
            {(known) => <Editor key={data?.digest ?? "new"} name={name} plan={data} datasets={known.datasets.map((one) => one.name)} />}
          </Answer>
        )}
      </Answer>
    </Page>
  );
}
