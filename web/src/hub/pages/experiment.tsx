import { Button, Group, Modal, NumberInput, Progress, SimpleGrid, Stack, Tabs, Text } from "@mantine/core";
import { IconAdjustments, IconArrowBackUp, IconCopy, IconPlayerPause, IconPlayerPlay, IconPlayerStop } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "wouter";

import { causeText } from "../../shared/text/cause";
import { figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import type { JobView } from "../api/schema";
import { useChange, useClient, useMay, usePerson } from "../api/use";
import { pairs, valuesOf } from "../model/draft";
import type { Live } from "../model/happenings";
import { AskEvaluation } from "../ui/ask-evaluation";
import { Charts } from "../ui/job-charts";
import { Evaluations } from "../ui/evaluations";
import { Log } from "../ui/job-log";
import { RoundTable } from "../ui/job-rounds";
import { Phases, SitesNow } from "../ui/job-sites";
import { useLiveJob } from "../ui/live-job";
import { RUNNING, State } from "../ui/marks";
import { Pairs } from "../ui/pairs";
import { Statistics } from "../ui/statistics";

/** A question of sums: no plan is run, no model made. */
function asksForSums(job: JobView): boolean {
  return (job.experiment.privacy?.statistics ?? null) !== null;
}

function ChangeArguments({ job }: { job: JobView }) {
  const { say } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [edited, setEdited] = useState(() => pairs(job.experiment.arguments));
  const change = useChange(() => client.changeArguments(job.id, { arguments: valuesOf(edited) }));
  return (
    <>
      <Button variant="default" leftSection={<IconAdjustments size={17} aria-hidden />} onClick={() => setOpen(true)}>{say("job.change")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={say("job.change")} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <form onSubmit={(event) => { event.preventDefault(); change.mutate(undefined, { onSuccess: () => setOpen(false) }); }}>
          <Stack>
            <Pairs label={say("job.arguments")} hint={say("job.change.hint")} pairs={edited} change={setEdited} />
            {change.isError && <Failure error={change.error} />}
            <Button type="submit" loading={change.isPending}>{say("job.change.apply")}</Button>
          </Stack>
        </form>
      </Modal>
    </>
  );
}

const MORE = 5; // rounds that a finished job is offered

function Resume({ job }: { job: JobView }) {
  const { say } = useText();
  const client = useClient();
  const had = job.experiment.rounds;
  const done = job.state === "done"; // it has had its rounds: only more of them go on
  const least = done ? had + 1 : had;
  const [wanted, setWanted] = useState(0);
  const rounds = Math.max(least, wanted || (done ? had + MORE : had));
  const resume = useChange(() => client.resumeJob(job.id, { rounds: rounds > had ? rounds : null }));
  return (
    <Confirm filled label={say("job.resume")} title={say("job.resume")} consequence={done ? say("job.resume.done", { rounds: had }) : say("job.resume.consequence")} icon={<IconPlayerPlay size={17} aria-hidden />} act={() => resume.mutateAsync(undefined)}>
      <NumberInput label={say("job.rounds_in_all")} min={least} allowDecimal={false} value={rounds} onChange={(value) => setWanted(Number(value) || 0)} />
    </Confirm>
  );
}

/** The next round begins with an earlier model; what came between stays on record. */
function RollBack({ job }: { job: JobView }) {
  const { say } = useText();
  const client = useClient();
  const [round, setRound] = useState(Math.max(0, job.round - 1));
  const back = useChange(() => client.rollBack(job.id, { round }));
  return (
    <Confirm label={say("job.back")} title={say("job.back")} consequence={say("job.back.consequence")} icon={<IconArrowBackUp size={17} aria-hidden />} act={() => back.mutateAsync(undefined)}>
      <NumberInput label={say("job.round")} min={0} max={job.round} allowDecimal={false} value={round} onChange={(value) => setRound(Number(value) || 0)} />
    </Confirm>
  );
}

function Actions({ job }: { job: JobView }) {
  const { say } = useText();
  const client = useClient();
  const person = usePerson();
  const operator = useMay("operator");
  const mayWrite = useMay("operator", "researcher");
  const stop = useChange(() => client.stopJob(job.id));
  const pause = useChange(() => client.pauseJob(job.id));
  const running = RUNNING.includes(job.state);
  const own = operator || job.author === person.name;
  const evaluatesOnly = job.experiment.rounds === 0 && job.state === "done"; // no round could follow
  return (
    <>
      {own && running && <ChangeArguments job={job} />}
      {own && running && job.state !== "paused" && !job.pausing && <Confirm label={say("job.pause")} title={say("job.pause")} consequence={say("job.pause.consequence")} icon={<IconPlayerPause size={17} aria-hidden />} act={() => pause.mutateAsync(undefined)} />}
      {own && running && <Confirm danger label={say("job.stop")} title={say("job.stop")} consequence={say("job.stop.consequence")} icon={<IconPlayerStop size={17} aria-hidden />} act={() => stop.mutateAsync(undefined)} />}
      {own && (!running || job.state === "paused" || job.pausing) && !evaluatesOnly && <Resume job={job} />}
      {own && (!running || job.state === "paused") && job.round > 0 && <RollBack job={job} />}
      {mayWrite && job.round > 0 && <AskEvaluation job={job} />}
      {mayWrite && !asksForSums(job) && <Button component={Link} href={`/experiments/new?from=${encodeURIComponent(job.id)}`} variant="default" leftSection={<IconCopy size={17} aria-hidden />}>{say("job.clone")}</Button>}
    </>
  );
}

function Where({ job, up }: { job: JobView; up: boolean }) {
  const { say, language } = useText();
  const words = useText();
  const rounds = job.experiment.rounds;
  const last = job.rounds.at(-1);
  const epsilon = last?.epsilon ?? null;
  const facts: [string, string][] = [
    [say("job.round"), say("home.of", { part: job.round, all: rounds })],
    [say("job.records"), last ? figure(last.records, language) : "–"],
    [say("job.seconds"), last ? say("job.seconds.value", { seconds: figure(last.seconds, language, 3) }) : "–"],
    ...(epsilon === null ? [] : [[say("job.epsilon"), figure(epsilon, language, 3)] as [string, string]]),
  ];
  return (
    <Section>
      <Stack>
        <Progress value={rounds > 0 ? (100 * job.round) / rounds : 0} size="lg" aria-label={say("job.progress", { round: job.round, rounds })} />
        <SimpleGrid cols={{ base: 2, sm: 4 }}>
          {facts.map(([label, value]) => (
            <Stack key={label} gap={0}><Text size="sm" className="quiet">{label}</Text><Text size="1.3rem" fw={600} className="figures">{value}</Text></Stack>
          ))}
        </SimpleGrid>
        <div role="status">
          {job.cause && <Text size="sm" style={{ overflowWrap: "anywhere" }}>{causeText(job.cause, words)}</Text>}
          {!up && RUNNING.includes(job.state) && <Text size="sm" className="quiet">{say("job.line_lost")}</Text>}
        </div>
      </Stack>
    </Section>
  );
}

function Configuration({ job }: { job: JobView }) {
  const { say, language } = useText();
  const e = job.experiment;
  return (
    <Stack gap="lg">
      <Facts items={[
        [say("field.study"), <Link key="s" href={`/studies/${encodeURIComponent(e.study)}`}>{e.study}</Link>],
        [say("field.plan"), e.plan && <Link key="p" href={`/plans/${encodeURIComponent(e.plan)}`} className="mono">{e.plan}</Link>],
        [say("field.author"), job.author],
        [say("field.when"), moment(job.created, language)],
        [say("draft.strategy"), e.strategy?.name],
        [say("draft.base"), e.base],
      ]} />
      <pre className="code" tabIndex={0} aria-label={say("draft.record")} role="region">{JSON.stringify(e, null, 2)}</pre>
    </Stack>
  );
}

function Body({ job, live, up }: { job: JobView; live: Live; up: boolean }) {
  const { say } = useText();
  const running = RUNNING.includes(job.state);
  const trains = job.experiment.rounds > 0; // not an evaluation, and no question of sums
  return (
    <>
      {(trains || running || job.cause !== "") && <Where job={job} up={up} />}
      {running && <Section title={say("job.phases", { round: live.round ?? job.round })}><Phases job={job} live={live} /></Section>}
      {running && <Section title={say("job.sites")} flush><SitesNow job={job} live={live} /></Section>}
      <Charts job={job} live={live} />
      <Evaluations job={job} />
      <Statistics job={job} />
      <Section flush>
        <Tabs defaultValue={trains ? "rounds" : "log"} keepMounted={false}>
          <Tabs.List>
            {trains && <Tabs.Tab value="rounds">{say("job.tab.rounds")}</Tabs.Tab>}
            <Tabs.Tab value="log">{say("job.tab.log")}</Tabs.Tab>
            <Tabs.Tab value="configuration">{say("job.tab.configuration")}</Tabs.Tab>
          </Tabs.List>
          <Tabs.Panel value="rounds"><RoundTable job={job} /></Tabs.Panel>
          <Tabs.Panel value="log"><Log live={live} /></Tabs.Panel>
          <Tabs.Panel value="configuration" p="lg"><Configuration job={job} /></Tabs.Panel>
        </Tabs>
      </Section>
      {!asksForSums(job) && <Group><Link href={`/models?job=${encodeURIComponent(job.id)}`}>{say("job.models")}</Link></Group>}
    </>
  );
}

/** One experiment as it runs, and afterwards. */
export default function Experiment({ id }: { id: string }) {
  const { say } = useText();
  const client = useClient();
  const job = useQuery({ queryKey: ["job", id], queryFn: () => client.job(id), refetchInterval: 15_000 });
  const { live, up } = useLiveJob(id);
  return (
    <Page title={job.data?.experiment.name || id} lead={job.data?.experiment.name ? id : undefined} back={{ to: "/experiments", label: say("nav.experiments") }}
      badge={job.data && <State of={job.data.pausing ? "pausing" : job.data.state} />} actions={job.data && <Actions job={job.data} />}>
      <Answer query={job}>{(view) => <Body job={view} live={live} up={up} />}</Answer>
    </Page>
  );
}
