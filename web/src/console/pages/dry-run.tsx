import { Button, Group, NativeSelect, Stack, Text } from "@mantine/core";
import { IconPlayerPlay } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { causeText } from "../../shared/text/cause";
import { bytes, duration, figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Facts, Mark, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import { useClient } from "../api/use";

/** Let a plan run on generated records before anyone approves it. */
export function DryRun({ digest }: { digest: string }) {
  const { say, language } = useText();
  const words = useText();
  const client = useClient();
  const [dataset, setDataset] = useState("");
  const datasets = useQuery({ queryKey: ["datasets"], queryFn: client.datasets });
  const run = useMutation({ mutationFn: (name: string) => client.dryRun(digest, { dataset: name }) });
  const result = run.data;
  return (
    <Stack gap="lg">
      <Section title={say("plan.try")} hint={say("dry.hint")}>
        <Answer query={datasets} lines={1}>
          {(data) => (
            <Group align="flex-end">
              <NativeSelect label={say("dry.schema_of")} value={dataset} onChange={(event) => setDataset(event.currentTarget.value)}
                data={[{ value: "", label: say("field.choose") }, ...data.datasets.map((one) => one.name)]} />
              <Button leftSection={<IconPlayerPlay size={17} aria-hidden />} disabled={dataset === ""} loading={run.isPending} onClick={() => run.mutate(dataset)}>{say("dry.run")}</Button>
            </Group>
          )}
        </Answer>
        {run.isPending && <Text size="sm" className="quiet" mt="md" role="status">{say("dry.waiting")}</Text>}
      </Section>
      {run.isError && <Failure error={run.error} />}
      {result && (
        <Section title={say("dry.result")} actions={<Mark tone={result.ok ? "good" : "bad"}>{say(result.ok ? "dry.ok" : "dry.failed")}</Mark>}>
          <Stack>
            <Facts items={[
              [say("dry.time"), duration(result.seconds)],
              [say("field.records"), figure(result.records, language)],
              [say("run.memory"), result.memory_bytes > 0 && bytes(result.memory_bytes, language)],
              ...Object.entries(result.metrics).map(([name, value]) => [name, figure(value, language)] as const),
            ]} />
            {result.outputs.length > 0 && <Text fw={560} size="sm">{say("dry.outputs")}</Text>}
            {result.outputs.length > 0 && <Facts items={result.outputs.map(([name, shape]) => [name, <span key={name} className="mono">{shape}</span>] as const)} />}
            {result.warnings.map((warning) => <Text key={warning} size="sm">{warning}</Text>)}
            {!result.ok && <Failure error={new Error(result.error || causeText(result.cause, words))} />}
          </Stack>
        </Section>
      )}
    </Stack>
  );
}
