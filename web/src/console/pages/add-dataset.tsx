import { Breadcrumbs, Button, Group, NativeSelect, NavLink, Stack, Stepper, TagsInput, Text, TextInput, Textarea } from "@mantine/core";
import { IconFileTypeCsv, IconFolder } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { useLocation } from "wouter";

import { bytes, figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import type { InspectedView, NewDataset } from "../api/schema";
import { useChange, useClient } from "../api/use";
import { SchemaTable, type Changes } from "./schema-table";

/** A name made of a file's: lower case letters, digits and hyphens. */
export function nameOf(path: string): string {
  const file = path.split("/").at(-1) ?? "";
  return file.replace(/\.[^.]*$/, "").toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-+|-+$/g, "");
}

function FileStep({ choose, busy }: { choose: (path: string) => void; busy: boolean }) {
  const { say, language } = useText();
  const client = useClient();
  const [path, setPath] = useState("");
  const folder = useQuery({ queryKey: ["folder", path], queryFn: () => client.folder(path) });
  return (
    <Section title={say("add.file")} hint={say("add.file.hint")}>
      <Answer query={folder}>
        {(data) => (
          <Stack gap="xs">
            {data.path && (
              <Breadcrumbs>
                <Button variant="subtle" size="compact-sm" onClick={() => setPath(data.parent)}>{say("add.up")}</Button>
                <Text className="mono">{data.path}</Text>
              </Breadcrumbs>
            )}
            {data.folders.length + data.files.length === 0 && (
              <Empty title={say("add.empty")} hint={say(data.path ? "add.empty.hint" : "add.no_roots")} />
            )}
            {data.folders.map((name) => (
              <NavLink key={name} component="button" type="button" label={name} leftSection={<IconFolder size={19} stroke={1.6} aria-hidden />}
                onClick={() => setPath(data.path && !name.startsWith("/") ? `${data.path}/${name}` : name)} />
            ))}
            {data.files.map((file) => (
              <NavLink key={file.path} component="button" type="button" disabled={busy} label={file.name} description={bytes(file.bytes, language)}
                leftSection={<IconFileTypeCsv size={19} stroke={1.6} aria-hidden />} onClick={() => choose(file.path)} />
            ))}
            {data.truncated && <Text size="sm" className="quiet">{say("add.truncated")}</Text>}
          </Stack>
        )}
      </Answer>
    </Section>
  );
}

function NameStep(props: { found: InspectedView; form: NewDataset; edit: (part: Partial<NewDataset>) => void }) {
  const { say, language } = useText();
  const { found, form, edit } = props;
  return (
    <Stack gap="lg">
      <Section title={say("add.found")}>
        <Facts items={[
          [say("field.file"), <span key="f" className="mono">{found.path}</span>],
          [say("field.format"), found.format],
          [say("field.records"), figure(found.records, language)],
          [say("field.columns"), found.columns.length],
          [say("field.size"), bytes(found.bytes, language)],
        ]} />
      </Section>
      <Section title={say("add.name")}>
        <Stack maw={560}>
          <TextInput label={say("field.name")} description={say("add.name.hint")} required value={form.name} onChange={(event) => edit({ name: event.currentTarget.value })} />
          <TagsInput label={say("field.tags")} description={say("add.tags.hint")} value={[...form.tags]} onChange={(tags) => edit({ tags })} />
          <NativeSelect label={say("add.patient")} description={say("add.patient.hint")} value={form.patient ?? ""}
            data={[{ value: "", label: say("add.patient.none") }, ...found.columns.map((column) => column.name)]}
            onChange={(event) => edit({ patient: event.currentTarget.value })} />
          <Textarea label={say("field.description")} value={form.description ?? ""} autosize minRows={2} onChange={(event) => edit({ description: event.currentTarget.value })} />
        </Stack>
      </Section>
    </Stack>
  );
}

/** Register a table: choose the file, name it, check its columns. */
export default function AddDataset() {
  const { say } = useText();
  const client = useClient();
  const [, go] = useLocation();
  const [step, setStep] = useState(0);
  const [form, setForm] = useState<NewDataset>({ path: "", name: "", tags: [] });
  const [changes, setChanges] = useState<Changes>({});
  const inspect = useChange(client.inspect);
  const register = useChange(client.register);
  const edit = (part: Partial<NewDataset>) => setForm((old) => ({ ...old, ...part }));

  async function choose(path: string) {
    const found = await inspect.mutateAsync({ path });
    const patient = found.columns.find((column) => column.role === "patient")?.name ?? "";
    setForm({ path, name: nameOf(path), tags: [], patient });
    setChanges({});
    setStep(1);
  }
  async function finish() {
    const made = await register.mutateAsync({ ...form, columns: Object.values(changes) });
    go(`/datasets/${encodeURIComponent(made.name)}`);
  }

  return (
    <Page title={say("dataset.add")} lead={say("add.lead")} back={{ to: "/datasets", label: say("nav.datasets") }}>
      <Stepper active={step} onStepClick={setStep} allowNextStepsSelect={false} size="sm">
        <Stepper.Step label={say("add.step.file")} />
        <Stepper.Step label={say("add.step.name")} />
        <Stepper.Step label={say("add.step.columns")} />
      </Stepper>
      {step === 0 && <FileStep busy={inspect.isPending} choose={(path) => void choose(path).catch(() => undefined)} />}
      {step === 0 && inspect.isError && <Failure error={inspect.error} />}
      {step === 1 && inspect.data && <NameStep found={inspect.data} form={form} edit={edit} />}
      {step === 2 && inspect.data && (
        <Section title={say("dataset.schema")} hint={say("add.columns.hint")} flush>
          <SchemaTable columns={inspect.data.columns} changes={changes}
            change={(name, part) => setChanges((old) => ({ ...old, [name]: { ...old[name], name, ...part } }))} />
        </Section>
      )}
      {step === 2 && register.isError && <Failure error={register.error} />}
      {step > 0 && (
        <Group justify="flex-end">
          <Button variant="default" onClick={() => setStep(step - 1)}>{say("action.back")}</Button>
          {step === 1 && <Button disabled={!form.name} onClick={() => setStep(2)}>{say("action.next")}</Button>}
          {step === 2 && (
            <Button loading={register.isPending} onClick={() => void finish().catch(() => undefined)}>{say("add.register")}</Button>
          )}
        </Group>
      )}
    </Page>
  );
}
