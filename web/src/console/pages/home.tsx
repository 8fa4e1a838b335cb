import { Anchor, Group, SimpleGrid, Stack, Text, ThemeIcon } from "@mantine/core";
import {
  IconActivity, IconChevronRight, IconCircleCheck, IconDatabase, IconFileCheck, IconHeartbeat, IconPlugConnected, IconShieldLock, IconUsersGroup,
} from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import type { HomeView, Waiting } from "../api/schema";
import { useClient, useSession } from "../api/use";

const ICONS: Record<Waiting["kind"], typeof IconDatabase> = {
  study: IconUsersGroup,
  plan: IconFileCheck,
  dataset: IconDatabase,
  budget: IconShieldLock,
  ledger: IconShieldLock,
  hub: IconPlugConnected,
  health: IconHeartbeat,
};

/** A server may name the page with or without a leading slash or hash. */
function placeOf(link: string): string {
  return `/${link.replace(/^[/#]+/, "")}`;
}

function Decision({ item }: { item: Waiting }) {
  const { say, knows, language } = useText();
  const Icon = ICONS[item.kind];
  const titled = `waiting.${item.kind}.title`; // of kinds whose title is a sentence of the node's
  return (
    <Group wrap="nowrap" px="lg" py="md" className="link-row" style={{ borderTop: "1px solid var(--line)" }}>
      <ThemeIcon variant="light" color="amber" size={40} radius="xl" aria-hidden><Icon size={21} stroke={1.6} /></ThemeIcon>
      <Stack gap={1} style={{ flex: 1, minWidth: 0 }}>
        <Link href={placeOf(item.link)}>{knows(titled) ? say(titled) : item.title}</Link>
        {item.detail && <Text size="sm" className="quiet" style={{ overflowWrap: "anywhere" }}>{item.detail}</Text>}
        <Text size="xs" className="quiet">
          {say(`waiting.${item.kind}`)}{item.since > 0 && ` · ${moment(item.since, language)}`}
        </Text>
      </Stack>
      <IconChevronRight size={18} aria-hidden />
    </Group>
  );
}

function Figure(props: { label: string; value: string; hint?: string | null; to: string; icon: typeof IconDatabase }) {
  const Icon = props.icon;
  return (
    <Anchor component={Link} href={props.to} underline="never" c="inherit" className="surface link-row" p="lg">
      <Group justify="space-between" wrap="nowrap" align="flex-start">
        <Stack gap={2}>
          <Text size="sm" className="quiet">{props.label}</Text>
          <Text size="1.5rem" fw={620} className="figures">{props.value}</Text>
          {props.hint && <Text size="xs" className="quiet">{props.hint}</Text>}
        </Stack>
        <Icon size={22} stroke={1.5} aria-hidden className="quiet" />
      </Group>
    </Anchor>
  );
}

function Overview({ home }: { home: HomeView }) {
  const { say, language } = useText();
  const yours = home.waiting.filter((item) => item.yours);
  const others = home.waiting.filter((item) => !item.yours);
  return (
    <Stack gap="lg">
      {home.problem && <Failure error={new Error(home.problem)} />}
      <SimpleGrid cols={{ base: 1, sm: 3 }}>
        <Figure label={say("home.decisions")} value={yours.length.toLocaleString(language)} to="/" icon={IconCircleCheck} />
        <Figure label={say("home.tasks")} value={home.tasks.toLocaleString(language)} to="/runs" icon={IconActivity} />
        <Figure
          label={say("home.hub")} hint={home.contact ? say("home.contact", { at: moment(home.contact, language) }) : null}
          value={say(home.connected ? "hub.connected" : "hub.away")} to="/health" icon={IconPlugConnected}
        />
      </SimpleGrid>
      <Section title={say("home.waiting")} hint={say("home.waiting.hint")} flush>
        {yours.length === 0 ? (
          <Empty title={say("home.nothing")} hint={say("home.nothing.hint")} icon={<IconCircleCheck stroke={1.5} />} />
        ) : (
          yours.map((item) => <Decision key={`${item.kind}-${item.subject}`} item={item} />)
        )}
      </Section>
      {others.length > 0 && (
        <Section title={say("home.others")} hint={say("home.others.hint")} flush>
          {others.map((item) => <Decision key={`${item.kind}-${item.subject}`} item={item} />)}
        </Section>
      )}
    </Stack>
  );
}

/** What waits for a person, first. */
export default function Home() {
  const { say } = useText();
  const client = useClient();
  const session = useSession();
  const home = useQuery({ queryKey: ["home"], queryFn: client.home });
  return (
    <Page title={say("home.title", { name: session.name })} lead={say("home.lead", { site: session.site })}>
      <Answer query={home}>{(data) => <Overview home={data} />}</Answer>
    </Page>
  );
}
