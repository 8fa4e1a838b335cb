import { ActionIcon, AppShell, Box, Burger, Group, NavLink, ScrollArea, Stack, Text, UnstyledButton } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import {
  IconActivity, IconBook2, IconBuildingHospital, IconCube, IconHome2, IconLogout, IconSettings, IconShieldLock,
  IconUsers, IconUsersGroup,
} from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Link, useLocation } from "wouter";

import icon from "../shared/icon.svg";
import { useText } from "../shared/text/language";
import { LanguageMenu, SchemeSwitch } from "../shared/ui/switches";
import type { Role } from "./api/people";
import { useClient, useMay, usePerson, useSession } from "./api/use";

interface Place {
  readonly to: string;
  readonly key: string;
  readonly icon: typeof IconHome2;
}

const HOME: Place = { to: "/", key: "home", icon: IconHome2 };
const STUDIES: Place = { to: "/studies", key: "studies", icon: IconUsersGroup };
const EXPERIMENTS: Place = { to: "/experiments", key: "experiments", icon: IconActivity };
const MODELS: Place = { to: "/models", key: "models", icon: IconCube };
const SITES: Place = { to: "/sites", key: "sites", icon: IconBuildingHospital };
const BUDGETS: Place = { to: "/budgets", key: "budgets", icon: IconShieldLock };
const AUDIT: Place = { to: "/audit", key: "audit", icon: IconBook2 };
const PEOPLE: Place = { to: "/people", key: "people", icon: IconUsers };
const SETTINGS: Place = { to: "/settings", key: "settings", icon: IconSettings };
/** Who sees studies and sites, and who sees what was trained: see the hub's table of rights. */
export const INSIDERS: readonly Role[] = ["operator", "researcher", "reviewer", "data-manager", "auditor"];
export const READERS: readonly Role[] = ["operator", "researcher", "reviewer", "auditor"];
export const USERS: readonly Role[] = [...READERS, "downstream"];

function Places(props: { places: readonly Place[]; title: string; leave: () => void }) {
  const { say } = useText();
  const [location] = useLocation();
  return (
    <Stack gap={2}>
      <Text size="xs" className="quiet" fw={560} px="sm" pb={4}>{props.title}</Text>
      {props.places.map(({ to, key, icon: Icon }) => {
        const here = to === "/" ? location === "/" : location.startsWith(to);
        return (
          <NavLink
            key={to}
            component={Link}
            href={to}
            label={say(`nav.${key}`)}
            active={here}
            {...(here ? { "aria-current": "page" as const } : {})}
            leftSection={<Icon size={19} stroke={1.6} aria-hidden />}
            onClick={props.leave}
            style={{ borderRadius: "var(--mantine-radius-md)", fontWeight: here ? 600 : 450 }}
          />
        );
      })}
    </Stack>
  );
}

export function RoleNames({ roles }: { roles: readonly string[] }) {
  const { say, knows } = useText();
  return <>{roles.map((role) => (knows(`role.${role}`) ? say(`role.${role}`) : role)).join(", ")}</>;
}

function Person() {
  const { say } = useText();
  const client = useClient();
  const session = useSession();
  const person = usePerson();
  const cache = useQueryClient();
  async function leave() {
    if (person.account) await client.signOut().catch(() => null); // the cookie's end is the hub's to say
    session.end();
    cache.clear();
    window.location.assign("/");
  }
  return (
    <Group justify="space-between" wrap="nowrap" gap={4}>
      <UnstyledButton component={Link} href="/settings" p={6} style={{ borderRadius: 8, minWidth: 0, flex: 1 }}>
        <Text size="sm" fw={560} truncate>{person.name}</Text>
        <Text size="xs" className="quiet" truncate><RoleNames roles={person.roles} /></Text>
      </UnstyledButton>
      <LanguageMenu />
      <SchemeSwitch />
      <ActionIcon variant="subtle" color="gray" size="lg" aria-label={say("action.sign_out")} onClick={() => void leave()}>
        <IconLogout size={19} stroke={1.6} />
      </ActionIcon>
    </Group>
  );
}

function HubMark() {
  const { say } = useText();
  const person = usePerson();
  return (
    <Group gap="sm" wrap="nowrap">
      <img src={icon} alt="" width={34} height={34} />
      <Stack gap={0} miw={0}>
        <Text fw={640} lh={1.2} truncate>{person.hub}</Text>
        <Text size="xs" className="quiet">{say("nav.version", { version: person.version })}</Text>
      </Stack>
    </Group>
  );
}

/** The frame around every page: where one is, and who one is. */
export function Shell({ children }: { children: ReactNode }) {
  const { say } = useText();
  const insider = useMay(...INSIDERS);
  const seesTrail = useMay("operator", "auditor");
  const reader = useMay(...READERS);
  const user = useMay(...USERS);
  const [opened, { toggle, close }] = useDisclosure(false);
  const work = [HOME, ...(insider ? [STUDIES] : []), ...(reader ? [EXPERIMENTS] : []), ...(user ? [MODELS] : [])];
  const oversight = insider ? [SITES, ...(reader ? [BUDGETS] : []), ...(seesTrail ? [AUDIT] : [])] : [];
    return (
    <AppShell
      header={{ height: { base: 56, md: 0 } }}
      navbar={{ width: 256, breakpoint: "md", collapsed: { mobile: !opened } }}
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
        <AppShell.Section pb="xl" px={4} visibleFrom="md"><HubMark /></AppShell.Section>
        <AppShell.Section grow component={ScrollArea}>
          <Stack gap="lg">
            <Places places={work} title={say("nav.work")} leave={close} />
            {oversight.length > 0 && <Places places={oversight} title={say("nav.oversight")} leave={close} />}
            <Places places={[PEOPLE, SETTINGS]} title={say("nav.admin")} leave={close} />
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
