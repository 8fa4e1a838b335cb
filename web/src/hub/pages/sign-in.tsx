import { Alert, Button, Divider, NativeSelect, PasswordInput, PinInput, SegmentedControl, Stack, Text, TextInput } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { useSearchParams } from "wouter";

import { Problem } from "../../shared/api/request";
import { useText } from "../../shared/text/language";
import { Door } from "../../shared/ui/door";
import { Failure } from "../../shared/ui/states";
import type { ProviderView } from "../api/schema";
import { useClient, useSession } from "../api/use";

const CODE_DUE = "second-factor-needed"; // how the type of the problem ends

/** Carry out a sign-in, which says whether the person is in; what went wrong stays to be shown. */
function useEntering() {
  const cache = useQueryClient();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  async function enter(work: () => Promise<boolean>) {
    setBusy(true);
    setError(null);
    try {
      if (await work()) await cache.resetQueries({ queryKey: ["person"] });
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  }
  return { busy, error, enter };
}

function Code({ code, change }: { code: string; change: (code: string) => void }) {
  const { say } = useText();
  return (
    <Stack gap={6}>
      <Text size="sm" fw={500}>{say("sign_in.code")}</Text>
      <PinInput length={6} type="number" oneTimeCode autoFocus value={code} onChange={change}
        aria-label={say("sign_in.code")} getInputProps={(index) => ({ "aria-label": say("field.digit", { n: index + 1 }) })} />
    </Stack>
  );
}

/** Where to ask: accounts of this hub, or a directory that takes passwords. */
function WithPassword({ providers }: { providers: readonly ProviderView[] }) {
  const { say } = useText();
  const client = useClient();
  const session = useSession();
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const [needsCode, setNeedsCode] = useState(false);
  const [provider, setProvider] = useState("");
  const { busy, error, enter } = useEntering();
  const directories = providers.filter((one) => one.kind === "ldap");
  async function signIn() {
    try {
      const granted = await client.signIn({ name, password, cookie: true, provider, ...(needsCode ? { code } : {}) });
      session.take(granted.access_token);
      return true;
    } catch (failure) {
      setCode("");
      if (failure instanceof Problem && failure.type.endsWith(CODE_DUE) && !needsCode) {
        setNeedsCode(true); // asking anew who is there would take this form away
        return false;
      }
      throw failure;
    }
  }
  function go(event: SyntheticEvent) {
    event.preventDefault();
    void enter(signIn);
  }
  return (
    <form onSubmit={go}>
      <Stack>
        {needsCode ? (
          <Code code={code} change={setCode} />
        ) : (
          <>
            {directories.length > 0 && (
              <NativeSelect label={say("sign_in.where")} value={provider} onChange={(event) => setProvider(event.currentTarget.value)}
                data={[{ value: "", label: say("sign_in.where.here") }, ...directories.map((one) => ({ value: one.name, label: one.label || one.name }))]} />
            )}
            <TextInput label={say("field.name")} autoComplete="username" required autoFocus value={name} onChange={(event) => setName(event.currentTarget.value)} />
            <PasswordInput label={say("field.password")} autoComplete="current-password" required value={password} onChange={(event) => setPassword(event.currentTarget.value)}
              visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
          </>
        )}
        {error !== null && <Failure error={error} />}
        <Button type="submit" fullWidth loading={busy} disabled={needsCode && code.length < 6}>{say("action.sign_in")}</Button>
      </Stack>
    </form>
  );
}

/** Who holds an API token may use it here, too: it is kept in this window's memory only. */
function WithToken() {
  const { say } = useText();
  const client = useClient();
  const session = useSession();
  const [token, setToken] = useState("");
  const { busy, error, enter } = useEntering();
  async function signIn() {
    session.end();
    session.take(token.trim());
    try {
      await client.whoami();
      return true;
    } catch (failure) {
      session.end();
      throw failure;
    }
  }
  function go(event: SyntheticEvent) {
    event.preventDefault();
    void enter(signIn);
  }
  return (
    <form onSubmit={go}>
      <Stack>
        <PasswordInput label={say("sign_in.token")} description={say("sign_in.token.hint")} autoComplete="off" required value={token}
          onChange={(event) => setToken(event.currentTarget.value)} visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
        {error !== null && <Failure error={error} />}
        <Button type="submit" fullWidth loading={busy}>{say("action.sign_in")}</Button>
      </Stack>
    </form>
  );
}

/** Only a path of this hub: what a provider's record names is never an address elsewhere. */
function ownPath(start: string | null): string | null {
  return start !== null && /^\/[^/\\]/.test(start) ? start : null;
}

/** The door: a password, an API token, or the organisation's own sign-in. */
export function SignIn() {
  const { say, knows } = useText();
  const client = useClient();
  const [search] = useSearchParams();
  const [way, setWay] = useState("password");
  const providers = useQuery({ queryKey: ["providers"], queryFn: client.providers, retry: false });
  const turned = search.get("turned") ?? ""; // why the organisation's sign-in sent the person back
  const others = (providers.data ?? []).filter((provider) => ownPath(provider.start) !== null);
  return (
    <Door title={say("sign_in.title")} lead={say("sign_in.lead")}>
      <Stack>
        {turned !== "" && <Alert color="brick" role="alert">{say(knows(`turned.${turned}`) ? `turned.${turned}` : "turned.failed")}</Alert>}
        {others.map((provider) => (
          <Button key={provider.name} component="a" href={ownPath(provider.start) ?? "/"} variant="default" fullWidth>
            {say("sign_in.with", { provider: provider.label || provider.name })}
          </Button>
        ))}
        {others.length > 0 && <Divider label={say("sign_in.or")} />}
        <SegmentedControl fullWidth value={way} onChange={setWay} aria-label={say("sign_in.way")}
          data={[{ value: "password", label: say("sign_in.way.password") }, { value: "token", label: say("sign_in.way.token") }]} />
        {way === "password" ? <WithPassword providers={providers.data ?? []} /> : <WithToken />}
        <Text size="xs" className="quiet">{say("sign_in.help")}</Text>
      </Stack>
    </Door>
  );
}
