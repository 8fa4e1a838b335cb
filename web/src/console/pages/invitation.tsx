import { Button, Group, PasswordInput, Stack, TextInput } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { useLocation } from "wouter";

import { useText } from "../../shared/text/language";
import { Mark } from "../../shared/ui/page";
import { Failure, Waiting } from "../../shared/ui/states";
import { useClient } from "../api/use";
import { Door } from "./door";

export const SHORTEST_PASSWORD = 12; // characters; the server has the last word

/** Whoever holds the link's secret (behind its #, so that no log sees it) makes an account. */
export function Invitation() {
  const { say } = useText();
  const client = useClient();
  const cache = useQueryClient();
  const [, go] = useLocation();
  const [token] = useState(() => window.location.hash.slice(1));
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const invitation = useQuery({
    queryKey: ["invitation", token],
    queryFn: () => client.checkInvitation({ token }),
    staleTime: Infinity,
  });
  const tooShort = password !== "" && password.length < SHORTEST_PASSWORD;
  const differs = again !== "" && again !== password;

  async function accept(event: SyntheticEvent) {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      cache.setQueryData(["session"], await client.acceptInvitation({ token, name, password }));
      go("/", { replace: true });
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  }

  return (
    <Door title={say("invitation.title")} lead={say("invitation.lead")}>
      {invitation.isPending && <Waiting lines={3} />}
      {invitation.isError && <Failure error={invitation.error} />}
      {invitation.data && (
        <form onSubmit={(event) => void accept(event)}>
          <Stack>
            <Group gap="xs" aria-label={say("invitation.roles")}>
              {invitation.data.roles.map((role) => <Mark key={role} tone="good">{say(`role.${role}`)}</Mark>)}
            </Group>
            <TextInput label={say("field.name")} description={say("field.name.hint")} required autoFocus
              autoComplete="username" value={name} onChange={(event) => setName(event.currentTarget.value)} />
            <PasswordInput label={say("field.password.new")} description={say("field.password.hint", { count: SHORTEST_PASSWORD })}
              required autoComplete="new-password" value={password}
              error={tooShort ? say("field.password.short", { count: SHORTEST_PASSWORD }) : null}
              visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }}
              onChange={(event) => setPassword(event.currentTarget.value)} />
            <PasswordInput label={say("field.password.again")} required autoComplete="new-password" value={again}
              error={differs ? say("field.password.differs") : null}
              visibilityToggleButtonProps={{ "aria-label": say("field.password.show") }}
              onChange={(event) => setAgain(event.currentTarget.value)} />
            {error !== null && <Failure error={error} />}
            <Button type="submit" loading={busy} disabled={tooShort || password !== again}>
              {say("invitation.accept")}
            </Button>
          </Stack>
        </form>
      )}
    </Door>
  );
}
