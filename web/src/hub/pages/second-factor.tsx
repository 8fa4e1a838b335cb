import { Box, Button, Group, PinInput, Stack, Text } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";

import { useText } from "../../shared/text/language";
import { Door } from "../../shared/ui/door";
import { QrCode } from "../../shared/ui/qr";
import { Failure, Waiting } from "../../shared/ui/states";
import { useClient } from "../api/use";

/** Show a new secret and take the first code of the authenticator app. */
export function SecondFactorForm({ done }: { done?: () => void }) {
  const { say } = useText();
  const client = useClient();
  const cache = useQueryClient();
  const [code, setCode] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const secret = useQuery({ queryKey: ["second-factor"], queryFn: client.secondFactor, staleTime: Infinity, gcTime: 0 });

  async function confirm(event: SyntheticEvent) {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await client.confirmSecondFactor(code);
      await cache.invalidateQueries({ queryKey: ["person"] });
      done?.();
    } catch (failure) {
      setError(failure);
      setCode("");
    } finally {
      setBusy(false);
    }
  }

  if (secret.isPending) return <Waiting lines={3} />;
  if (secret.isError) return <Failure error={secret.error} retry={() => void secret.refetch()} />;
  return (
    <form onSubmit={(event) => void confirm(event)}>
      <Stack>
        <Text size="sm">{say("second.scan")}</Text>
        <Group justify="center"><QrCode text={secret.data.uri} label={say("second.qr")} /></Group>
        <Box>
          <Text size="xs" className="quiet">{say("second.secret")}</Text>
          <Text className="mono" style={{ overflowWrap: "anywhere" }}>{secret.data.secret}</Text>
        </Box>
        <Text size="sm">{say("second.confirm")}</Text>
        <PinInput length={6} type="number" oneTimeCode value={code} onChange={setCode}
          getInputProps={(index) => ({ "aria-label": say("field.digit", { n: index + 1 }) })} />
        {error !== null && <Failure error={error} />}
        <Button type="submit" loading={busy} disabled={code.length < 6}>{say("second.switch_on")}</Button>
      </Stack>
    </form>
  );
}

/** Shown instead of the dashboard where the hub asks the account for a second factor. */
export function SetUpSecondFactor() {
  const { say } = useText();
  return (
    <Door title={say("second.title")} lead={say("second.lead")}>
      <SecondFactorForm />
    </Door>
  );
}
