import { Button, Group, Modal, Stack, Text, TextInput, Textarea } from "@mantine/core";
import { useState, type ReactNode } from "react";

import { useText } from "../text/language";
import { Failure } from "./states";

/** A button that asks before it acts: what will happen, and where wanted a reason or a typed name. */
export function Confirm(props: {
  label: string;
  title: string;
  consequence: string;
  act: (reason: string) => Promise<unknown>;
  opened?: () => void; // when the person begins to decide
  reason?: "required" | "optional";
  typed?: string;
  danger?: boolean;
  filled?: boolean;
  disabled?: boolean;
  icon?: ReactNode;
  children?: ReactNode;
}) {
  const { say } = useText();
  const [open, setOpen] = useState(false);
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const color = props.danger ? "brick" : "teal";
  const ready =
    (props.reason !== "required" || reason.trim() !== "") && (!props.typed || typed === props.typed);

  async function go() {
    setBusy(true);
    setError(null);
    try {
      await props.act(reason.trim());
      setOpen(false);
      setReason("");
      setTyped("");
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  }

  return (
    <>
      <Button
        color={color}
        variant={props.filled ? "filled" : props.danger ? "light" : "default"}
        disabled={props.disabled ?? false}
        leftSection={props.icon}
        onClick={() => {
          props.opened?.();
          setError(null);
          setOpen(true);
        }}
      >
        {props.label}
      </Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={props.title} centered
        closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (ready && !busy) void go();
          }}
        >
          <Stack>
            <Text size="sm">{props.consequence}</Text>
            {props.children}
            {props.reason && (
              <Textarea
                label={say(props.reason === "required" ? "field.reason" : "field.reason.optional")}
                value={reason}
                onChange={(event) => setReason(event.currentTarget.value)}
                required={props.reason === "required"}
                autosize
                minRows={2}
                data-autofocus
              />
            )}
            {props.typed && (
              <TextInput
                label={say("confirm.type", { name: props.typed })}
                value={typed}
                onChange={(event) => setTyped(event.currentTarget.value)}
                autoComplete="off"
              />
            )}
            {error !== null && <Failure error={error} />}
            <Group justify="flex-end">
              <Button variant="default" onClick={() => setOpen(false)}>{say("action.cancel")}</Button>
              <Button type="submit" color={color} loading={busy} disabled={!ready}>{props.label}</Button>
            </Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}
