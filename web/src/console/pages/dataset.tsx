import { Button, Group, Stack, Switch, Table, TagsInput, Tabs, Text, Textarea } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { useLocation } from "wouter";

import { bytes, figure, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import type { ChangeDataset, DatasetView, PreviewView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { DatasetState } from "./datasets";
import { HardCases } from "./hard-cases";
import { MockTwin } from "./mock-twin";
import { Profile } from "./profile";
import { SchemaTable, type Changes } from "./schema-table";

/** The first rows of a table as they are, or as a loading plan makes them. */
export function PreviewTable({ preview, label }: { preview: PreviewView; label: string }) {
  const { say } = useText();
  if (preview.rows.length === 0) return <Empty title={say("preview.none")} />;
  return (
    <div style={{ overflowX: "auto" }} tabIndex={0} role="region" aria-label={label}>
      <Table withColumnBorders verticalSpacing={4} className="mono figures" aria-label={label}>
        <Table.Thead>
          <Table.Tr>{preview.columns.map((column) => <Table.Th key={column}>{column}</Table.Th>)}</Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {preview.rows.map((row, index) => (
            <Table.Tr key={index}>
              {row.map((value, at) => (
                <Table.Td key={at} style={{ whiteSpace: "nowrap" }}>{value ?? <span className="quiet">—</span>}</Table.Td>
              ))}
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </div>
  );
}

function Preview({ name }: { name: string }) {
  const { say } = useText();
  const client = useClient();
  const preview = useQuery({ queryKey: ["preview", name], queryFn: () => client.previewDataset(name, 20), gcTime: 0 });
  return (
    <Section hint={say("preview.hint")} title={say("dataset.preview")}>
      <Answer query={preview}>{(data) => <PreviewTable preview={data} label={say("dataset.preview")} />}</Answer>
    </Section>
  );
}

function Columns({ dataset }: { dataset: DatasetView }) {
  const { say } = useText();
  const client = useClient();
  const mayEdit = useMay("data_manager");
  const [changes, setChanges] = useState<Changes>({});
  const save = useChange((columns: Changes) => client.changeDataset(dataset.name, { columns: Object.values(columns) }));
  const touched = Object.keys(changes).length;
  return (
    <Section flush title={say("dataset.schema")} hint={say("dataset.schema.hint")}
      actions={touched > 0 && (
        <>
          <Button variant="default" onClick={() => setChanges({})}>{say("action.discard")}</Button>
          <Button loading={save.isPending} onClick={() => save.mutate(changes, { onSuccess: () => setChanges({}) })}>{say("action.save")}</Button>
        </>
      )}>
      {save.isError && <Stack px="lg" pb="md"><Failure error={save.error} /></Stack>}
      <SchemaTable columns={dataset.columns} changes={changes}
        change={mayEdit ? (name, part) => setChanges((old) => ({ ...old, [name]: { ...old[name], name, ...part } })) : null} />
    </Section>
  );
}

function Particulars({ dataset }: { dataset: DatasetView }) {
  const { say } = useText();
  const client = useClient();
  const [tags, setTags] = useState([...dataset.tags]);
  const [description, setDescription] = useState(dataset.description);
  const save = useChange(() => client.changeDataset(dataset.name, { tags, description }));
  const changed = tags.join("\n") !== dataset.tags.join("\n") || description !== dataset.description;
  return (
    <Section title={say("dataset.particulars")}>
      <Stack maw={560}>
        <TagsInput label={say("field.tags")} description={say("add.tags.hint")} value={tags} onChange={setTags} />
        <Textarea label={say("field.description")} value={description} autosize minRows={2} onChange={(event) => setDescription(event.currentTarget.value)} />
        {save.isError && <Failure error={save.error} />}
        <Group><Button disabled={!changed} loading={save.isPending} onClick={() => save.mutate(undefined)}>{say("action.save")}</Button></Group>
      </Stack>
    </Section>
  );
}

function About({ dataset }: { dataset: DatasetView }) {
  const { say, language } = useText();
  return (
    <Section>
      <Facts items={[
        [say("field.file"), <span key="f" className="mono">{dataset.path}</span>],
        [say("add.files_in_it"), dataset.files > 1 && figure(dataset.files, language)],
        [say("add.database"), dataset.source],
        [say("add.query"), dataset.query && <code key="q" className="mono" style={{ whiteSpace: "pre-wrap" }}>{dataset.query}</code>],
        [say("field.format"), dataset.format],
        [say("field.records"), figure(dataset.records, language)],
        [say("field.size"), bytes(dataset.bytes, language)],
        [say("add.patient"), dataset.patient],
        [say("field.digest"), <span key="d" className="mono" title={dataset.digest}>{shortDigest(dataset.digest)}</span>],
        [say("dataset.registered"), `${moment(dataset.created, language)} · ${dataset.by}`],
        [say("field.description"), dataset.description],
        [say("field.tags"), dataset.tags.length > 0 && <Group key="t" gap={4}>{dataset.tags.map((tag) => <Mark key={tag} tone="plain">{tag}</Mark>)}</Group>],
      ]} />
    </Section>
  );
}

function Actions({ dataset }: { dataset: DatasetView }) {
  const { say } = useText();
  const client = useClient();
  const [, go] = useLocation();
  const change = useChange((part: ChangeDataset) => client.changeDataset(dataset.name, part));
  const refresh = useChange(() => client.refreshDataset(dataset.name));
  const remove = useChange(() => client.removeDataset(dataset.name));
  return (
    <Section title={say("dataset.manage")}>
      <Stack>
        <Switch label={say("dataset.enabled")} description={say("dataset.enabled.hint")} checked={dataset.enabled} disabled={change.isPending}
          onChange={(event) => change.mutate({ enabled: event.currentTarget.checked })} />
        {change.isError && <Failure error={change.error} />}
        <Group>
          <Button variant="default" loading={refresh.isPending} onClick={() => refresh.mutate(undefined)}>{say("dataset.refresh")}</Button>
          <Text size="sm" className="quiet">{say("dataset.refresh.hint")}</Text>
        </Group>
        {refresh.isError && <Failure error={refresh.error} />}
        <Group>
          <Confirm label={say("dataset.remove")} title={say("dataset.remove.title", { name: dataset.name })} consequence={say("dataset.remove.consequence")}
            typed={dataset.name} danger act={async () => { await remove.mutateAsync(undefined); go("/datasets"); }} />
          <Text size="sm" className="quiet">{say("dataset.remove.hint")}</Text>
        </Group>
      </Stack>
    </Section>
  );
}

/** Why no task runs on it: its loading plan, or the opt-out list, does not fit any more. */
function Unfit({ dataset }: { dataset: DatasetView }) {
  const { say } = useText();
  const client = useClient();
  const mayMend = useMay("data_manager");
  const again = useChange(() => client.changeDataset(dataset.name, {}));
  const causes = again.data?.unfit ?? dataset.unfit;
  return (
    <Section title={say("dataset.unfit")} hint={say("dataset.unfit.hint")}
      actions={mayMend && <Button variant="default" loading={again.isPending} onClick={() => again.mutate(undefined)}>{say("dataset.unfit.again")}</Button>}>
      <Stack gap="sm">
        {causes.map((cause) => <Failure key={cause} error={new Error(cause)} />)}
        {again.isError && <Failure error={again.error} />}
      </Stack>
    </Section>
  );
}

export default function Dataset({ name }: { name: string }) {
  const { say } = useText();
  const client = useClient();
  const mayManage = useMay("data_manager");
  const mayProfile = useMay("data_manager", "reviewer", "dpo");
  const mayPreview = useMay("data_manager", "dpo");
  const dataset = useQuery({ queryKey: ["datasets", name], queryFn: () => client.dataset(name) });
  return (
    <Page title={name} back={{ to: "/datasets", label: say("nav.datasets") }} badge={dataset.data && <DatasetState dataset={dataset.data} />}>
      <Answer query={dataset}>
        {(data) => (
          <>
            {data.problem && <Failure error={new Error(data.problem)} />}
            {data.unfit.length > 0 && <Unfit dataset={data} />}
            <Tabs defaultValue="about" keepMounted={false}>
              <Tabs.List mb="lg">
                <Tabs.Tab value="about">{say("tab.about")}</Tabs.Tab>
                <Tabs.Tab value="columns">{say("field.columns")}</Tabs.Tab>
                {mayProfile && <Tabs.Tab value="profile">{say("dataset.profile")}</Tabs.Tab>}
                {mayPreview && <Tabs.Tab value="preview">{say("dataset.preview")}</Tabs.Tab>}
                {mayProfile && <Tabs.Tab value="mock">{say("mock.title")}</Tabs.Tab>}
                {mayManage && <Tabs.Tab value="hard">{say("hard.title")}</Tabs.Tab>}
                {mayManage && <Tabs.Tab value="manage">{say("dataset.manage")}</Tabs.Tab>}
              </Tabs.List>
              <Tabs.Panel value="about"><About dataset={data} /></Tabs.Panel>
              <Tabs.Panel value="columns"><Columns dataset={data} /></Tabs.Panel>
              <Tabs.Panel value="profile"><Profile name={name} /></Tabs.Panel>
              <Tabs.Panel value="preview"><Preview name={name} /></Tabs.Panel>
              <Tabs.Panel value="mock"><MockTwin dataset={data} /></Tabs.Panel>
              <Tabs.Panel value="hard"><HardCases name={name} /></Tabs.Panel>
              <Tabs.Panel value="manage"><Stack gap="lg"><Particulars dataset={data} /><Actions dataset={data} /></Stack></Tabs.Panel>
            </Tabs>
          </>
        )}
      </Answer>
    </Page>
  );
}
