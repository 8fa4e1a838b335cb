import { Button, NativeSelect, PasswordInput, SegmentedControl, SimpleGrid, Stack, Text, useMantineColorScheme } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";

import { useText } from "../../shared/text/language";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import { useClient, useSession } from "../api/use";
import { LANGUAGES } from "../../shared/text/languages";
import { SecondFactorForm } from "./second-factor";

function Password() {
  const { say } = useText();
  const client = useClient();
  const cache = useQueryClient();
  const [old, setOld] = useState("");
  const [fresh, setFresh] = useState("");
  const save = useMutation({ mutationFn: client.changePassword });
  const toggle = { "aria-label": say("field.password.show") };
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    save.mutate({ password: old, new_password: fresh }, {
      onSuccess: (session) => {
        cache.setQueryData(["session"], session);
        setOld("");
        setFresh("");
        notifications.show({ message: say("settings.password.changed") });
      },
    });
  }
  return (
    <Section title={say("settings.password")}>
      <form onSubmit={submit}>
        <Stack>
          <PasswordInput label={say("field.password.current")} autoComplete="current-password" required value={old} visibilityToggleButtonProps={toggle} onChange={(event) => setOld(event.currentTarget.value)} />
          <PasswordInput label={say("field.password.new")} autoComplete="new-password" required value={fresh} visibilityToggleButtonProps={toggle} onChange={(event) => setFresh(event.currentTarget.value)} />
          {save.isError && <Failure error={save.error} />}
          <Button type="submit" loading={save.isPending}>{say("settings.password.change")}</Button>
        </Stack>
      </form>
    </Section>
  );
}

function SecondFactor() {
  const { say } = useText();
  const client = useClient();
  const cache = useQueryClient();
  const session = useSession();
  const [adding, setAdding] = useState(false);
  const [code, setCode] = useState("");
  const [password, setPassword] = useState("");
  const remove = useMutation({ mutationFn: client.removeSecondFactor });
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    remove.mutate({ code, password }, { onSuccess: (changed) => cache.setQueryData(["session"], changed) });
  }
  const byPassword = session.provider === "password";
  if (!session.second_factor && session.provider === "oidc" && !session.must_add_second_factor) {
    return <Section title={say("second.title")} hint={say("second.elsewhere")}>{null}</Section>;
  }
  if (!session.second_factor) {
    return (
      <Section title={say("second.title")} hint={say("second.lead")}>
        {adding ? <SecondFactorForm done={() => setAdding(false)} /> : <Button onClick={() => setAdding(true)}>{say("second.add")}</Button>}
      </Section>
    );
  }
  return (
    <Section title={say("second.title")} hint={say(byPassword ? "second.is_on" : "second.is_on.code")}>
      <form onSubmit={submit}>
        <Stack>
          {byPassword && (
            <PasswordInput label={say("field.password")} autoComplete="current-password" required value={password}
              visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} onChange={(event) => setPassword(event.currentTarget.value)} />
          )}
          <PasswordInput label={say("sign_in.code")} inputMode="numeric" autoComplete="one-time-code" required value={code}
            visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} onChange={(event) => setCode(event.currentTarget.value)} />
          {remove.isError && <Failure error={remove.error} />}
          <Button type="submit" variant="light" color="brick" loading={remove.isPending}>{say("second.remove")}</Button>
        </Stack>
      </form>
    </Section>
  );
}

function Looks() {
  const { say, language, choose } = useText();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <Section title={say("settings.looks")}>
      <Stack>
        <NativeSelect label={say("settings.language")} value={language.slice(0, 2)} onChange={(event) => choose(event.currentTarget.value)}
          data={LANGUAGES.map((known) => ({ value: known, label: say(`language.${known}`) }))} />
        <Stack gap={4}>
          <Text size="sm" fw={500}>{say("settings.scheme")}</Text>
          <SegmentedControl aria-label={say("settings.scheme")} value={colorScheme} onChange={(value) => setColorScheme(value)}
            data={[{ value: "auto", label: say("settings.auto") }, { value: "light", label: say("settings.light") }, { value: "dark", label: say("settings.dark") }]} />
        </Stack>
      </Stack>
    </Section>
  );
}

export default function Settings() {
  const { say } = useText();
  const session = useSession();
  return (
    <Page title={say("nav.settings")} lead={say("settings.lead")}>
      <SimpleGrid cols={{ base: 1, md: 2 }}>
        <Section title={say("settings.you")}>
          <Facts items={[
            [say("field.name"), session.name],
            [say("account.roles"), session.roles.map((role) => say(`role.${role}`)).join(", ")],
            [say("field.site"), session.site],
            [say("account.by"), say(`provider.${session.provider}`)],
            [say("field.version"), session.version],
          ]} />
        </Section>
        <Looks />
        {session.provider === "password" ? <Password /> : <Section title={say("settings.password")} hint={say("settings.password.elsewhere")}>{null}</Section>}
        <SecondFactor />
      </SimpleGrid>
    </Page>
  );
}
