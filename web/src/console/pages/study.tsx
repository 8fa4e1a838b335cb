import { Button, Checkbox, Group, Modal, MultiSelect, Stack, Text, TextInput, Textarea } from "@mantine/core";
import { IconCheck } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { Link } from "wouter";

import { day, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { StudyView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { Decision } from "./studies";

/** The words that the hub tells now, of every site that has any. */
function toldWords(study: StudyView): Record<string, string> {
  return Object.fromEntries(study.peers.filter((peer) => !peer.own && peer.told).map((peer) => [peer.site, peer.told]));
}

function Accept({ study }: { study: StudyView }) {
  const { say } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [reason, setReason] = useState("");
  const [until, setUntil] = useState("");
  const [datasets, setDatasets] = useState<string[]>([]);
  const [compared, setCompared] = useState(false);
  const words = toldWords(study);
  const peers = Object.keys(words).length;
  const accept = useChange(() => client.acceptStudy(study.digest, { reason, until, datasets, words: compared ? words : {} }));
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    accept.mutate(undefined, { onSuccess: () => setOpen(false) });
  }
  return (
    <>
      <Button leftSection={<IconCheck size={17} aria-hidden />} onClick={() => setOpen(true)}>{say("study.accept")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={say("study.accept.title", { name: study.name })} centered size="lg" closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <form onSubmit={submit}>
          <Stack>
            <Text size="sm">{say("study.accept.consequence")}</Text>
            <MultiSelect label={say("study.datasets")} description={say("study.datasets.hint")} data={[...study.matching]} value={datasets} onChange={setDatasets} clearable />
            <TextInput type="date" label={say("field.until")} description={say("study.until.hint")} value={until} onChange={(event) => setUntil(event.currentTarget.value)} />
            <Textarea label={say("field.reason.optional")} value={reason} autosize minRows={2} onChange={(event) => setReason(event.currentTarget.value)} />
            {peers > 0 && <Checkbox label={say("study.compared")} description={say("study.compared.hint")} checked={compared} onChange={(event) => setCompared(event.currentTarget.checked)} />}
            {accept.isError && <Failure error={accept.error} />}
            <Group justify="flex-end">
              <Button variant="default" onClick={() => setOpen(false)}>{say("action.cancel")}</Button>
              <Button type="submit" loading={accept.isPending}>{say("study.accept")}</Button>
            </Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}

function Words({ study }: { study: StudyView }) {
  const { say, knows } = useText();
  const client = useClient();
  const mayPin = useMay("data_manager", "reviewer");
  const pin = useChange((words: Record<string, string>) => client.pinKeys(study.digest, { words }));
  const changed = study.peers.some((peer) => !peer.own && peer.told !== "" && peer.told !== peer.pinned);
  return (
    <Section title={say("study.words")} hint={say("study.words.hint")}
      actions={mayPin && study.state === "accepted" && changed && (
        <Confirm label={say("study.pin")} title={say("study.pin")} consequence={say("study.pin.consequence")} act={() => pin.mutateAsync(toldWords(study))} />
      )}>
      <Stack gap="lg">
        {study.peers.length === 0 && <Text className="quiet">{say("study.words.none")}</Text>}
        {study.peers.map((peer) => {
          const key = `peer.${peer.own ? "own" : peer.state}`;
          return (
            <Stack key={peer.site} gap={2}>
              <Group gap="xs">
                <Text fw={560}>{peer.site}</Text>
                <Mark tone={peer.state === "changed" ? "bad" : peer.own || peer.state === "pinned" ? "good" : "waiting"}>{knows(key) ? say(key) : peer.state}</Mark>
              </Group>
              <Text className="words">{peer.told || peer.pinned || "–"}</Text>
              {peer.state === "changed" && <Text size="sm">{say("peer.before", { words: peer.pinned })}</Text>}
            </Stack>
          );
        })}
      </Stack>
    </Section>
  );
}

function Terms({ study }: { study: StudyView }) {
  const { say, language } = useText();
  return (
    <Section title={say("study.terms")}>
      <Facts items={[
        [say("study.purpose"), study.purpose],
        [say("study.controller"), study.controller],
        [say("study.legal_basis"), study.legal_basis],
        [say("study.ethics"), study.ethics],
        [say("field.sites"), study.sites.join(", ")],
        [say("field.tags"), study.tags.join(", ")],
        [say("study.min_records"), study.min_records],
        [say("study.statistics"), say(study.statistics ? "study.statistics.asked" : "study.statistics.none")],
        [say("study.data_centre"), study.data_centre],
        [say("study.pooled"), study.pooled.length > 0 && say("study.pooled.asked", { sites: study.pooled.join(", ") })],
        [say("study.its_end"), day(study.study_until, language)],
        [say("study.matching"), study.matching.join(", ") || say("study.matching.none")],
        [say("field.offered"), moment(study.offered, language)],
        [say("field.digest"), <span key="d" className="mono" title={study.digest}>{shortDigest(study.digest)}</span>],
        [say("study.plans"), study.plans.length > 0 && (
          <Group key="p" gap="sm">
            {study.plans.map((plan) => <Link key={plan} href={`/plans/${encodeURIComponent(plan)}`}><span className="mono">{shortDigest(plan)}</span></Link>)}
          </Group>
        )],
      ]} />
    </Section>
  );
}

/** What a changed study says differently from the version accepted here. */
function Changes({ study }: { study: StudyView }) {
  const { say } = useText();
  return (
    <Section title={say("study.changes")} flush>
      <Rows compact label={say("study.changes")} rows={study.changes} id={(row) => row.field} columns={[
        { head: say("study.field"), cell: (row) => row.field },
        { head: say("policy.before"), wide: true, cell: (row) => row.old },
        { head: say("policy.after"), wide: true, cell: (row) => row.new },
      ]} />
    </Section>
  );
}

function Decided({ study }: { study: StudyView }) {
  const { say, language } = useText();
  if (study.decided === 0) return null;
  return (
    <Section title={say("study.decision")}>
      <Facts items={[
        [say("field.state"), <Decision key="s" state={study.state} />],
        [say("field.decided"), `${moment(study.decided, language)} · ${study.by}`],
        [say("field.reason"), study.reason],
        [say("field.until"), study.until && day(study.until, language)],
        [say("study.datasets"), study.datasets.join(", ") || say("study.datasets.any")],
      ]} />
    </Section>
  );
}

export default function Study({ digest }: { digest: string }) {
  const { say } = useText();
  const client = useClient();
  const mayDecide = useMay("data_manager", "reviewer");
  const mayCompare = useMay("data_manager", "reviewer", "dpo");
  const study = useQuery({ queryKey: ["studies", digest], queryFn: () => client.study(digest) });
  const decline = useChange((reason: string) => client.declineStudy(digest, { reason }));
  const leave = useChange((reason: string) => client.leaveStudy(digest, { reason }));
  const state = study.data?.state;
  const actions = mayDecide && study.data && (
    <>
      {state === "pending" && (
        <Confirm label={say("study.decline")} title={say("study.decline")} consequence={say("study.decline.consequence")} reason="required" danger act={(reason) => decline.mutateAsync(reason)} />
      )}
      {state === "accepted" && (
        <Confirm label={say("study.leave")} title={say("study.leave")} consequence={say("study.leave.consequence")} reason="required" danger act={(reason) => leave.mutateAsync(reason)} />
      )}
      {state !== "accepted" && <Accept study={study.data} />}
    </>
  );
  return (
    <Page title={study.data?.name ?? say("field.study")} back={{ to: "/studies", label: say("nav.studies") }} badge={state && <Decision state={state} />} actions={actions}>
      <Answer query={study}>
        {(data) => (
          <>
            {data.accepted_before && data.state === "pending" && <Text>{say("study.new_version")}</Text>}
            {data.changes.length > 0 && <Changes study={data} />}
            {data.state === "accepted" && mayCompare && (
              <Section title={say("harmony.title")} hint={say("harmony.lead")}>
                <Button component={Link} href={`/studies/${encodeURIComponent(digest)}/harmony`} variant="default">{say("harmony.open")}</Button>
              </Section>
            )}
            {data.data_centre && (
              <Section title={say("pool.title")} hint={say("pool.lead")}>
                <Button component={Link} href={`/studies/${encodeURIComponent(digest)}/pool`} variant="default">{say("pool.go")}</Button>
              </Section>
            )}
            <Terms study={data} />
            <Words study={data} />
            <Decided study={data} />
          </>
        )}
      </Answer>
    </Page>
  );
}
