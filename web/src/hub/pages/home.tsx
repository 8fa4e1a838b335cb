import { Group, Progress, SimpleGrid, Stack, Text, ThemeIcon } from "@mantine/core";
import { IconActivity, IconBuildingHospital, IconChevronRight, IconCircleCheck, IconCube, IconUserQuestion, IconUsersGroup } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Link } from "wouter";

import { causeText } from "../../shared/text/cause";
import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import type { JobView } from "../api/schema";
import { useClient, useMay, usePerson } from "../api/use";
import { INSIDERS, READERS, USERS } from "../shell";
import { RUNNING, State } from "../ui/marks";

const REFRESH = 5_000; // milliseconds
const FEW = 50;

interface Item {
  readonly key: string;
  readonly to: string;
  readonly title: string;
  readonly detail: string;
  readonly what: string;
  readonly icon: typeof IconCube;
}

function Waits({ item }: { item: Item }) {
  const Icon = item.icon;
  return (
    <Group wrap="nowrap" px="lg" py="md" className="link-row" style={{ borderTop: "1px solid var(--line)" }}>
      <ThemeIcon variant="light" color="amber" size={40} radius="xl" aria-hidden><Icon size={21} stroke={1.6} /></ThemeIcon>
      <Stack gap={1} style={{ flex: 1, minWidth: 0 }}>
        <Link href={item.to}>{item.title}</Link>
        {item.detail && <Text size="sm" className="quiet" style={{ overflowWrap: "anywhere" }}>{item.detail}</Text>}
        <Text size="xs" className="quiet">{item.what}</Text>
      </Stack>
      <IconChevronRight size={18} aria-hidden />
    </Group>
  );
}

function Job({ job }: { job: JobView }) {
  const { say, language } = useText();
  const words = useText();
  const rounds = job.experiment.rounds;
  const done = rounds > 0 ? (100 * job.round) / rounds : 0;
  return (
    <Stack gap={6} px="lg" py="md" className="link-row" style={{ borderTop: "1px solid var(--line)" }}>
      <Group justify="space-between" gap="xs">
        <Link href={`/experiments/${encodeURIComponent(job.id)}`}>{job.experiment.name || job.id}</Link>
        <State of={job.state} />
      </Group>
      {RUNNING.includes(job.state) && <Progress value={done} aria-label={say("job.progress", { round: job.round, rounds })} />}
      <Text size="xs" className="quiet">
        {[job.experiment.study, say("job.progress", { round: job.round, rounds }), job.author, moment(job.created, language)].join(" · ")}
      </Text>
      {job.cause && <Text size="sm" style={{ overflowWrap: "anywhere" }}>{causeText(job.cause, words)}</Text>}
    </Stack>
  );
}

/** Candidates for release, studies that sites have yet to accept, and people who ask for access. */
function useWaiting(): { items: Item[]; pending: boolean } {
  const { say } = useText();
  const client = useClient();
  const decides = useMay("operator", "researcher");
  const insider = useMay(...INSIDERS);
  const user = useMay(...USERS);
  const candidates = useQuery({ queryKey: ["home", "candidates"], queryFn: () => client.models({ stage: "candidate", limit: FEW }), enabled: user, refetchInterval: REFRESH * 4 });
  const studies = useQuery({ queryKey: ["home", "studies"], queryFn: () => client.studies({ limit: FEW }), enabled: insider, refetchInterval: REFRESH * 4 });
  const requests = useQuery({
    queryKey: ["home", "requests"], enabled: decides, refetchInterval: REFRESH * 4,
    queryFn: () => client.accessRequests({ limit: FEW }),
  });
  const items = [
    ...(requests.data?.items ?? []).filter((one) => one.state === "open").map((one): Item => ({
      key: `request-${one.id}`, to: "/people", title: say("waits.request.who", { person: one.person, role: say(`role.${one.role}`) }), detail: one.reason, what: say("waits.request"), icon: IconUserQuestion,
    })),
    ...(candidates.data?.items ?? []).map((model): Item => ({
      key: model.id, to: `/models/${encodeURIComponent(model.id)}`, title: model.id, detail: model.study, what: say("waits.candidate"), icon: IconCube,
    })),
    ...(studies.data?.items ?? []).flatMap((view): Item[] => {
      const open = Object.entries(view.sites).filter(([, state]) => state === "invited").map(([site]) => site);
      if (view.state === "closed" || (view.state !== "draft" && open.length === 0)) return [];
      const what = view.state === "draft" ? say("waits.draft") : say("waits.sites", { count: open.length });
      return [{ key: view.study.name, to: `/studies/${encodeURIComponent(view.study.name)}`, title: view.study.name, detail: open.slice(0, 8).join(", "), what, icon: IconUsersGroup }];
    }),
  ];
  return { items, pending: (user && candidates.isPending) || (insider && studies.isPending) };
}

function Figure(props: { label: string; value: ReactNode; to: string; icon: typeof IconCube }) {
  const Icon = props.icon;
  return (
    <div className="surface link-row" style={{ padding: "1.1rem 1.3rem" }}>
      <Group justify="space-between" wrap="nowrap" align="flex-start">
        <Stack gap={2}>
          <Text size="sm" className="quiet">{props.label}</Text>
          <Text component="div" size="1.5rem" fw={620} className="figures"><Link href={props.to}>{props.value}</Link></Text>
        </Stack>
        <Icon size={22} stroke={1.5} aria-hidden className="quiet" />
      </Group>
    </div>
  );
}

function Running() {
  const { say } = useText();
  const client = useClient();
  const jobs = useQuery({ queryKey: ["home", "jobs"], queryFn: () => client.jobs({ limit: 8 }), refetchInterval: REFRESH });
  const sites = useQuery({ queryKey: ["home", "sites"], queryFn: () => client.sites({ limit: 500 }), refetchInterval: REFRESH * 2 });
  const enrolled = (sites.data?.items ?? []).filter((site) => site.state === "enrolled");
  const online = enrolled.filter((site) => site.online).length;
  const running = (jobs.data?.items ?? []).filter((job) => RUNNING.includes(job.state)).length;
  return (
    <>
      <SimpleGrid cols={{ base: 1, sm: 2 }}>
        <Figure label={say("home.running")} value={jobs.data ? running : "…"} to="/experiments" icon={IconActivity} />
        <Figure label={say("home.online")} value={sites.data ? say("home.of", { part: online, all: enrolled.length }) : "…"} to="/sites" icon={IconBuildingHospital} />
      </SimpleGrid>
      <Section title={say("home.latest")} flush>
        <Answer query={jobs}>
          {(page) => page.items.length === 0
            ? <Empty title={say("experiments.none")} hint={say("experiments.none.hint")} icon={<IconActivity stroke={1.5} />} />
            : page.items.map((job) => <Job key={job.id} job={job} />)}
        </Answer>
      </Section>
    </>
  );
}

/** What runs and what waits. */
export default function Home() {
  const { say } = useText();
  const person = usePerson();
  const reader = useMay(...READERS);
  const { items, pending } = useWaiting();
  return (
    <Page title={say("home.title", { name: person.name })} lead={say("home.lead", { hub: person.hub })}>
      <Section title={say("home.waiting")} flush>
        {items.length === 0 && !pending && <Empty title={say("home.nothing")} hint={say("home.nothing.hint")} icon={<IconCircleCheck stroke={1.5} />} />}
        {items.map((item) => <Waits key={item.key} item={item} />)}
      </Section>
      {reader && <Running />}
    </Page>
  );
}
