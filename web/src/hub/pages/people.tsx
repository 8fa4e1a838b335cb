import { Tabs } from "@mantine/core";
import { useState } from "react";

import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { useMay } from "../api/use";
import { AskAccess, Requests } from "../ui/access";
import { Invitations, InvitePerson } from "../ui/invitations";
import { Keys, MakeKey } from "../ui/keys";
import { Users } from "../ui/users";

/** Accounts, invitations, requests for access and API keys. Who sees no accounts sees their own. */
export default function People() {
  const { say } = useText();
  const oversees = useMay("operator", "auditor");
  const invites = useMay("operator", "researcher");
  const tabs = [...(oversees ? ["users", "invitations"] : []), "requests", "keys"];
  const [tab, setTab] = useState(tabs[0] ?? "requests");
  return (
    <Page title={say("nav.people")} lead={say(oversees ? "people.lead" : "people.lead.own")} actions={
      <>{invites && <InvitePerson />}<AskAccess /><MakeKey /></>
    }>
      <Section flush>
        <Tabs value={tab} onChange={(value) => setTab(value ?? "requests")} keepMounted={false}>
          <Tabs.List>{tabs.map((key) => <Tabs.Tab key={key} value={key}>{say(`people.${key}`)}</Tabs.Tab>)}</Tabs.List>
          {oversees && <Tabs.Panel value="users"><Users /></Tabs.Panel>}
          {oversees && <Tabs.Panel value="invitations"><Invitations /></Tabs.Panel>}
          <Tabs.Panel value="requests"><Requests /></Tabs.Panel>
          <Tabs.Panel value="keys"><Keys /></Tabs.Panel>
        </Tabs>
      </Section>
    </Page>
  );
}
