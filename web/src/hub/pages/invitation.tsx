import { Button, PasswordInput, Stack, TextInput } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { useLocation } from "wouter";

import { useText } from "../../shared/text/language";
import { Door } from "../../shared/ui/door";
import { Failure } from "../../shared/ui/states";
import { useClient, useSession } from "../api/use";

/** The code stands behind the #: browsers send that part of an address to no server. */
function codeInAddress(): string {
  return window.location.hash.slice(1);
}

/** Make an account with the code of an invitation, and be signed in by it. */
export function Invitation() {
  const { say } = useText();
  const client = useClient();
  const session = useSession();
  const cache = useQueryClient();
  const [, go] = useLocation();
  const [code, setCode] = useState(codeInAddress);
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const differs = again !== "" && again !== password;

  async function accept() {
    setBusy(true);
    setError(null);
    try {
      const granted = await client.acceptInvitation({ code: code.trim(), name: name.trim(), password, cookie: true });
      session.take(granted.access_token);
      await cache.resetQueries({ queryKey: ["person"] });
      go("/", { replace: true });
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  }
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    void accept();
  }
  return (
    <Door title={say("invitation.title")} lead={say("invitation.lead")}>
      <form onSubmit={submit}>
        <Stack>
          {codeInAddress() === "" && <TextInput label={say("invitation.code")} required value={code} onChange={(event) => setCode(event.currentTarget.value)} autoComplete="off" />}
          <TextInput label={say("field.name")} required autoFocus autoComplete="username" value={name} onChange={(event) => setName(event.currentTarget.value)} />
          <PasswordInput label={say("field.password.new")} description={say("password.hint")} required autoComplete="new-password" value={password}
            onChange={(event) => setPassword(event.currentTarget.value)} visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
          <PasswordInput label={say("field.password.again")} required autoComplete="new-password" value={again} error={differs ? say("password.differs") : null}
            onChange={(event) => setAgain(event.currentTarget.value)} visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }} />
          {error !== null && <Failure error={error} />}
          <Button type="submit" fullWidth loading={busy} disabled={differs || again === ""}>{say("invitation.make")}</Button>
        </Stack>
      </form>
    </Door>
  );
}
