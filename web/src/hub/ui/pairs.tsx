import { ActionIcon, Button, Group, Stack, Text, TextInput } from "@mantine/core";
import { IconPlus, IconX } from "@tabler/icons-react";

import { useText } from "../../shared/text/language";
import type { Pair } from "../model/draft";

/** Names and values, one a row: arguments of a plan, options of a strategy. */
export function Pairs(props: { label: string; hint?: string; pairs: readonly Pair[]; change: (pairs: Pair[]) => void; fixed?: boolean }) {
  const { say } = useText();
  const { pairs, change } = props;
  const set = (index: number, part: Partial<Pair>) => change(pairs.map((pair, i) => (i === index ? { ...pair, ...part } : pair)));
  return (
    <Stack gap={6} role="group" aria-label={props.label}>
      <Text size="sm" fw={500}>{props.label}</Text>
      {props.hint && <Text size="xs" className="quiet">{props.hint}</Text>}
      {pairs.map((pair, index) => (
        <Group key={index} gap="xs" wrap="nowrap">
          <TextInput aria-label={say("pairs.name", { n: index + 1 })} placeholder={say("pairs.name.short")} value={pair.key} disabled={props.fixed ?? false}
            onChange={(event) => set(index, { key: event.currentTarget.value })} style={{ flex: 1 }} />
          <TextInput aria-label={pair.key || say("pairs.value", { n: index + 1 })} placeholder={say("pairs.value.short")} value={pair.value}
            onChange={(event) => set(index, { value: event.currentTarget.value })} style={{ flex: 1 }} />
          {!props.fixed && (
            <ActionIcon variant="subtle" color="gray" aria-label={say("pairs.remove", { n: index + 1 })} onClick={() => change(pairs.filter((_, i) => i !== index))}>
              <IconX size={16} aria-hidden />
            </ActionIcon>
          )}
        </Group>
      ))}
      {!props.fixed && (
        <Group>
          <Button size="compact-sm" variant="default" leftSection={<IconPlus size={15} aria-hidden />} onClick={() => change([...pairs, { key: "", value: "" }])}>
            {say("pairs.add")}
          </Button>
        </Group>
      )}
    </Stack>
  );
}
