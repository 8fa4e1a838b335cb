import { Alert, Button, Divider, PasswordInput, PinInput, SegmentedControl, Stack, Text, TextInput } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState, type SyntheticEvent } from "react";

import { useText } from "../../shared/text/language";
import { Failure } from "../../shared/ui/states";
import type { ProvidersView, SignIn as Said } from "../api/schema";
import { useClient } from "../api/use";
import { Door } from "./door";

type Way = NonNullable<Said["provider"]>;

/** What the hospital's sign-in page has led to: "code", why nobody was let in, or "" for neither. */
function cameBackWith(): string {
  return new URLSearchParams(window.location.search).get("sign_in") ?? "";
}

function Turned({ reason, contact }: { reason: string; contact: string }) {
  const { say, knows } = useText();
  const key = `turned.${reason}`;
  return (
    <Alert role="alert" color="brick" variant="light" title={say("sign_in.turned")}>
      <Stack gap="xs">
        <Text size="sm">{knows(key) ? say(key) : say("turned.failed")}</Text>
        <Text size="sm">{contact ? say("sign_in.ask", { contact }) : say("sign_in.ask.plain")}</Text>
      </Stack>
    </Alert>
  );
}

function Code({ value, change }: { value: string; change: (code: string) => void }) {
  const { say } = useText();
  return (
    <Stack gap={6}>
      <Text size="sm" fw={500}>{say("sign_in.code")}</Text>
      <PinInput length={6} type="number" oneTimeCode autoFocus value={value} onChange={change}
        aria-label={say("sign_in.code")} getInputProps={(index) => ({ "aria-label": say("field.digit", { n: index + 1 }) })} />
    </Stack>
  );
}

/** The hospital's own sign-in page, as a link: nothing is typed here. */
function Page({ label, start }: { label: string; start: string }) {
  const { say } = useText();
  const wanted = encodeURIComponent(window.location.pathname);
  return (
    <>
      <Button component="a" href={`${start}?wanted=${wanted}`} fullWidth>{say("sign_in.with", { label })}</Button>
      <Divider label={say("sign_in.or")} />
    </>
  );
}

/** Name and password, then the second factor's code where the account has one. */
function Form({ ways, ticket }: { ways: ProvidersView | undefined; ticket: boolean }) {
  const { say } = useText();
  const client = useClient();
  const cache = useQueryClient();
  const ldap = ways?.providers.find((one) => one.kind === "ldap");
  const page = ways?.providers.find((one) => one.kind === "oidc");
  const [chosen, setChosen] = useState<Way | null>(null);
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const [needsCode, setNeedsCode] = useState(ticket);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const provider: Way = chosen ?? (ldap ? "ldap" : "password");

  async function go(event: SyntheticEvent) {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const session = ticket ? await client.secondCode({ code }) : await client.signIn({ name, password, code, provider });
      if (session.signed_in) cache.setQueryData(["session"], session);
      else setNeedsCode(session.needs_code);
    } catch (failure) {
      setError(failure);
      setCode("");
    } finally {
      setBusy(false);
    }
  }

  return (
    <form onSubmit={(event) => void go(event)}>
      <Stack>
        {!needsCode && (
          <>
            {page && <Page label={page.label} start={page.start} />}
            {ldap && (
              <SegmentedControl aria-label={say("sign_in.account")} value={provider} onChange={(value) => setChosen(value)}
                data={[{ value: "ldap", label: ldap.label }, { value: "password", label: say("sign_in.local") }]} />
            )}
            <TextInput label={say("field.name")} autoComplete="username" required autoFocus
              value={name} onChange={(event) => setName(event.currentTarget.value)} />
            <PasswordInput label={say("field.password")} autoComplete="current-password" required
              value={password} onChange={(event) => setPassword(event.currentTarget.value)}
              visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
          </>
        )}
        {needsCode && <Code value={code} change={setCode} />}
        {error !== null && <Failure error={error} />}
        <Button type="submit" fullWidth loading={busy} disabled={needsCode && code.length < 6} variant={page && !needsCode ? "light" : "filled"}>
          {say("action.sign_in")}
        </Button>
        {ticket && <Button component="a" href="/" variant="subtle">{say("sign_in.again")}</Button>}
        <Text size="xs" className="quiet">{say("sign_in.help")}</Text>
      </Stack>
    </form>
  );
}

/** The door: the hospital's own directory where it is configured, and the accounts made here. */
export function SignIn({ site, ended = false }: { site: string; ended?: boolean }) {
  const { say } = useText();
  const client = useClient();
  const ways = useQuery({ queryKey: ["providers"], queryFn: client.providers, staleTime: Infinity });
  const [back] = useState(cameBackWith);
  useEffect(() => {
    if (back) window.history.replaceState(null, "", window.location.pathname); // a reload asks anew
  }, [back]);
  return (
    <Door title={site ? say("sign_in.title", { site }) : say("sign_in.title.plain")} lead={say(ended ? "sign_in.ended" : "sign_in.lead")}>
      {back !== "" && back !== "code" && <Turned reason={back} contact={ways.data?.contact ?? ""} />}
      {!ways.isPending && <Form ways={ways.data} ticket={back === "code"} />}
    </Door>
  );
}
