import { Alert, Button, FileButton, Group, Modal, Stack, Text, Textarea, TextInput } from "@mantine/core";
import { IconFileUpload, IconInfoCircle, IconUserOff } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";

import { figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { CohortView, OptOutChanged, OptOutView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";

/** How many ids a text holds: one a line, comments and empty lines left out. */
function counted(text: string): number {
  return text.split("\n").filter((line) => line.trim() !== "" && !line.trim().startsWith("#")).length;
}

function Add({ done }: { done: (change: OptOutChanged) => void }) {
  const { say } = useText();
  const client = useClient();
  const [ids, setIds] = useState("");
  const add = useChange(() => client.addOptOuts({ ids }));
  const count = counted(ids);
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    add.mutate(undefined, { onSuccess: (change) => { setIds(""); done(change); } });
  }
  return (
    <Section title={say("optout.add")} hint={say("optout.add.hint")}>
      <form onSubmit={submit}>
        <Stack maw={620}>
          <Textarea label={say("optout.ids")} description={say("optout.ids.hint")} value={ids} autosize minRows={4} maxRows={14} spellCheck={false} autoComplete="off"
            onChange={(event) => setIds(event.currentTarget.value)} />
          {add.isError && <Failure error={add.error} />}
          <Group>
            <FileButton accept=".txt,.csv,text/plain" onChange={(file) => void file?.text().then(setIds)}>
              {(props) => <Button {...props} variant="default" leftSection={<IconFileUpload size={17} aria-hidden />}>{say("optout.file")}</Button>}
            </FileButton>
            <Button type="submit" disabled={count === 0} loading={add.isPending}>{say("optout.put", { count })}</Button>
          </Group>
        </Stack>
      </form>
    </Section>
  );
}

function Remove({ done }: { done: (change: OptOutChanged) => void }) {
  const { say } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [id, setId] = useState("");
  const remove = useChange(() => client.removeOptOut({ id }));
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    remove.mutate(undefined, { onSuccess: (change) => { setId(""); setOpen(false); done(change); } });
  }
  return (
    <>
      <Button variant="default" onClick={() => setOpen(true)}>{say("optout.remove")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={say("optout.remove")} centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <form onSubmit={submit}>
          <Stack>
            <Text size="sm">{say("optout.remove.consequence")}</Text>
            <TextInput label={say("optout.id")} required value={id} autoComplete="off" onChange={(event) => setId(event.currentTarget.value)} />
            {remove.isError && <Failure error={remove.error} />}
            <Group justify="flex-end"><Button type="submit" loading={remove.isPending}>{say("optout.remove")}</Button></Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}

function Done({ change }: { change: OptOutChanged }) {
  const { say } = useText();
  return (
    <Stack gap="sm">
      <Alert variant="light" color="teal" icon={<IconInfoCircle aria-hidden />} title={say("optout.done", { count: change.changed })}>
        {change.unknown > 0 && <Text size="sm">{say("optout.unknown", { count: change.unknown })}</Text>}
      </Alert>
      {change.problems.map((problem) => <Failure key={problem} error={new Error(problem)} />)}
    </Stack>
  );
}

function Effect({ row }: { row: CohortView }) {
  const { say } = useText();
  if (row.problem) return <Text size="sm">{row.problem}</Text>;
  if (!row.patient) return <Text size="sm" className="quiet">{say("optout.no_column")}</Text>;
  if (row.waits) return <Stack gap={2}><Mark tone="waiting">{say("optout.waits")}</Mark><Text size="sm">{row.waits}</Text></Stack>;
  return <Mark tone="good">{say(row.changed === null ? "optout.no_task" : "optout.free")}</Mark>;
}

function Cohorts({ list }: { list: OptOutView }) {
  const { say, language } = useText();
  return (
    <Section title={say("optout.cohorts")} hint={say("optout.cohorts.hint", { k: list.k })} flush>
      {list.cohorts.length === 0 ? <Empty title={say("datasets.none")} hint={say("datasets.none.hint")} /> : (
        <Rows label={say("optout.cohorts")} rows={list.cohorts} id={(row) => row.dataset} columns={[
          { head: say("field.dataset"), cell: (row) => row.dataset },
          { head: say("optout.left_out"), right: true, cell: (row) => figure(row.patients, language) },
          { head: say("optout.loaded"), right: true, cell: (row) => say("optout.of", { left: figure(row.left, language), all: figure(row.records, language) }) },
          { head: say("optout.next"), wide: true, cell: (row) => <Effect row={row} /> },
        ]} />
      )}
    </Section>
  );
}

/** Patients who opted out: added, counted, and what follows. Nobody can be read back. */
export default function OptOut() {
  const { say, language } = useText();
  const client = useClient();
  const mayEdit = useMay("data_manager");
  const [change, setChange] = useState<OptOutChanged | null>(null);
  const list = useQuery({ queryKey: ["opt-outs"], queryFn: client.optOuts });
  return (
    <Page title={say("nav.optout")} lead={say("optout.lead")} actions={mayEdit && <Remove done={setChange} />}>
      <div role="status">{change && <Done change={change} />}</div>
      {mayEdit && <Add done={setChange} />}
      <Answer query={list}>
        {(data) => (
          <Stack gap="lg">
            <Section title={say("optout.count", { count: data.patients })}>
              <Text size="sm" className="quiet">{say("optout.count.hint")}</Text>
            </Section>
            <Cohorts list={data} />
            <Section title={say("optout.history")} hint={say("optout.history.hint")} flush>
              {data.history.length === 0 ? <Empty title={say("optout.none")} hint={say("optout.none.hint")} icon={<IconUserOff stroke={1.5} />} /> : (
                <Rows compact label={say("optout.history")} rows={data.history} id={(row) => `${row.at} ${row.detail}`} columns={[
                  { head: say("field.when"), cell: (row) => moment(row.at, language) },
                  { head: say("audit.actor"), cell: (row) => row.actor },
                  { head: say("audit.action"), cell: (row) => say(row.added ? "optout.added" : "optout.removed") },
                  { head: say("field.detail"), wide: true, cell: (row) => row.detail },
                ]} />
              )}
            </Section>
          </Stack>
        )}
      </Answer>
    </Page>
  );
}
