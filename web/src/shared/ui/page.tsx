import { Anchor, Badge, Box, Group, Stack, Text, Title } from "@mantine/core";
import { IconArrowLeft } from "@tabler/icons-react";
import { useEffect, type ReactNode } from "react";
import { Link } from "wouter";

/** A page's head and body; its title is the window's title too. */
export function Page(props: {
  title: string;
  lead?: string | undefined;
  actions?: ReactNode;
  back?: { to: string; label: string };
  badge?: ReactNode;
  children: ReactNode;
}) {
  useEffect(() => {
    document.title = `${props.title} · Consilia`;
  }, [props.title]);
  return (
    <Stack gap="lg">
      <Group justify="space-between" align="flex-end" gap="md">
        <Stack gap={4} maw={760}>
          {props.back && (
            <Anchor component={Link} href={props.back.to} size="sm">
              <Group gap={4} component="span">
                <IconArrowLeft size={15} aria-hidden /> {props.back.label}
              </Group>
            </Anchor>
          )}
          <Group gap="sm">
            <Title order={1} size="1.6rem" style={{ overflowWrap: "anywhere" }}>{props.title}</Title>
            {props.badge}
          </Group>
          {props.lead && <Text className="quiet">{props.lead}</Text>}
        </Stack>
        {props.actions && <Group gap="sm">{props.actions}</Group>}
      </Group>
      {props.children}
    </Stack>
  );
}

/** A titled part of a page on its own ground. */
export function Section(props: {
  title?: string | undefined;
  hint?: string | undefined;
  actions?: ReactNode;
  flush?: boolean;
  children: ReactNode;
}) {
  const head = props.title !== undefined || props.actions !== undefined;
  return (
    <Box component="section" className="surface" style={{ overflow: "hidden" }}>
      {head && (
        <Group justify="space-between" px="lg" pt="md" pb={props.flush ? "sm" : 0} gap="sm">
          <Stack gap={2}>
            {props.title && <Title order={2} size="1.05rem">{props.title}</Title>}
            {props.hint && <Text size="sm" className="quiet">{props.hint}</Text>}
          </Stack>
          {props.actions && <Group gap="xs">{props.actions}</Group>}
        </Group>
      )}
      <Box px={props.flush ? 0 : "lg"} pb={props.flush ? 0 : "lg"} pt={props.flush ? 0 : head ? "md" : "lg"}>
        {props.children}
      </Box>
    </Box>
  );
}

export type Fact = readonly [label: string, value: ReactNode];

/** Terms and what they are; empty values are left out. */
export function Facts({ items }: { items: readonly Fact[] }) {
  return (
    <dl className="facts">
      {items
        .filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "")
        .map(([label, value]) => (
          <div key={label} style={{ display: "contents" }}>
            <dt>{label}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

const TONES = { good: "teal", waiting: "amber", bad: "brick", plain: "gray" } as const;
export type Tone = keyof typeof TONES;

export function Mark({ tone, children }: { tone: Tone; children: ReactNode }) {
  return (
    <Badge color={TONES[tone]} variant="light" radius="sm" tt="none" fw={560} miw="max-content">
      {children}
    </Badge>
  );
}
