import { Button, PasswordInput, PinInput, Stack, Text, TextInput } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";

import { useText } from "../../shared/text/language";
import { Failure } from "../../shared/ui/states";
import { useClient } from "../api/use";
import { Door } from "./door";

/** Name and password, then the second factor's code where the account has one. */
export function SignIn({ site }: { site: string }) {
  const { say } = useText();
  const client = useClient();
  const cache = useQueryClient();
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const [needsCode, setNeedsCode] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);

  async function go(event: SyntheticEvent) {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const session = await client.signIn({ name, password, code });
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
    <Door title={site ? say("sign_in.title", { site }) : say("sign_in.title.plain")} lead={say("sign_in.lead")}>
      <form onSubmit={(event) => void go(event)}>
        <Stack>
          {!needsCode && (
            <>
              <TextInput label={say("field.name")} autoComplete="username" required autoFocus
                value={name} onChange={(event) => setName(event.currentTarget.value)} />
              <PasswordInput label={say("field.password")} autoComplete="current-password" required
                value={password} onChange={(event) => setPassword(event.currentTarget.value)}
                visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
            </>
          )}
          {needsCode && (
            <Stack gap={6}>
              <Text size="sm" fw={500} id="code-label">{say("sign_in.code")}</Text>
              <PinInput length={6} type="number" oneTimeCode autoFocus value={code} onChange={setCode}
                aria-label={say("sign_in.code")} getInputProps={(index) => ({ "aria-label": say("field.digit", { n: index + 1 }) })} />
            </Stack>
          )}
          {error !== null && <Failure error={error} />}
          <Button type="submit" fullWidth loading={busy} disabled={needsCode && code.length < 6}>
            {say("action.sign_in")}
          </Button>
          <Text size="xs" className="quiet">{say("sign_in.help")}</Text>
        </Stack>
      </form>
    </Door>
  );
}
