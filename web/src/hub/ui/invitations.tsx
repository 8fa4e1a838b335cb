import { Stack, Text, TextInput } from "@mantine/core";
import { IconMail, IconUserPlus } from "@tabler/icons-react";
import { useState } from "react";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Empty } from "../../shared/ui/states";
import { ROLES, STUDY_ROLES, type Role } from "../api/people";
import type { InvitationView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { RoleNames } from "../shell";
import { FormDialog, Secret } from "./dialog";
import { Listing } from "./listing";
import { RoleChoice } from "./role-choice";

/** A link to an account: an operator's to any role, a researcher's to one of their studies. */
export function InvitePerson() {
  const { say, language } = useText();
  const client = useClient();
  const operator = useMay("operator");
  const [roles, setRoles] = useState<readonly Role[]>([]);
  const [name, setName] = useState("");
  const [study, setStudy] = useState("");
  const [site, setSite] = useState("");
  const invite = useChange(client.invitePerson);
  const inStudy = !operator || study.trim() !== "";
  const body = {
    roles,
    ...(name.trim() ? { name: name.trim() } : {}),
    ...(study.trim() ? { study: study.trim() } : {}),
    ...(roles.includes("data-manager") && site.trim() ? { site: site.trim() } : {}),
  };
  function clear() {
    setRoles([]);
    setName("");
    setStudy("");
    setSite("");
  }
  return (
    <FormDialog label={say("people.invite")} submit={say("people.make_link")} icon={<IconUserPlus size={17} aria-hidden />} ready={roles.length > 0} clear={clear}
      act={() => invite.mutateAsync(body)}
      shown={(made) => (
        <Stack>
          <Text size="sm">{say("people.link.hint", { until: moment(made.expires, language) })}</Text>
          <Secret label={say("people.link")} value={made.link} />
        </Stack>
      )}>
      <TextInput label={say("people.name")} description={say("people.name.hint")} value={name} onChange={(event) => setName(event.currentTarget.value)} autoComplete="off" />
      <TextInput label={say("field.study")} description={say("people.study.hint")} required={!operator} value={study} onChange={(event) => setStudy(event.currentTarget.value)} />
      <RoleChoice roles={roles} change={setRoles} among={inStudy ? STUDY_ROLES : ROLES} />
      {roles.includes("data-manager") && <TextInput label={say("field.site")} required value={site} onChange={(event) => setSite(event.currentTarget.value)} />}
    </FormDialog>
  );
}

function Withdraw({ invitation }: { invitation: InvitationView }) {
  const { say } = useText();
  const client = useClient();
  const withdraw = useChange(() => client.withdrawInvitation(invitation.id));
  return <Confirm label={say("people.withdraw")} title={say("people.withdraw")} consequence={say("people.withdraw.consequence")} act={() => withdraw.mutateAsync(undefined)} />;
}

/** Those that may still be accepted. */
export function Invitations() {
  const { say, language } = useText();
  const client = useClient();
  const operator = useMay("operator");
  return (
    <Listing
      queryKey={["invitations"]}
      load={(cursor) => client.invitations({ cursor, limit: 50 })}
      label={say("people.invitations")}
      id={(row) => row.id}
      empty={<Empty title={say("people.invitations.none")} hint={say("people.invitations.none.hint")} icon={<IconMail stroke={1.5} />} />}
      columns={[
        { head: say("field.name"), cell: (row) => row.name ?? "–" },
        { head: say("field.roles"), wide: true, cell: (row) => <RoleNames roles={row.roles} /> },
        { head: say("field.study"), cell: (row) => row.study ?? "–" },
        { head: say("people.invited_by"), cell: (row) => row.invited_by },
        { head: say("people.expires"), cell: (row) => moment(row.expires, language) },
        ...(operator ? [{ head: say("field.actions"), cell: (row: InvitationView) => <Withdraw invitation={row} /> }] : []),
      ]}
    />
  );
}
