import { Button, Group, Stack, Text, ThemeIcon } from "@mantine/core";
import { IconAlertTriangle, IconCheck, IconRefresh } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer } from "../../shared/ui/states";
import type { HealthFinding } from "../api/schema";
import { useClient } from "../api/use";

function Finding({ finding }: { finding: HealthFinding }) {
  const { say, knows } = useText();
  const [check = "", found = "", advice = ""] = finding.keys;
  const told = (key: string, text: string) => (text && knows(key) ? say(key, finding.values) : text);
  return (
    <Group wrap="nowrap" align="flex-start" px="lg" py="sm" style={{ borderTop: "1px solid var(--line)" }}>
      <ThemeIcon variant="light" color={finding.ok ? "teal" : "brick"} radius="xl" size={28} role="img" aria-label={say(finding.ok ? "health.ok" : "health.fault")}>
        {finding.ok ? <IconCheck size={16} aria-hidden /> : <IconAlertTriangle size={16} aria-hidden />}
      </ThemeIcon>
      <Stack gap={2} style={{ minWidth: 0 }}>
        <Text fw={560}>{told(`health.check.${check}`, finding.check)}</Text>
        <Text size="sm" className="quiet" style={{ overflowWrap: "anywhere" }}>{told(`health.found.${found}`, finding.found)}</Text>
        {finding.advice && <Text size="sm" style={{ overflowWrap: "anywhere" }}>{told(`health.advice.${advice}`, finding.advice)}</Text>}
      </Stack>
    </Group>
  );
}

export default function Health() {
  const { say, language } = useText();
  const client = useClient();
  const health = useQuery({ queryKey: ["health"], queryFn: client.health, staleTime: 60_000 });
  return (
    <Page title={say("nav.health")} lead={say("health.lead")} actions={
      <Button variant="default" loading={health.isFetching} leftSection={<IconRefresh size={17} aria-hidden />} onClick={() => void health.refetch()}>{say("health.again")}</Button>
    }>
      <Answer query={health} lines={8}>
        {(data) => (
          <Stack gap="lg">
            <Section>
              <Facts items={[
                [say("field.site"), data.site],
                [say("home.hub"), <span key="h" className="mono">{data.hub}</span>],
                [say("field.version"), data.version],
                [say("health.sandbox"), data.sandbox],
                [say("health.certificate"), moment(data.certificate_expires, language)],
              ]} />
            </Section>
            <Section title={say("health.checks")} hint={say("health.faults", { count: data.findings.filter((finding) => !finding.ok).length })} flush>
              {[...data.findings].sort((a, b) => Number(a.ok) - Number(b.ok)).map((finding) => <Finding key={finding.check} finding={finding} />)}
            </Section>
          </Stack>
        )}
      </Answer>
    </Page>
  );
}
