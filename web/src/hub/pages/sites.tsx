import { Button, CopyButton, Modal, NumberInput, Stack, Text, TextInput, Textarea } from "@mantine/core";
import { IconBuildingHospital, IconPlus } from "@tabler/icons-react";
import { useState } from "react";

import { useNow } from "../../shared/now";
import { duration, figure, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Empty, Failure } from "../../shared/ui/states";
import type { SiteView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { Listing } from "../ui/listing";
import { State } from "../ui/marks";

const SOON = 14 * 86_400; // seconds before a certificate's end in which it is marked

function Invite() {
  const { say, language } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [site, setSite] = useState("");
  const [hours, setHours] = useState(72);
  const invite = useChange(client.inviteSite);
  const made = invite.data;
  const close = () => {
    setOpen(false);
    setSite("");
    invite.reset();
  };
  return (
    <>
      <Button leftSection={<IconPlus size={17} aria-hidden />} onClick={() => setOpen(true)}>{say("site.invite")}</Button>
      <Modal opened={open} onClose={close} title={say("site.invite")} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        {made ? (
          <Stack>
            <Text size="sm">{say("site.token.hint", { until: moment(made.expires, language) })}</Text>
            <Textarea label={say("site.token")} readOnly value={made.token} autosize onFocus={(event) => event.currentTarget.select()} />
            <TextInput label={say("site.fingerprint")} readOnly value={made.ca_fingerprint} />
            <CopyButton value={made.token}>{({ copied, copy }) => <Button onClick={copy}>{say(copied ? "action.copied" : "action.copy")}</Button>}</CopyButton>
          </Stack>
        ) : (
          <form onSubmit={(event) => { event.preventDefault(); invite.mutate({ site: site.trim(), hours }); }}>
            <Stack>
              <TextInput label={say("field.site")} required value={site} onChange={(event) => setSite(event.currentTarget.value)} />
              <NumberInput label={say("site.hours")} min={1} value={hours} onChange={(value) => setHours(Number(value) || 72)} />
              {invite.isError && <Failure error={invite.error} />}
              <Button type="submit" loading={invite.isPending}>{say("site.make_token")}</Button>
            </Stack>
          </form>
        )}
      </Modal>
    </>
  );
}

function Contact({ site }: { site: SiteView }) {
  const { say, language } = useText();
  const now = useNow(5);
  if (site.state !== "enrolled") return <State of={site.state} />;
  if (site.online) return <Mark tone="good">{say("site.online")}</Mark>;
  const ago = site.last_seen === null ? "" : duration(now - site.last_seen);
  return (
    <Stack gap={0} title={moment(site.last_seen, language)}>
      <span><Mark tone="waiting">{say("site.away")}</Mark></span>
      {ago && <Text size="xs" className="quiet">{say("site.ago", { ago })}</Text>}
    </Stack>
  );
}

function Certificate({ site }: { site: SiteView }) {
  const { say, language } = useText();
  const now = useNow(60);
  const end = site.certificate_expires;
  if (end === null) return <>–</>;
  if (end < now) return <Mark tone="bad">{say("site.expired")}</Mark>;
  return end < now + SOON ? <Mark tone="waiting">{moment(end, language)}</Mark> : <>{moment(end, language)}</>;
}

function Revoke({ site }: { site: SiteView }) {
  const { say } = useText();
  const client = useClient();
  const revoke = useChange(() => client.revokeSite(site.name));
  if (site.state === "revoked") return null;
  return <Confirm danger typed={site.name} label={say("site.revoke")} title={say("site.revoke")} consequence={say("site.revoke.consequence")} act={() => revoke.mutateAsync(undefined)} />;
}

export default function Sites() {
  const { say, language } = useText();
  const client = useClient();
  const operator = useMay("operator");
  return (
    <Page title={say("nav.sites")} lead={say("sites.lead")} actions={operator && <Invite />}>
      <Section flush>
        <Listing
          queryKey={["sites"]}
          load={(cursor) => client.sites({ cursor, limit: 100 })}
          label={say("nav.sites")}
          id={(row) => row.name}
          refresh={5_000}
          empty={<Empty title={say("sites.none")} hint={say("sites.none.hint")} icon={<IconBuildingHospital stroke={1.5} />} />}
          columns={[
            { head: say("field.site"), cell: (row) => <Text fw={560}>{row.name}</Text> },
            { head: say("field.state"), cell: (row) => <Contact site={row} /> },
            { head: say("site.version"), cell: (row) => row.version || "–" },
            { head: say("site.datasets"), wide: true, cell: (row) => row.datasets.join(", ") || "–" },
            { head: say("site.certificate"), cell: (row) => <Certificate site={row} /> },
            { head: say("site.trail"), right: true, cell: (row) => <span title={row.audit_head}>{row.audit_length ? `${figure(row.audit_length, language)} · ${shortDigest(row.audit_head)}` : "–"}</span> },
            ...(operator ? [{ head: say("field.actions"), cell: (row: SiteView) => <Revoke site={row} /> }] : []),
          ]}
        />
      </Section>
    </Page>
  );
}
