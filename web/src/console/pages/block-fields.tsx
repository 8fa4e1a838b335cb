import { ActionIcon, Autocomplete, Button, Group, NativeSelect, Stack, Switch, TagsInput, Text, Textarea, TextInput } from "@mantine/core";
import { IconTrash } from "@tabler/icons-react";
import { useState, type ReactNode } from "react";

import { useText } from "../../shared/text/language";
import type { BlockField } from "../block-form";
import { scalarOf, typedOf } from "../loading-text";

const TYPES = ["float32", "float64", "int64", "bool", "str", "category", "date", "timestamp"];

interface Asking {
  readonly kind: string;
  readonly field: BlockField;
  readonly value: unknown;
  readonly columns: readonly string[];
  readonly error: string;
  readonly set: (value: unknown) => void;
}

type Row = readonly [key: string, value: string];

function record(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

function list(value: unknown): string[] {
  return Array.isArray(value) ? value.map(typedOf) : [];
}

function same(rows: readonly Row[], value: unknown): boolean {
  const written = Object.fromEntries(rows.filter(([key]) => key !== "").map(([key, typed]) => [key, typed]));
  const given = Object.fromEntries(Object.entries(record(value)).map(([key, one]) => [key, typedOf(one)]));
  return JSON.stringify(written) === JSON.stringify(given);
}

function rowsOf(value: unknown): Row[] {
  return Object.entries(record(value)).map(([key, one]) => [key, typedOf(one)]);
}

/** Lines of "this becomes that". A line without its left side is not written yet. */
function Pairs({ kind, field, value, columns, error, set }: Asking) {
  const { say } = useText();
  const [rows, setRows] = useState<readonly Row[]>(() => rowsOf(value));
  if (!same(rows, value)) setRows(rowsOf(value)); // the text was changed beside the form
  const ofColumns = field.name === "columns";
  const read = ofColumns ? (typed: string) => typed : scalarOf;
  function write(next: readonly Row[]) {
    setRows(next);
    set(Object.fromEntries(next.filter(([key]) => key !== "").map(([key, typed]) => [key, read(typed)])));
  }
  const edit = (at: number, row: Row) => write(rows.map((old, index) => (index === at ? row : old)));
  return (
    <Stack gap={6} role="group" aria-label={say(`block.field.${kind}.${field.name}`)}>
      <Text size="sm" fw={500}>{say(`block.field.${kind}.${field.name}`)}</Text>
      {rows.map(([key, typed], at) => {
        const left = `${say(`block.left.${kind}`)} ${at + 1}`;
        const right = `${say(`block.right.${kind}`)} ${at + 1}`;
        return (
          <Group key={at} gap="xs" wrap="nowrap">
            {ofColumns ? (
              <Autocomplete aria-label={left} placeholder={say(`block.left.${kind}`)} data={[...columns]} value={key} onChange={(next) => edit(at, [next, typed])} style={{ flex: 1 }} />
            ) : (
              <TextInput aria-label={left} placeholder={say(`block.left.${kind}`)} value={key} onChange={(event) => edit(at, [event.currentTarget.value, typed])} style={{ flex: 1 }} />
            )}
            <Text aria-hidden className="quiet">→</Text>
            {kind === "cast" ? (
              <NativeSelect aria-label={right} data={["", ...TYPES]} value={typed} onChange={(event) => edit(at, [key, event.currentTarget.value])} style={{ flex: 1 }} />
            ) : (
              <TextInput aria-label={right} placeholder={say(`block.right.${kind}`)} value={typed} onChange={(event) => edit(at, [key, event.currentTarget.value])} style={{ flex: 1 }} />
            )}
            <ActionIcon variant="subtle" color="gray" aria-label={say("block.line.remove", { n: at + 1 })} onClick={() => write(rows.filter((_, index) => index !== at))}>
              <IconTrash size={16} stroke={1.6} aria-hidden />
            </ActionIcon>
          </Group>
        );
      })}
      <Group>
        <Button size="compact-sm" variant="subtle" onClick={() => setRows([...rows, ["", ""]])} disabled={rows.some(([key]) => key === "")}>
          {say("block.line.add")}
        </Button>
      </Group>
      {error && <Wrong text={error} />}
    </Stack>
  );
}

export function Wrong({ text }: { text: string }) {
  return <Text size="sm" role="alert" c="var(--mantine-color-error)" style={{ overflowWrap: "anywhere" }}>{text}</Text>;
}

/** Named groups of columns: the modalities. */
function Groups({ kind, field, value, columns, error, set }: Asking) {
  const { say } = useText();
  const [name, setName] = useState("");
  const groups = Object.entries(record(value));
  const write = (key: string, members: readonly string[] | null) => {
    const rest = Object.fromEntries(groups.filter(([other]) => other !== key));
    set(members === null ? rest : { ...record(value), [key]: { columns: members } });
  };
  return (
    <Stack gap="xs" role="group" aria-label={say(`block.field.${kind}.${field.name}`)}>
      {groups.map(([key, group]) => (
        <Group key={key} align="flex-end" wrap="nowrap">
          <TagsInput label={say("block.modality.columns", { name: key })} data={[...columns]} value={list(record(group)["columns"])} onChange={(members) => write(key, members)} style={{ flex: 1 }} />
          <ActionIcon variant="subtle" color="gray" aria-label={say("block.modality.remove", { name: key })} onClick={() => write(key, null)}>
            <IconTrash size={16} stroke={1.6} aria-hidden />
          </ActionIcon>
        </Group>
      ))}
      <Group align="flex-end">
        <TextInput label={say("block.modality.new")} value={name} onChange={(event) => setName(event.currentTarget.value)} />
        <Button variant="default" disabled={name.trim() === "" || name in record(value)} onClick={() => { write(name.trim(), []); setName(""); }}>{say("block.line.add")}</Button>
      </Group>
      {error && <Wrong text={error} />}
    </Stack>
  );
}

/** One field of a block, asked for by what the schema says it is. */
export function BlockInput(asking: Asking): ReactNode {
  const { kind, field, value, columns, error, set } = asking;
  const { say, knows } = useText();
  const key = `block.field.${kind}.${field.name}`;
  const hint = `${key}.hint`;
  const common = {
    label: say(key),
    ...(knows(hint) ? { description: say(hint) } : {}),
    ...(error ? { error } : {}),
  };
  const typed = typedOf(value ?? field.preset ?? "");
  switch (field.asked) {
    case "pairs":
      return <Pairs {...asking} />;
    case "groups":
      return <Groups {...asking} />;
    case "columns":
      return <TagsInput {...common} data={[...columns]} value={list(value)} onChange={set} />;
    case "words":
      return <TagsInput {...common} value={Array.isArray(value) ? value.map(String) : []} onChange={set} />;
    case "scalars":
      return <TagsInput {...common} value={list(value)} onChange={(words) => set(words.length > 0 ? words.map(scalarOf) : undefined)} />;
    case "column":
      return <Autocomplete {...common} data={[...columns]} value={typed} onChange={(name) => set(name)} />;
    case "scalar":
      return <TextInput {...common} value={typed} onChange={(event) => set(event.currentTarget.value === "" ? undefined : scalarOf(event.currentTarget.value))} />;
    case "switch":
      return <Switch {...common} checked={value === true} onChange={(event) => set(event.currentTarget.checked ? true : undefined)} />;
    case "choice":
      return (
        <NativeSelect {...common} value={typed} onChange={(event) => set(event.currentTarget.value)}
          data={field.choices.map((choice) => ({ value: choice, label: say(`block.choice.${choice}`) }))} />
      );
    case "expression":
      return <Textarea {...common} autosize minRows={1} spellCheck={false} classNames={{ input: "mono" }} value={typed} onChange={(event) => set(event.currentTarget.value)} />;
    case "text":
      return <TextInput {...common} value={typed} onChange={(event) => set(event.currentTarget.value || (field.required ? "" : undefined))} />;
  }
}
