import { Button, Group, NativeSelect, Stack, Stepper, TagsInput, TextInput, Textarea } from "@mantine/core";
import { useState } from "react";
import { useLocation } from "wouter";

import { bytes, figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import type { ColumnView, InspectedView, InspectPath, NewDataset } from "../api/schema";
import { useChange, useClient } from "../api/use";
import { SourceStep } from "./dataset-source";
import { SchemaTable, type Changes } from "./schema-table";

/** A name made of a file's: lower case letters, digits and hyphens. */
export function nameOf(path: string): string {
  const file = path.split("/").at(-1) ?? "";
  return file.replace(/\.[^.]*$/, "").toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-+|-+$/g, "");
}

/** The columns as they will be registered: ids of patients are read as text. */
export function withPatient(columns: readonly ColumnView[], patient: string): ColumnView[] {
  return columns.map((column) => (column.name === patient ? { ...column, role: "patient", type: "str" } : column));
}

const NAME = /^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$/; // as the node takes it

/** What is wrong with the names of a dataset, by field. */
export function nameFaults(form: NewDataset): readonly ("name" | "tags")[] {
  return [...(NAME.test(form.name) ? [] : ["name" as const]), ...(form.tags.length > 0 && form.tags.every((tag) => NAME.test(tag)) ? [] : ["tags" as const])];
}

function NameStep(props: { found: InspectedView; form: NewDataset; wrong: readonly string[]; edit: (part: Partial<NewDataset>) => void }) {
  const { say, language } = useText();
  const { found, form, wrong, edit } = props;
  const fault = (field: "name" | "tags", value: string) => (wrong.includes(field) ? { error: say(`add.wrong.${field}`, { value }) } : {});
  return (
    <Stack gap="lg">
      <Section title={say("add.found")}>
        <Facts items={[
          [say("field.file"), <span key="f" className="mono">{found.path || form.query?.database}</span>],
          [say("add.query"), form.query && <code key="q" className="mono" style={{ whiteSpace: "pre-wrap" }}>{form.query.select}</code>],
          [say("field.format"), found.format],
          [say("field.records"), figure(found.records, language)],
          [say("field.columns"), found.columns.length],
          [say("field.size"), bytes(found.bytes, language)],
        ]} />
      </Section>
      <Section title={say("add.name")}>
        <Stack maw={560}>
          <TextInput label={say("field.name")} description={say("add.name.hint")} {...fault("name", form.name)} required value={form.name} onChange={(event) => edit({ name: event.currentTarget.value })} />
          <TagsInput label={say("field.tags")} description={say("add.tags.hint")} {...fault("tags", form.tags.join(", "))} required acceptValueOnBlur value={[...form.tags]} onChange={(tags) => edit({ tags })} />
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
  const [form, setForm] = useState<NewDataset>({ name: "", tags: [] });
  const [changes, setChanges] = useState<Changes>({});
  const [wrong, setWrong] = useState<readonly string[]>([]);
  const inspect = useChange(client.inspect);
  const register = useChange(client.register);
  const edit = (part: Partial<NewDataset>) => setForm((old) => ({ ...old, ...part }));

  async function choose(source: InspectPath) {
    const found = await inspect.mutateAsync(source);
    const patient = found.columns.find((column) => column.role === "patient")?.name ?? "";
    setForm({ ...source, name: nameOf(source.path ?? ""), tags: [], patient });
    setChanges({});
    setWrong([]);
    setStep(1);
  }
  function named() {
    const faults = nameFaults(form);
    setWrong(faults); // told when asked for: a line that comes or goes while one types moves the buttons
    if (faults.length === 0) setStep(2);
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
      {step === 0 && <SourceStep busy={inspect.isPending} choose={(source) => void choose(source).catch(() => undefined)} />}
      {step === 0 && inspect.isError && <Failure error={inspect.error} />}
      {step === 1 && inspect.data && <NameStep found={inspect.data} form={form} wrong={wrong} edit={edit} />}
      {step === 2 && inspect.data && (
        <Section title={say("dataset.schema")} hint={say("add.columns.hint")} flush>
          <SchemaTable columns={withPatient(inspect.data.columns, form.patient ?? "")} changes={changes}
            change={(name, part) => setChanges((old) => ({ ...old, [name]: { ...old[name], name, ...part } }))} />
        </Section>
      )}
      {step === 2 && register.isError && <Failure error={register.error} />}
      {step > 0 && (
        <Group justify="flex-end">
          <Button variant="default" onClick={() => setStep(step - 1)}>{say("action.back")}</Button>
          {step === 1 && <Button onClick={named}>{say("action.next")}</Button>}
          {step === 2 && (
            <Button loading={register.isPending} onClick={() => void finish().catch(() => undefined)}>{say("add.register")}</Button>
          )}
        </Group>
      )}
    </Page>
  );
}
