import { NumberInput, Stack, Text, TextInput } from "@mantine/core";
import { IconKey } from "@tabler/icons-react";
import { useState } from "react";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Empty } from "../../shared/ui/states";
import { ROLES, type Role } from "../api/people";
import type { KeyView } from "../api/schema";
import { useChange, useClient, usePerson } from "../api/use";
import { RoleNames } from "../shell";
import { FormDialog, Secret } from "./dialog";
import { Listing } from "./listing";
import { RoleChoice } from "./role-choice";

/** A key for a machine, with some of one's own roles. */
export function MakeKey() {
  const { say, language } = useText();
  const client = useClient();
  const person = usePerson();
  const [name, setName] = useState("");
  const [roles, setRoles] = useState<readonly Role[]>([]);
  const [study, setStudy] = useState("");
  const [days, setDays] = useState(90);
  const make = useChange(client.makeKey);
  const held = study.trim() === "" ? person.roles : [...person.roles, ...(person.studies.find((part) => part.study === study.trim())?.roles ?? [])];
  const ready = name.trim() !== "" && roles.length > 0;
  function clear() {
    setName("");
    setRoles([]);
    setStudy("");
  }
  return (
    <FormDialog plain label={say("keys.make")} submit={say("keys.make")} icon={<IconKey size={17} aria-hidden />} ready={ready} clear={clear}
      act={() => make.mutateAsync({ name: name.trim(), roles, days, ...(study.trim() ? { study: study.trim() } : {}) })}
      shown={(made) => (
        <Stack>
          <Text size="sm">{say("keys.secret.hint", { until: moment(made.expires, language) })}</Text>
          <Secret label={say("keys.secret")} value={made.secret ?? ""} />
        </Stack>
      )}>
      <TextInput label={say("field.name")} description={say("keys.name.hint")} required value={name} onChange={(event) => setName(event.currentTarget.value)} autoComplete="off" />
      <TextInput label={say("field.study")} description={say("keys.study.hint")} value={study} onChange={(event) => setStudy(event.currentTarget.value)} />
      <RoleChoice roles={roles} change={setRoles} among={ROLES.filter((role) => held.includes(role))} />
      <NumberInput label={say("keys.days")} min={1} max={3650} allowDecimal={false} value={days} onChange={(value) => setDays(Number(value) || 90)} />
    </FormDialog>
  );
}

function Revoke({ key_ }: { key_: KeyView }) {
  const { say } = useText();
  const client = useClient();
  const revoke = useChange(() => client.revokeKey(key_.id));
  return <Confirm danger label={say("keys.revoke")} title={say("keys.revoke")} consequence={say("keys.revoke.consequence")} act={() => revoke.mutateAsync(undefined)} />;
}

export function Keys() {
  const { say, language } = useText();
  const client = useClient();
  return (
    <Listing
      queryKey={["keys"]}
      load={(cursor) => client.keys({ cursor, limit: 50 })}
      label={say("people.keys")}
      id={(row) => row.id}
      empty={<Empty title={say("keys.none")} hint={say("keys.none.hint")} icon={<IconKey stroke={1.5} />} />}
      columns={[
        { head: say("field.name"), cell: (row) => <Text fw={560}>{row.name}</Text> },
        { head: say("keys.owner"), cell: (row) => row.owner },
        { head: say("field.roles"), wide: true, cell: (row) => <RoleNames roles={row.roles} /> },
        { head: say("field.study"), cell: (row) => row.study ?? "–" },
        { head: say("people.expires"), cell: (row) => moment(row.expires, language) },
        { head: say("field.actions"), cell: (row) => <Revoke key_={row} /> },
      ]}
    />
  );
}
