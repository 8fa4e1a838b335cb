import { Group, NativeSelect, Text, TextInput, Textarea } from "@mantine/core";
import { IconDoorEnter, IconUserQuestion } from "@tabler/icons-react";
import { useState } from "react";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Empty } from "../../shared/ui/states";
import { ROLES, STUDY_ROLES } from "../api/people";
import type { AccessRequestView } from "../api/schema";
import { useChange, useClient, useMay, usePerson } from "../api/use";
import { FormDialog } from "./dialog";
import { Listing } from "./listing";
import { State } from "./marks";

/** Ask for a role, at the hub or in a study. */
export function AskAccess() {
  const { say } = useText();
  const client = useClient();
  const [role, setRole] = useState("researcher");
  const [study, setStudy] = useState("");
  const [reason, setReason] = useState("");
  const ask = useChange(client.askAccess);
  const offered = study.trim() === "" ? ROLES : STUDY_ROLES;
  function clear() {
    setStudy("");
    setReason("");
  }
  return (
    <FormDialog plain label={say("access.ask")} submit={say("access.send")} icon={<IconDoorEnter size={17} aria-hidden />} ready={reason.trim() !== ""} clear={clear}
      act={() => ask.mutateAsync({ role, reason: reason.trim(), ...(study.trim() ? { study: study.trim() } : {}) })}>
      <TextInput label={say("field.study")} description={say("access.study.hint")} value={study} onChange={(event) => setStudy(event.currentTarget.value)} />
      <NativeSelect label={say("field.role")} value={role} onChange={(event) => setRole(event.currentTarget.value)} data={offered.map((value) => ({ value, label: say(`role.${value}`) }))} />
      <Textarea label={say("field.reason")} required autosize minRows={2} value={reason} onChange={(event) => setReason(event.currentTarget.value)} />
    </FormDialog>
  );
}

function Decide({ request }: { request: AccessRequestView }) {
  const { say } = useText();
  const client = useClient();
  const grant = useChange((reason: string) => client.grantAccess(request.id, reason));
  const refuse = useChange((reason: string) => client.refuseAccess(request.id, reason));
  return (
    <Group gap="xs" wrap="nowrap">
      <Confirm label={say("access.grant")} title={say("access.grant")} consequence={say("access.grant.consequence", { person: request.person })} reason="required" act={grant.mutateAsync} />
      <Confirm danger label={say("access.refuse")} title={say("access.refuse")} consequence={say("access.refuse.consequence", { person: request.person })} reason="required" act={refuse.mutateAsync} />
    </Group>
  );
}

export function Requests() {
  const { say, language } = useText();
  const client = useClient();
  const decides = useMay("operator", "researcher");
  const own = usePerson().name;
  return (
    <Listing
      queryKey={["access-requests"]}
      load={(cursor) => client.accessRequests({ cursor, limit: 50 })}
      label={say("people.requests")}
      id={(row) => row.id}
      empty={<Empty title={say("access.none")} hint={say("access.none.hint")} icon={<IconUserQuestion stroke={1.5} />} />}
      columns={[
        { head: say("field.who"), cell: (row) => <Text fw={560}>{row.person}</Text> },
        { head: say("field.role"), cell: (row) => say(`role.${row.role}`) },
        { head: say("field.study"), cell: (row) => row.study ?? "–" },
        { head: say("field.reason"), wide: true, cell: (row) => row.reason },
        { head: say("field.state"), cell: (row) => <State of={row.state} /> },
        { head: say("field.when"), cell: (row) => moment(row.created, language) },
        { head: say("access.answer"), wide: true, cell: (row) => (row.state === "open" ? (decides && row.person !== own ? <Decide request={row} /> : "–") : [row.decided_by, row.answer].filter(Boolean).join(": ")) },
      ]}
    />
  );
}
