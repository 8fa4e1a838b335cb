import {
  ActionIcon, AppShell, Badge, Box, Burger, Group, NavLink, ScrollArea, Stack, Text, UnstyledButton,
} from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import {
  IconActivity, IconAdjustments, IconBook2, IconDatabase, IconFileCheck, IconHeartbeat, IconHome2,
  IconLogout, IconRoute, IconShieldLock, IconUserOff, IconUsers, IconUsersGroup, IconSettings,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, type ReactNode } from "react";
import { Link, useLocation } from "wouter";

import icon from "../shared/icon.svg";
import { useText } from "../shared/text/language";
import { LanguageMenu, SchemeSwitch } from "../shared/ui/switches";
import type { HomeView, RunsView, Waiting } from "./api/schema";
import { useClient, useMay, useSession } from "./api/use";

interface Place {
  readonly to: string;
  readonly key: string;
  readonly icon: typeof IconHome2;
  readonly waits?: readonly Waiting["kind"][];
}

const WORK: readonly Place[] = [
  { to: "/", key: "home", icon: IconHome2 },
  { to: "/datasets", key: "datasets", icon: IconDatabase, waits: ["dataset"] },
  { to: "/loading-plans", key: "loading", icon: IconRoute },
  { to: "/opt-out", key: "optout", icon: IconUserOff },
  { to: "/studies", key: "studies", icon: IconUsersGroup, waits: ["study"] },
  { to: "/plans", key: "plans", icon: IconFileCheck, waits: ["plan"] },
  { to: "/runs", key: "runs", icon: IconActivity },
];
const OVERSIGHT: readonly Place[] = [
  { to: "/ledger", key: "ledger", icon: IconShieldLock, waits: ["budget", "ledger"] },
  { to: "/audit", key: "audit", icon: IconBook2 },
  { to: "/policy", key: "policy", icon: IconAdjustments },
  { to: "/health", key: "health", icon: IconHeartbeat, waits: ["hub", "health"] },
];

/** Keep home and the runs fresh while the console is open: the server tells, nothing polls. */
function useLiveEvents() {
  const cache = useQueryClient();
  useEffect(() => {
    const source = new EventSource("/api/events");
    source.addEventListener("home", (event) => {
      cache.setQueryData(["home"], JSON.parse(event.data as string) as HomeView);
    });
    source.addEventListener("runs", (event) => {
      cache.setQueryData(["runs"], JSON.parse(event.data as string) as RunsView);
    });
    return () => source.close();
  }, [cache]);
}

function Places(props: { places: readonly Place[]; title: string; waiting: readonly Waiting[]; leave: () => void }) {
  const { say } = useText();
  const [location] = useLocation();
  return (
    <Stack gap={2}>
      <Text size="xs" className="quiet" fw={560} px="sm" pb={4}>{props.title}</Text>
      {props.places.map(({ to, key, icon: Icon, waits }) => {
        const here = to === "/" ? location === "/" : location.startsWith(to);
        const count = props.waiting.filter((item) => waits?.includes(item.kind)).length;
        return (
          <NavLink
            key={to}
            component={Link}
            href={to}
            label={say(`nav.${key}`)}
            active={here}
            {...(here ? { "aria-current": "page" as const } : {})}
            leftSection={<Icon size={19} stroke={1.6} aria-hidden />}
            rightSection={
              count > 0 ? (
                <Badge size="sm" color="amber" variant="filled" circle aria-label={say("nav.waiting", { count })}>
                  {count}
                </Badge>
              ) : null
            }
            onClick={props.leave}
            style={{ borderRadius: "var(--mantine-radius-md)", fontWeight: here ? 600 : 450 }}
          />
        );
      })}
    </Stack>
  );
}

function SiteMark({ home }: { home: HomeView | undefined }) {
  const { say } = useText();
  const session = useSession();
  const good = home?.agent_runs === true && home.connected;
  const state = !home ? "state.loading" : !home.agent_runs ? "hub.agent_down" : good ? "hub.connected" : "hub.away";
  return (
    <Group gap="sm" wrap="nowrap">
      <img src={icon} alt="" width={34} height={34} />
      <Stack gap={0}>
        <Text fw={640} lh={1.2}>{session.site}</Text>
        <Group gap={6}>
          <Box
            aria-hidden w={8} h={8}
            style={{ borderRadius: 8, background: `var(--mantine-color-${!home ? "gray" : good ? "teal" : "brick"}-6)` }}
          />
          <Text size="xs" className="quiet">{say(state)}</Text>
        </Group>
      </Stack>
    </Group>
  );
}

function Person() {
  const { say } = useText();
  const client = useClient();
  const session = useSession();
  const cache = useQueryClient();
  async function leave() {
    await client.signOut();
    cache.clear();
    window.location.assign("/");
  }
  return (
    <Group justify="space-between" wrap="nowrap" gap={4}>
      <UnstyledButton component={Link} href="/settings" p={6} style={{ borderRadius: 8, minWidth: 0, flex: 1 }}>
        <Text size="sm" fw={560} truncate>{session.name}</Text>
        <Text size="xs" className="quiet" truncate>{session.roles.map((role) => say(`role.${role}`)).join(", ")}</Text>
      </UnstyledButton>
      <LanguageMenu />
      <SchemeSwitch />
      <ActionIcon variant="subtle" color="gray" size="lg" aria-label={say("action.sign_out")} onClick={() => void leave()}>
        <IconLogout size={19} stroke={1.6} />
      </ActionIcon>
    </Group>
  );
}

/** The frame around every page: where one is, what waits, who one is. */
export function Shell({ children }: { children: ReactNode }) {
  const { say } = useText();
  const client = useClient();
  const mayAccounts = useMay("administrator", "dpo");
  const [opened, { toggle, close }] = useDisclosure(false);
  const home = useQuery({ queryKey: ["home"], queryFn: client.home });
  useLiveEvents();
  const waiting = home.data?.waiting.filter((item) => item.yours) ?? [];
  const admin: readonly Place[] = [
    ...(mayAccounts ? [{ to: "/accounts", key: "accounts", icon: IconUsers }] : []),
    { to: "/settings", key: "settings", icon: IconSettings },
  ];
  return (
    <AppShell
      header={{ height: { base: 56, md: 0 } }}
      navbar={{ width: 264, breakpoint: "md", collapsed: { mobile: !opened } }}
      padding={{ base: "md", md: "xl" }}
    >
      <a href="#content" className="skip">{say("nav.skip")}</a>
      <AppShell.Header hiddenFrom="md" style={{ background: "var(--surface)" }}>
        <Group h="100%" px="md">
          <Burger opened={opened} onClick={toggle} size="sm" aria-label={say("nav.menu")} />
          <Text fw={640}>Consilia</Text>
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="md" style={{ background: "var(--surface)" }} aria-label={say("nav.label")}>
        <AppShell.Section pb="xl" px={4} visibleFrom="md"><SiteMark home={home.data} /></AppShell.Section>
        <AppShell.Section grow component={ScrollArea}>
          <Stack gap="lg">
            <Places places={WORK} title={say("nav.work")} waiting={waiting} leave={close} />
            <Places places={OVERSIGHT} title={say("nav.oversight")} waiting={waiting} leave={close} />
            <Places places={admin} title={say("nav.admin")} waiting={waiting} leave={close} />
          </Stack>
        </AppShell.Section>
        <AppShell.Section pt="sm" style={{ borderTop: "1px solid var(--line)" }}><Person /></AppShell.Section>
      </AppShell.Navbar>
      <AppShell.Main id="content" tabIndex={-1} style={{ outline: "none" }}>
        <Box maw={1180} mx="auto">{children}</Box>
      </AppShell.Main>
    </AppShell>
  );
}
