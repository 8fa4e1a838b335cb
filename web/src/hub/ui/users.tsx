import { Button, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { IconUsers } from "@tabler/icons-react";
import { useState } from "react";

import { useNow } from "../../shared/now";
import { figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Mark } from "../../shared/ui/page";
import { Empty, Failure } from "../../shared/ui/states";
import type { ChangeUser, UserView } from "../api/schema";
import { useChange, useClient, useMay, usePerson } from "../api/use";
import { RoleNames } from "../shell";
import { Listing } from "./listing";
import { RoleChoice } from "./role-choice";

function Edit({ user }: { user: UserView }) {
  const { say } = useText();
  const client = useClient();
  const own = usePerson().name === user.name;
  const [open, setOpen] = useState(false);
  const [roles, setRoles] = useState<readonly string[]>(user.roles);
  const [site, setSite] = useState(user.site ?? "");
  const change = useChange((part: ChangeUser) => client.changeUser(user.name, part));
  const end = useChange(() => client.endSessions(user.name));
  const remove = useChange(() => client.removeUser(user.name));
  const apply = (part: ChangeUser) => change.mutate(part, { onSuccess: () => setOpen(false) });
  const saved = { roles, ...(roles.includes("data-manager") && site.trim() ? { site: site.trim() } : {}) };
  return (
    <>
      <Button size="compact-sm" variant="default" onClick={() => setOpen(true)} aria-label={say("people.edit", { name: user.name })}>{say("action.edit")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={user.name} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <Stack>
          <RoleChoice roles={roles} change={setRoles} />
          {roles.includes("data-manager") && <TextInput label={say("field.site")} value={site} onChange={(event) => setSite(event.currentTarget.value)} />}
          <Button loading={change.isPending} onClick={() => apply(saved)}>{say("action.save")}</Button>
          <Text size="xs" className="quiet">{say("people.edit.hint")}</Text>
          <Group>
            {user.resting > 0 && <Button variant="default" onClick={() => apply({ unlock: true })}>{say("people.unlock")}</Button>}
            {user.second_factor && !own && <Button variant="default" onClick={() => apply({ remove_second_factor: true })}>{say("people.drop_factor")}</Button>}
            {!own && <Button variant="default" onClick={() => apply({ disabled: !user.disabled })}>{say(user.disabled ? "people.enable" : "people.disable")}</Button>}
            <Confirm label={say("people.end_sessions")} title={say("people.end_sessions")} consequence={say("people.end_sessions.consequence")} act={() => end.mutateAsync(undefined)} />
            {!own && <Confirm danger typed={user.name} label={say("people.remove")} title={say("people.remove")} consequence={say("people.remove.consequence")} act={() => remove.mutateAsync(undefined)} />}
          </Group>
          {change.isError && <Failure error={change.error} />}
        </Stack>
      </Modal>
    </>
  );
}

function UserState({ user }: { user: UserView }) {
  const { say } = useText();
  const now = useNow(30);
  if (user.disabled) return <Mark tone="plain">{say("people.disabled")}</Mark>;
  if (user.resting > now) return <Mark tone="bad">{say("people.resting")}</Mark>;
  return <Mark tone="good">{say("people.active")}</Mark>;
}

function Roles({ user }: { user: UserView }) {
  return (
    <Stack gap={2}>
      {user.roles.length > 0 && <Text size="sm"><RoleNames roles={user.roles} />{user.site ? ` (${user.site})` : ""}</Text>}
      {user.studies.map((part) => <Text key={part.study} size="sm"><span className="quiet">{part.study}: </span><RoleNames roles={part.roles} /></Text>)}
    </Stack>
  );
}

export function Users() {
  const { say, language } = useText();
  const client = useClient();
  const operator = useMay("operator");
  return (
    <Listing
      queryKey={["users"]}
      load={(cursor) => client.users({ cursor, limit: 50 })}
      label={say("people.users")}
      id={(row) => row.name}
      empty={<Empty title={say("people.users.none")} hint={say("people.users.none.hint")} icon={<IconUsers stroke={1.5} />} />}
      columns={[
        { head: say("field.name"), cell: (row) => <Text fw={560}>{row.name}</Text> },
        { head: say("field.roles"), wide: true, cell: (row) => <Roles user={row} /> },
        { head: say("field.state"), cell: (row) => <UserState user={row} /> },
        { head: say("people.factor"), cell: (row) => say(row.second_factor ? "state.on" : "state.off") },
        { head: say("people.last"), cell: (row) => moment(row.last, language) },
        { head: say("people.sessions"), right: true, cell: (row) => figure(row.sessions, language) },
        ...(operator ? [{ head: say("field.actions"), cell: (row: UserView) => <Edit user={row} /> }] : []),
      ]}
    />
  );
}
