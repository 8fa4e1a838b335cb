import { Alert, Button, Checkbox, CopyButton, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { IconUserPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";

import { useNow } from "../../shared/now";
import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { ROLES, type Role } from "../api/roles";
import type { AccountView, ChangeAccount } from "../api/schema";
import { useChange, useClient, useMay, useSession } from "../api/use";

function RoleChoice({ roles, change }: { roles: readonly Role[]; change: (roles: Role[]) => void }) {
  const { say } = useText();
  return (
    <Checkbox.Group label={say("account.roles")} value={[...roles]} onChange={(values) => change(ROLES.filter((role) => values.includes(role)))}>
      <Stack gap="sm" mt="xs">
        {ROLES.map((role) => <Checkbox key={role} value={role} label={say(`role.${role}`)} description={say(`role.${role}.hint`)} />)}
      </Stack>
    </Checkbox.Group>
  );
}

function Invite() {
  const { say, language } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [roles, setRoles] = useState<Role[]>([]);
  const invite = useChange(client.invite);
  const made = invite.data;
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    invite.mutate({ roles });
  }
  function close() {
    setOpen(false);
    invite.reset();
  }
  return (
    <>
      <Button leftSection={<IconUserPlus size={17} aria-hidden />} onClick={() => setOpen(true)}>{say("account.invite")}</Button>
      <Modal opened={open} onClose={close} title={say("account.invite")} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        {made ? (
          <Stack>
            <Text size="sm">{say("account.link.hint", { until: moment(made.expires, language) })}</Text>
            <TextInput label={say("account.link")} readOnly value={made.link} onFocus={(event) => event.currentTarget.select()} />
            <CopyButton value={made.link}>{({ copied, copy }) => <Button onClick={copy}>{say(copied ? "action.copied" : "action.copy")}</Button>}</CopyButton>
          </Stack>
        ) : (
          <form onSubmit={submit}>
            <Stack>
              <RoleChoice roles={roles} change={setRoles} />
              {invite.isError && <Failure error={invite.error} />}
              <Button type="submit" disabled={roles.length === 0} loading={invite.isPending}>{say("account.make_link")}</Button>
            </Stack>
          </form>
        )}
      </Modal>
    </>
  );
}

function Edit({ account }: { account: AccountView }) {
  const { say } = useText();
  const client = useClient();
  const own = useSession().name === account.name;
  const [open, setOpen] = useState(false);
  const [roles, setRoles] = useState<readonly Role[]>(account.roles);
  const change = useChange((part: ChangeAccount) => client.changeAccount(account.name, part));
  const remove = useChange(() => client.removeAccount(account.name));
  const apply = (part: ChangeAccount) => change.mutate(part, { onSuccess: () => setOpen(false) });
  return (
    <>
      <Button size="compact-sm" variant="default" onClick={() => setOpen(true)} aria-label={say("account.edit", { name: account.name })}>{say("action.edit")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={account.name} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <Stack>
          {account.provider === "password" ? (
            <>
              <RoleChoice roles={roles} change={setRoles} />
              <Button loading={change.isPending} disabled={roles.length === 0} onClick={() => apply({ roles })}>{say("action.save")}</Button>
            </>
          ) : <Text size="sm">{say("account.roles.elsewhere")}</Text>}
          {account.locked_until > 0 && <Button variant="default" onClick={() => apply({ unlock: true })}>{say("account.unlock")}</Button>}
          {account.second_factor && !own && <Button variant="default" onClick={() => apply({ remove_second_factor: true })}>{say("account.drop_factor")}</Button>}
          {!own && <Button variant="default" onClick={() => apply({ disabled: !account.disabled })}>{say(account.disabled ? "account.enable" : "account.disable")}</Button>}
          {!own && <Confirm label={say("account.remove")} title={say("account.remove")} consequence={say("account.remove.consequence")} danger typed={account.name} act={() => remove.mutateAsync(undefined)} />}
          {change.isError && <Failure error={change.error} />}
        </Stack>
      </Modal>
    </>
  );
}

function State({ account }: { account: AccountView }) {
  const { say } = useText();
  const now = useNow(30);
  if (account.disabled) return <Mark tone="plain">{say("account.disabled")}</Mark>;
  if (account.locked_until > now) return <Mark tone="bad">{say("account.locked")}</Mark>;
  return <Mark tone="good">{say("account.active")}</Mark>;
}

export default function Accounts() {
  const { say, language } = useText();
  const client = useClient();
  const mayEdit = useMay("administrator");
  const accounts = useQuery({ queryKey: ["accounts"], queryFn: client.accounts });
  const withdraw = useChange(client.withdrawInvitation);
  const edit = mayEdit ? [{ head: say("field.actions"), cell: (row: AccountView) => <Edit account={row} /> }] : [];
  return (
    <Page title={say("nav.accounts")} lead={say("accounts.lead")} actions={mayEdit && <Invite />}>
      <Answer query={accounts}>
        {(data) => (
          <Stack gap="lg">
            <Section flush>
              <Rows label={say("nav.accounts")} rows={data.accounts} id={(row) => row.name} columns={[
                { head: say("field.name"), cell: (row) => <Text fw={560}>{row.name}</Text> },
                { head: say("account.roles"), cell: (row) => row.roles.map((role) => say(`role.${role}`)).join(", ") },
                { head: say("field.state"), cell: (row) => <State account={row} /> },
                { head: say("account.by"), cell: (row) => say(`provider.${row.provider}`) },
                { head: say("account.factor"), cell: (row) => say(row.second_factor ? "state.on" : "state.off") },
                { head: say("account.last"), cell: (row) => moment(row.last_sign_in, language) },
                ...edit,
              ]} />
            </Section>
            {data.invitations.length > 0 && (
              <Section title={say("account.open_invitations")}>
                <Stack>
                  {withdraw.isError && <Alert color="brick">{withdraw.error.message}</Alert>}
                  {data.invitations.map((invitation) => (
                    <Group key={invitation.id} justify="space-between">
                      <Text size="sm">{invitation.roles.map((role) => say(`role.${role}`)).join(", ")} · {say("account.expires", { at: moment(invitation.expires, language) })} · {invitation.by}</Text>
                      {mayEdit && <Button size="compact-sm" variant="default" onClick={() => withdraw.mutate(invitation.id)}>{say("account.withdraw")}</Button>}
                    </Group>
                  ))}
                </Stack>
              </Section>
            )}
          </Stack>
        )}
      </Answer>
    </Page>
  );
}
