import { Box, Center, Group, Stack, Text, Title } from "@mantine/core";
import type { ReactNode } from "react";

import icon from "../icon.svg";
import { useText } from "../text/language";
import { LanguageMenu, SchemeSwitch } from "./switches";

/** The page before one is in: a mark, a title, one form. */
export function Door(props: { title: string; lead?: string; children: ReactNode }) {
  const { say } = useText();
  return (
    <Center component="main" mih="100vh" p="md">
      <Stack w="100%" maw={420} gap="lg">
        <Group justify="space-between">
          <Group gap="sm">
            <img src={icon} alt="" width={38} height={38} />
            <Stack gap={0}>
              <Text fw={660} size="lg" lh={1.2}>Consilia</Text>
              <Text size="xs" className="quiet">{say("door.motto")}</Text>
            </Stack>
          </Group>
          <Group gap={0}><LanguageMenu /><SchemeSwitch /></Group>
        </Group>
        <Box className="surface" p="xl">
          <Stack gap="lg">
            <Stack gap={4}>
              <Title order={1} size="1.35rem">{props.title}</Title>
              {props.lead && <Text size="sm" className="quiet">{props.lead}</Text>}
            </Stack>
            {props.children}
          </Stack>
        </Box>
      </Stack>
    </Center>
  );
}
