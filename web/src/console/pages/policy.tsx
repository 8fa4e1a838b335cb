import { Alert, Button, Group, NativeSelect, NumberInput, SimpleGrid, Stack, Switch, Tabs, TagsInput, Text, TextInput, Textarea } from "@mantine/core";
import { IconAdjustmentsCheck, IconInfoCircle } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";

import { bytes, day, figure, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { groupsOf, spelled, valueAt, type Field, type FieldGroup } from "../../shared/text/schema-form";
import { Confirm } from "../../shared/ui/confirm";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { PolicyCheckView, PolicyView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { valuesOf, withValue } from "../policy-text";
import { SpecialInput } from "./policy-special";

// What names the node or is decided on its machine; the server refuses a change of these here.
const FIXED = ["site", "hub", "sandbox", "proxy", "proxy_password_file", "console"];

function presetText(preset: unknown): string {
  if (preset === undefined || preset === null) return "";
  return typeof preset === "string" ? preset : JSON.stringify(preset);
}

function FieldInput({ field, value, set }: { field: Field; value: unknown; set: (value: unknown) => void }) {
  const { say, knows, language } = useText();
  const key = field.path.join(".");
  const label = knows(`policy.${key}`) ? say(`policy.${key}`) : spelled(field.path.at(-1) ?? "");
  const hint = knows(`policy.${key}.hint`) ? say(`policy.${key}.hint`) : undefined;
  const shown = value ?? field.preset;
  const preset = presetText(field.preset);
  const size = key.endsWith("_bytes") && typeof shown === "number" ? say("policy.size", { size: bytes(shown, language) }) : undefined;
  const told = [hint, size].filter((part) => part !== undefined).join(" ");
  const common = { label, ...(told === "" ? {} : { description: told }) };
  switch (field.kind) {
    case "switch":
      return <Switch {...common} checked={shown === true} onChange={(event) => set(event.currentTarget.checked)} />;
    case "number":
      return <NumberInput {...common} allowDecimal={!field.whole} thousandSeparator=" " value={typeof shown === "number" ? shown : ""}
        onChange={(changed) => set(changed === "" ? undefined : Number(changed))} placeholder={preset} />;
    case "choice":
      return <NativeSelect {...common} data={[...field.choices]} value={String(shown)} onChange={(event) => set(event.currentTarget.value)} />;
    case "list":
      return <TagsInput {...common} value={Array.isArray(shown) ? shown.map(String) : []} onChange={(list) => set(list.length > 0 ? list : undefined)} />;
    case "text":
      return <TextInput {...common} value={typeof shown === "string" ? shown : ""} onChange={(event) => set(event.currentTarget.value || undefined)} />;
    case "other":
      return <SpecialInput name={key} label={label} hint={hint ?? ""} value={shown} set={set} />;
  }
}

function Form(props: { groups: readonly FieldGroup[]; yaml: string; edit: (yaml: string) => void }) {
  const { say, knows } = useText();
  const values = useMemo(() => valuesOf(props.yaml), [props.yaml]);
  return (
    <Stack gap="lg">
      {props.groups
        .filter((group) => !FIXED.includes(group.name))
        .map((group) => (
          <Section key={group.name} title={knows(`policy.group.${group.name}`) ? say(`policy.group.${group.name}`) : group.name === "" ? say("policy.general") : spelled(group.name)}
            hint={knows(`policy.group.${group.name}.hint`) ? say(`policy.group.${group.name}.hint`) : undefined}>
            <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="lg" verticalSpacing="lg">
              {group.fields
                .filter((field) => !FIXED.includes(field.path[0] ?? ""))
                .map((field) => (
                  <FieldInput key={field.path.join(".")} field={field} value={valueAt(values, field.path)} set={(value) => props.edit(withValue(props.yaml, field.path, value))} />
                ))}
            </SimpleGrid>
          </Section>
        ))}
    </Stack>
  );
}

function Checked({ found }: { found: PolicyCheckView }) {
  const { say, language } = useText();
  if (found.problem) return <Failure error={new Error(found.problem)} />;
  return (
    <Stack>
      <Alert variant="light" icon={<IconInfoCircle aria-hidden />} role="status" title={say("policy.would", { count: found.decisions.length })}>
        <Text size="sm">{say("policy.looked", { requests: figure(found.requests, language), days: found.days })}</Text>
      </Alert>
      <Section title={say("policy.changes")} flush>
        <Rows compact label={say("policy.changes")} rows={found.changes} id={(row) => row.key} columns={[
          { head: say("policy.key"), cell: (row) => <span className="mono">{row.key}</span> },
          { head: say("policy.before"), wide: true, cell: (row) => <span className="mono">{row.before}</span> },
          { head: say("policy.after"), wide: true, cell: (row) => <span className="mono">{row.after}</span> },
          { head: say("policy.in_force"), cell: (row) => say(row.restart ? "policy.after_restart" : "policy.at_once") },
        ]} />
      </Section>
      {found.decisions.length > 0 && (
        <Section title={say("policy.decisions")} flush>
          <Rows compact label={say("policy.decisions")} rows={found.decisions} id={(row) => `${row.day} ${row.kind} ${row.study} ${row.plan} ${row.reasons.join()}`} columns={[
            { head: say("field.when"), cell: (row) => day(row.day, language) },
            { head: say("field.study"), cell: (row) => row.study },
            { head: say("field.plan"), cell: (row) => <span className="mono">{shortDigest(row.plan)}</span> },
            { head: say("policy.requests"), right: true, cell: (row) => row.count },
            { head: say("policy.draft_would"), cell: (row) => <Mark tone={row.allowed ? "good" : "bad"}>{say(row.allowed ? "policy.allow" : "policy.refuse")}</Mark> },
            { head: say("field.reason"), wide: true, cell: (row) => row.reasons.join("; ") },
          ]} />
        </Section>
      )}
    </Stack>
  );
}

function Editor({ policy, schema }: { policy: PolicyView; schema: unknown }) {
  const { say } = useText();
  const client = useClient();
  const mayApply = useMay("administrator");
  const [yaml, setYaml] = useState(policy.yaml);
  const [checkedText, setCheckedText] = useState("");
  const groups = useMemo(() => groupsOf(schema), [schema]);
  const check = useMutation({ mutationFn: (text: string) => client.checkPolicy({ yaml: text, digest: policy.digest }), onSuccess: (_, text) => setCheckedText(text) });
  const apply = useChange(() => client.savePolicy({ yaml, digest: policy.digest }));
  const changed = yaml !== policy.yaml;
  const ready = changed && checkedText === yaml && check.data?.problem === "";
  return (
    <Stack gap="lg">
      <Tabs defaultValue="form" keepMounted={false}>
        <Tabs.List mb="lg">
          <Tabs.Tab value="form">{say("policy.form")}</Tabs.Tab>
          <Tabs.Tab value="text">node.yaml</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="form"><Form groups={groups} yaml={yaml} edit={setYaml} /></Tabs.Panel>
        <Tabs.Panel value="text">
          <Textarea aria-label="node.yaml" value={yaml} autosize minRows={12} spellCheck={false} onChange={(event) => setYaml(event.currentTarget.value)}
            styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: "0.85rem" } }} />
        </Tabs.Panel>
      </Tabs>
      {check.isError && <Failure error={check.error} />}
      {check.data && checkedText === yaml && <Checked found={check.data} />}
      <Group className="surface" p="md" justify="space-between" style={{ position: "sticky", bottom: 12, zIndex: 2 }}>
        <Text size="sm" className="quiet">{say(changed ? "policy.changed" : "policy.unchanged")}</Text>
        <Group>
          <Button variant="default" disabled={!changed} onClick={() => setYaml(policy.yaml)}>{say("action.discard")}</Button>
          <Button variant={ready ? "default" : "filled"} leftSection={<IconAdjustmentsCheck size={17} aria-hidden />} disabled={!changed} loading={check.isPending} onClick={() => check.mutate(yaml)}>{say("policy.check")}</Button>
          {mayApply && <Confirm filled label={say("policy.apply")} title={say("policy.apply")} consequence={say("policy.apply.consequence")} disabled={!ready} act={() => apply.mutateAsync(undefined)} />}
        </Group>
      </Group>
    </Stack>
  );
}

export default function Policy() {
  const { say } = useText();
  const client = useClient();
  const policy = useQuery({ queryKey: ["policy"], queryFn: client.policy });
  const schema = useQuery({ queryKey: ["policy-schema"], queryFn: client.policySchema, staleTime: Infinity });
  return (
    <Page title={say("nav.policy")} lead={say("policy.lead")}>
      <Answer query={policy}>
        {(data) => <Answer query={schema}>{(form) => <Editor key={data.digest} policy={data} schema={form} />}</Answer>}
      </Answer>
    </Page>
  );
}
