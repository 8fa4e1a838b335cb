import { Fieldset, Group, NumberInput, Stack, Switch, Text, Textarea } from "@mantine/core";
import { useState } from "react";

import { useText } from "../../shared/text/language";
import { linesOf, namesOf, rangeLines, type Lines } from "../policy-lines";

type Values = Readonly<Record<string, unknown>>;

interface Special {
  readonly name: string; // dotted, as in node.yaml
  readonly label: string;
  readonly hint: string;
  readonly value: unknown;
  readonly set: (value: unknown) => void;
}

function record(value: unknown): Values {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Values) : {};
}

/** A cap of epsilon at a delta; without an epsilon there is none. */
function CapInput({ name, label, hint, value, set }: Special) {
  const { say } = useText();
  const cap = record(value);
  const delta = typeof cap["delta"] === "number" ? cap["delta"] : 1e-5;
  return (
    <Fieldset legend={label}>
      <Text size="xs" className="quiet" mb="xs">{hint}</Text>
      <Group grow align="flex-start">
        <NumberInput label={say("policy.privacy.epsilon")} description={say("policy.privacy.epsilon.hint")} min={0} aria-label={`${label}: ε`} value={typeof cap["epsilon"] === "number" ? cap["epsilon"] : ""}
          onChange={(epsilon) => set(epsilon === "" ? (name === "privacy.universe" ? undefined : null) : { epsilon: Number(epsilon), delta })} />
        <NumberInput label={say("policy.privacy.delta")} description={say("policy.privacy.delta.hint")} min={0} decimalScale={12} aria-label={`${label}: δ`} value={delta} disabled={typeof cap["epsilon"] !== "number"}
          onChange={(found) => set({ epsilon: cap["epsilon"], delta: Number(found) })} />
      </Group>
    </Fieldset>
  );
}

/** Reviews of other sites that approve a plan here; switched off, none do. */
function ConsortiumInput({ label, hint, value, set }: Special) {
  const { say } = useText();
  const review = record(value);
  const on = typeof value === "object" && value !== null;
  const number = (key: "reviewers" | "sites") => (typeof review[key] === "number" ? review[key] : 2);
  return (
    <Stack gap="xs">
      <Switch label={label} description={hint} checked={on} onChange={(event) => set(event.currentTarget.checked ? { reviewers: 2, sites: 2 } : null)} />
      {on && (
        <Group grow align="flex-start">
          {(["reviewers", "sites"] as const).map((key) => (
            <NumberInput key={key} label={say(`policy.consortium_review.${key}`)} description={say(`policy.consortium_review.${key}.hint`)} min={1} value={number(key)}
              onChange={(found) => set({ reviewers: number("reviewers"), sites: number("sites"), [key]: Number(found) })} />
          ))}
        </Group>
      )}
    </Stack>
  );
}

/** Lines "name: what". The text stays as typed; only lines that can be read go into the policy. */
function LinesInput({ label, hint, value, set, read, written }: Special & { read: (text: string) => Lines; written: string }) {
  const { say } = useText();
  const [text, setText] = useState(written);
  const found = read(text);
  const same = JSON.stringify(found.values) === JSON.stringify(record(value));
  if (!same && found.wrong === "" && text !== written) setText(written); // the text of node.yaml was changed
  return (
    <Textarea label={label} description={hint} autosize minRows={2} spellCheck={false} value={text} {...(found.wrong ? { error: say("policy.line.wrong", { line: found.wrong }) } : {})}
      onChange={(event) => {
        const typed = event.currentTarget.value;
        setText(typed);
        const now = read(typed);
        if (now.wrong === "") set(now.values);
      }} />
  );
}

/** A key that is a record of its own: each has its own way to be asked for. */
export function SpecialInput(special: Special) {
  if (special.name === "consortium_review") return <ConsortiumInput {...special} />;
  if (special.name === "arguments") return <LinesInput {...special} read={linesOf} written={rangeLines(special.value)} />;
  if (special.name === "privacy.universes") return <LinesInput {...special} read={namesOf} written={rangeLines(special.value)} />;
  return <CapInput {...special} />;
}
