import { Button, CopyButton, Modal, Stack, TextInput } from "@mantine/core";
import { useState, type ReactNode, type SyntheticEvent } from "react";

import { useText } from "../../shared/text/language";
import { Failure } from "../../shared/ui/states";

/** A button that opens a form; what it made is shown once, then forgotten. */
export function FormDialog<Made>(props: {
  label: string;
  submit: string;
  icon: ReactNode;
  ready: boolean;
  plain?: boolean;
  act: () => Promise<Made>;
  shown?: (made: Made) => ReactNode;
  clear: () => void; // what was typed: nobody is to get the roles of the one before
  children: ReactNode;
}) {
  const { say } = useText();
  const [open, setOpen] = useState(false);
  const [made, setMade] = useState<Made | null>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);

  async function go() {
    setBusy(true);
    setError(null);
    try {
      const answer = await props.act();
      if (props.shown) setMade(answer);
      else close();
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  }
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    if (props.ready && !busy) void go();
  }
  function close() {
    props.clear();
    setOpen(false);
    setMade(null);
    setError(null);
  }
  return (
    <>
      <Button variant={props.plain ? "default" : "filled"} leftSection={props.icon} onClick={() => setOpen(true)}>{props.label}</Button>
      <Modal opened={open} onClose={close} title={props.label} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        {made !== null && props.shown ? props.shown(made) : (
          <form onSubmit={submit}>
            <Stack>
              {props.children}
              {error !== null && <Failure error={error} />}
              <Button type="submit" loading={busy} disabled={!props.ready}>{props.submit}</Button>
            </Stack>
          </form>
        )}
      </Modal>
    </>
  );
}

/** A secret to hand on: selected when touched, copied by a button. */
export function Secret({ label, value }: { label: string; value: string }) {
  const { say } = useText();
  return (
    <Stack gap="xs">
      <TextInput label={label} readOnly value={value} onFocus={(event) => event.currentTarget.select()} />
      <CopyButton value={value}>{({ copied, copy }) => <Button variant="default" onClick={copy}>{say(copied ? "action.copied" : "action.copy")}</Button>}</CopyButton>
    </Stack>
  );
}
