import { Alert, Button, Skeleton, Stack, Text, ThemeIcon, Title } from "@mantine/core";
import { IconAlertTriangle, IconLeaf } from "@tabler/icons-react";
import type { UseQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";

import { Problem } from "../api/request";
import { useText } from "../text/language";

/** An error with its remedy, and a way to try again where that may help. */
export function Failure({ error, retry }: { error: unknown; retry?: (() => void) | undefined }) {
  const { say } = useText();
  const unreachable = error instanceof Problem && error.status === 0;
  const title = unreachable ? say("error.unreachable") : say("error.title");
  const detail = unreachable
    ? say("error.unreachable.remedy")
    : error instanceof Error
      ? error.message
      : String(error);
  return (
    <Alert role="alert" color="brick" variant="light" icon={<IconAlertTriangle aria-hidden />} title={title}>
      <Stack gap="sm" align="flex-start">
        <Text size="sm" style={{ overflowWrap: "anywhere", whiteSpace: "pre-line" }}>{detail}</Text>
        {retry && (
          <Button size="xs" variant="default" onClick={retry}>
            {say("action.retry")}
          </Button>
        )}
      </Stack>
    </Alert>
  );
}

export function Empty(props: { title: string; hint?: string; children?: ReactNode; icon?: ReactNode }) {
  return (
    <Stack align="center" gap="xs" py={36} px="md" ta="center">
      <ThemeIcon variant="light" size={48} radius="xl" aria-hidden>
        {props.icon ?? <IconLeaf stroke={1.5} />}
      </ThemeIcon>
      <Title order={2} size="h4">{props.title}</Title>
      {props.hint && <Text className="quiet" maw={440}>{props.hint}</Text>}
      {props.children}
    </Stack>
  );
}

export function Waiting({ lines = 4 }: { lines?: number }) {
  const { say } = useText();
  return (
    <Stack gap="md" role="status" aria-label={say("state.loading")}>
      {Array.from({ length: lines }, (_, i) => (
        <Skeleton key={i} height={18} width={`${95 - 13 * (i % 3)}%`} radius="sm" />
      ))}
    </Stack>
  );
}

/** What a query has to show: its waiting, its error with a remedy, or its data.
 *
 * What is there stays when asking for it again fails: somebody may be writing in it. */
export function Answer<T>(props: {
  query: UseQueryResult<T>;
  children: (data: T) => ReactNode;
  lines?: number;
}) {
  const { query } = props;
  if (query.isPending) return <Waiting lines={props.lines ?? 4} />;
  return (
    <>
      {query.isError && <Failure error={query.error} retry={() => void query.refetch()} />}
      {query.data !== undefined && props.children(query.data)}
    </>
  );
}
