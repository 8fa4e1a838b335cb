import { Autocomplete, Button, Group, Modal, NativeSelect, NumberInput, Stack, Text, Textarea } from "@mantine/core";
import { useState, type SyntheticEvent } from "react";

import { figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { AccountStanding, CapProposal, LedgerView, SetCap } from "../api/schema";
import { useChange, useClient, useMay, useSession } from "../api/use";

type Kind = SetCap["kind"];
const KINDS: readonly Kind[] = ["universe", "dataset", "study", "researcher"];

/** Cap an account: which sort, which one of those known here, how much, and why. */
export function CapForm({ ledger }: { ledger: LedgerView }) {
  const { say } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [cap, setCap] = useState<SetCap>({ kind: "dataset", name: "", epsilon: 1, delta: 1e-5, reason: "" });
  const edit = (part: Partial<SetCap>) => setCap((old) => ({ ...old, ...part }));
  const save = useChange(client.setCap);
  const names = ledger.names[cap.kind] ?? [];
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    save.mutate(cap, { onSuccess: () => setOpen(false) });
  }
  return (
    <>
      <Button variant="default" onClick={() => setOpen(true)}>{say("ledger.set_cap")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={say("ledger.set_cap")} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <form onSubmit={submit}>
          <Stack>
            <Text size="sm">{say("ledger.set_cap.consequence")}</Text>
            {ledger.two_people && <Text size="sm">{say("ledger.set_cap.waits")}</Text>}
            <NativeSelect label={say("ledger.kind")} value={cap.kind} data={KINDS.map((kind) => ({ value: kind, label: say(`account.${kind}`) }))}
              onChange={(event) => edit({ kind: event.currentTarget.value as Kind, name: "" })} />
            <Autocomplete label={say("field.name")} required value={cap.name} data={[...names]} onChange={(name) => edit({ name })}
              {...(names.length > 0 ? { description: say("ledger.name.hint", { names: names.join(", ") }) } : {})} />
            <NumberInput label="ε (epsilon)" required min={0} step={0.5} value={cap.epsilon} onChange={(value) => edit({ epsilon: Number(value) })} />
            <NumberInput label="δ (delta)" description={say("ledger.delta.hint")} required min={0} max={0.1} decimalScale={12} value={cap.delta ?? 1e-5} onChange={(value) => edit({ delta: Number(value) })} />
            <Textarea label={say("field.reason")} required value={cap.reason} onChange={(event) => edit({ reason: event.currentTarget.value })} />
            {save.isError && <Failure error={save.error} />}
            <Group justify="flex-end"><Button type="submit" loading={save.isPending}>{say("action.save")}</Button></Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}

export function DropCap({ account }: { account: AccountStanding }) {
  const { say } = useText();
  const client = useClient();
  const drop = useChange((reason: string) => client.dropCap({ kind: account.kind as Kind, name: account.name, reason }));
  if (account.cap === null) return null;
  return <Confirm label={say("ledger.drop_cap")} title={say("ledger.drop_cap")} consequence={say("ledger.drop_cap.consequence")} reason="required" act={(reason) => drop.mutateAsync(reason)} />;
}

function Answer({ asked }: { asked: CapProposal }) {
  const { say } = useText();
  const client = useClient();
  const me = useSession().name;
  const at = { kind: asked.kind as Kind, name: asked.name };
  const agree = useChange((reason: string) =>
    asked.epsilon === null || asked.delta === null ? client.dropCap({ ...at, reason }) : client.setCap({ ...at, epsilon: asked.epsilon, delta: asked.delta, reason }));
  const withdraw = useChange(() => client.withdrawCap(at));
  return (
    <Group gap="xs" wrap="nowrap">
      {asked.by === me ? <Text size="sm" className="quiet">{say("ledger.own")}</Text> : (
        <Confirm filled label={say("ledger.agree")} title={say("ledger.agree")} consequence={say("ledger.agree.consequence")} reason="required" act={(reason) => agree.mutateAsync(reason)} />
      )}
      <Confirm label={say("ledger.withdraw")} title={say("ledger.withdraw")} consequence={say("ledger.withdraw.consequence")} act={() => withdraw.mutateAsync(undefined)} />
    </Group>
  );
}

/** Higher caps that one person asked for; another one puts them in force. */
export function Proposals({ ledger }: { ledger: LedgerView }) {
  const { say, language } = useText();
  const mayCap = useMay("data_manager");
  if (ledger.proposals.length === 0) return null;
  const actions = mayCap ? [{ head: say("field.actions"), cell: (row: CapProposal) => <Answer asked={row} /> }] : [];
  return (
    <Section title={say("ledger.proposals")} hint={say("ledger.proposals.hint")} flush>
      <Rows label={say("ledger.proposals")} rows={ledger.proposals} id={(row) => `${row.kind} ${row.name}`} columns={[
        { head: say("ledger.kind"), cell: (row) => say(`account.${row.kind}`) },
        { head: say("field.name"), cell: (row) => row.name },
        { head: "ε", right: true, cell: (row) => row.epsilon === null ? say("ledger.default") : figure(row.epsilon, language) },
        { head: say("ledger.asked"), cell: (row) => `${row.by} · ${moment(row.at, language)}` },
        { head: say("field.reason"), wide: true, cell: (row) => row.reason },
        ...actions,
      ]} />
    </Section>
  );
}
