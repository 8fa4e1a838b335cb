import { Button, Modal, NativeSelect, PasswordInput, SegmentedControl, Stack, Text, TextInput, useMantineColorScheme } from "@mantine/core";
import { useState } from "react";

import { useText } from "../../shared/text/language";
import { LANGUAGES } from "../../shared/text/languages";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import { useChange, useClient, usePerson, useSession } from "../api/use";
import { RoleNames } from "../shell";
import { SecondFactorForm } from "./second-factor";

function Password() {
  const { say } = useText();
  const client = useClient();
  const [old, setOld] = useState("");
  const [fresh, setFresh] = useState("");
  const [again, setAgain] = useState("");
  const session = useSession();
  const change = useChange(async () => session.take((await client.changePassword({ old, new: fresh, cookie: true })).access_token));
  const differs = again !== "" && again !== fresh;
  const toggle = { "aria-label": say("field.password.show") };
  function done() {
    setOld("");
    setFresh("");
    setAgain("");
  }
  return (
    <Section title={say("settings.password")}>
      <form onSubmit={(event) => { event.preventDefault(); change.mutate(undefined, { onSuccess: done }); }}>
        <Stack maw={420}>
          <PasswordInput label={say("field.password.old")} required autoComplete="current-password" value={old} onChange={(event) => setOld(event.currentTarget.value)} visibilityToggleButtonProps={toggle} />
          <PasswordInput label={say("field.password.new")} description={say("password.hint")} required autoComplete="new-password" value={fresh} onChange={(event) => setFresh(event.currentTarget.value)} visibilityToggleButtonProps={toggle} />
          <PasswordInput label={say("field.password.again")} required autoComplete="new-password" value={again} error={differs ? say("password.differs") : null} onChange={(event) => setAgain(event.currentTarget.value)} visibilityToggleButtonProps={toggle} />
          {change.isError && <Failure error={change.error} />}
          {change.isSuccess && <Text role="status" size="sm">{say("settings.password.done")}</Text>}
          <Button type="submit" loading={change.isPending} disabled={differs || again === ""}>{say("settings.password.change")}</Button>
        </Stack>
      </form>
    </Section>
  );
}

function SecondFactor() {
  const { say } = useText();
  const client = useClient();
  const person = usePerson();
  const [open, setOpen] = useState(false);
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const remove = useChange(() => client.removeSecondFactor({ password, code }));
  return (
    <Section title={say("settings.second")} hint={say("settings.second.hint")}>
      {person.secondFactor
        ? <Confirm danger label={say("settings.second.remove")} title={say("settings.second.remove")} consequence={say("settings.second.consequence")} act={() => remove.mutateAsync(undefined)}>
            <PasswordInput label={say("field.password.old")} required autoComplete="current-password" value={password} onChange={(event) => setPassword(event.currentTarget.value)} visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
            <TextInput label={say("sign_in.code")} required inputMode="numeric" autoComplete="one-time-code" value={code} onChange={(event) => setCode(event.currentTarget.value)} />
          </Confirm>
        : <Button variant="default" onClick={() => setOpen(true)}>{say("settings.second.add")}</Button>}
      <Modal opened={open} onClose={() => setOpen(false)} title={say("settings.second")} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <SecondFactorForm done={() => setOpen(false)} />
      </Modal>
    </Section>
  );
}

function Look() {
  const { say, language, choose } = useText();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <Section title={say("settings.look")}>
      <Stack maw={420}>
        <NativeSelect label={say("settings.language")} value={LANGUAGES.find((known) => language.startsWith(known)) ?? "en"} onChange={(event) => choose(event.currentTarget.value)}
          data={LANGUAGES.map((known) => ({ value: known, label: say(`language.${known}`) }))} />
        <Stack gap={4}>
          <Text size="sm" fw={500} id="scheme">{say("settings.scheme")}</Text>
          <SegmentedControl aria-labelledby="scheme" value={colorScheme} onChange={(value) => setColorScheme(value === "dark" ? "dark" : value === "light" ? "light" : "auto")}
            data={["auto", "light", "dark"].map((value) => ({ value, label: say(`scheme.${value}`) }))} />
        </Stack>
      </Stack>
    </Section>
  );
}

export default function Settings() {
  const { say } = useText();
  const person = usePerson();
  return (
    <Page title={say("nav.settings")}>
      <Section title={say("settings.you")}>
        <Facts items={[
          [say("field.name"), person.name],
          [say("field.roles"), <RoleNames key="r" roles={person.roles} />],
          ...person.studies.map((part) => [part.study, <RoleNames key={part.study} roles={part.roles} />] as const),
          [say("field.site"), person.site],
          [say("settings.way"), say(`way.${["oidc", "ldap", "password"].includes(person.provider) ? person.provider : "key"}`)],
          [say("settings.hub"), `${person.hub} ${person.version}`],
        ]} />
      </Section>
      <Look />
      {person.account && person.provider === "password" && <><Password /><SecondFactor /></>}
    </Page>
  );
}
