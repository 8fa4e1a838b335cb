import { Alert, Button, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconCircleCheck } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";

import { figure } from "../shared/text/format";
import { useText } from "../shared/text/language";
import { Section } from "../shared/ui/page";
import { Failure } from "../shared/ui/states";
import type { VerifiedView } from "./api/schema";

/** Recompute a hash chain from its first line, and say where it breaks if it does. */
export function Verify(props: { title: string; hint: string; run: () => Promise<VerifiedView> }) {
  const { say, language } = useText();
  const verify = useMutation({ mutationFn: props.run });
  const result = verify.data;
  return (
    <Section title={props.title} hint={props.hint}
      actions={<Button variant="default" loading={verify.isPending} onClick={() => verify.mutate()}>{say("verify.run")}</Button>}>
      <div role="status">
        {verify.isError && <Failure error={verify.error} />}
        {!result && !verify.isError && <Text size="sm" className="quiet">{say("verify.idle")}</Text>}
        {result && (
          <Alert color={result.whole ? "teal" : "brick"} variant="light" icon={result.whole ? <IconCircleCheck aria-hidden /> : <IconAlertTriangle aria-hidden />}
            title={say(result.whole ? "verify.whole" : "verify.broken", { count: figure(result.seq, language) })}>
            <Stack gap={0}><Text className="mono" style={{ overflowWrap: "anywhere" }}>{result.text}</Text></Stack>
          </Alert>
        )}
      </div>
    </Section>
  );
}
