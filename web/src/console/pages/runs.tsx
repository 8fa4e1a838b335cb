import { Button, Group, Progress, Stack, Text } from "@mantine/core";
import { IconActivity, IconMessages, IconPlayerStop } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { useNow } from "../../shared/now";
import { bytes, duration, figure, moment, percent } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import type { RunView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { Released } from "./released";

function Run({ run }: { run: RunView }) {
  const { say, language, knows } = useText();
  const client = useClient();
  const mayStop = useMay("data_manager", "reviewer", "administrator");
  const mayRead = useMay("data_manager", "dpo");
  const stop = useChange((reason: string) => client.stopRun(run.job, { reason }));
  const now = useNow(1);
  const phase = `phase.${run.phase}`;
  return (
    <Section title={say("run.title", { job: run.job, round: run.round })} hint={`${run.study} · ${run.kind} · ${run.plan}`}
      actions={mayStop && (
        <Confirm label={say("run.stop")} title={say("run.stop.title", { job: run.job })} consequence={say("run.stop.consequence")} reason="required" danger
          icon={<IconPlayerStop size={17} aria-hidden />} act={(reason) => stop.mutateAsync(reason)} />
      )}>
      <Stack gap="sm">
        <Group justify="space-between">
          <Text size="sm">{knows(phase) ? say(phase) : run.phase}</Text>
          <Text size="sm" className="figures quiet">{percent(run.fraction, language)}</Text>
        </Group>
        <Progress value={run.fraction * 100} aria-label={say("run.progress")} />
        <Facts items={[
          [say("run.since"), run.since > 0 && `${moment(run.since, language)} (${duration(now - run.since)})`],
          [say("run.cpu"), run.cpu_seconds !== null && say("run.cpu.of", { time: duration(run.cpu_seconds), cores: figure(run.cpu_seconds / Math.max(1, now - run.since), language) })],
          [say("run.memory"), run.memory_bytes !== null && bytes(run.memory_bytes, language)],
        ]} />
        {mayRead && <Link href={`/runs/log?job=${encodeURIComponent(run.job)}`}>{say("joblog.of")}</Link>}
      </Stack>
    </Section>
  );
}

/** A job that was stopped here stays stopped until somebody lets it go on. */
function Stopped({ job }: { job: string }) {
  const { say } = useText();
  const client = useClient();
  const mayResume = useMay("data_manager", "reviewer", "administrator");
  const mayRead = useMay("data_manager", "dpo");
  const resume = useChange((reason: string) => client.resumeRun(job, { reason }));
  return (
    <Section title={say("run.stopped", { job })} hint={say("run.stopped.hint")}
      actions={mayResume && <Confirm label={say("run.resume")} title={say("run.resume.title", { job })} consequence={say("run.resume.consequence")} reason="required" act={(reason) => resume.mutateAsync(reason)} />}>
      <Group>
        <Link href={`/audit?text=${encodeURIComponent(job)}`}>{say("run.in_audit")}</Link>
        {mayRead && <Link href={`/runs/log?job=${encodeURIComponent(job)}`}>{say("joblog.of")}</Link>}
      </Group>
    </Section>
  );
}

export default function Runs() {
  const { say } = useText();
  const client = useClient();
  const mayRead = useMay("data_manager", "dpo");
  const runs = useQuery({ queryKey: ["runs"], queryFn: client.runs });
  return (
    <Page title={say("nav.runs")} lead={say("runs.lead")} actions={mayRead && (
      <Button component={Link} href="/runs/log" variant="default" leftSection={<IconMessages size={17} aria-hidden />}>{say("joblog.title")}</Button>
    )}>
      <Answer query={runs}>
        {(data) => (
          <Stack gap="lg">
            {data.problem && <Failure error={new Error(data.problem)} />}
            {data.runs.length === 0 ? (
              <Section><Empty title={say("runs.none")} hint={say(data.agent_runs ? "runs.none.hint" : "hub.agent_down.remedy")} icon={<IconActivity stroke={1.5} />} /></Section>
            ) : (
              data.runs.map((run) => <Run key={run.lease} run={run} />)
            )}
            {data.stopped.map((job) => <Stopped key={job} job={job} />)}
          </Stack>
        )}
      </Answer>
      <Released />
    </Page>
  );
}
