import { Button, Group, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconActivity, IconPlus } from "@tabler/icons-react";
import { useState } from "react";
import { Link } from "wouter";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Empty } from "../../shared/ui/states";
import { useClient, useMay } from "../api/use";
import { Listing } from "../ui/listing";
import { State } from "../ui/marks";

const TYPING_PAUSE = 350; // milliseconds

/** Jobs, newest first; also within one study. */
export function JobList({ study }: { study?: string }) {
  const { say, language } = useText();
  const client = useClient();
  return (
    <Listing
      queryKey={["jobs", study ?? ""]}
      load={(cursor) => client.jobs({ study, cursor, limit: 50 })}
      label={say("nav.experiments")}
      id={(row) => row.id}
      refresh={10_000}
      empty={<Empty title={say("experiments.none")} hint={say("experiments.none.hint")} icon={<IconActivity stroke={1.5} />} />}
      columns={[
        { head: say("field.name"), wide: true, cell: (row) => <Link href={`/experiments/${encodeURIComponent(row.id)}`}>{row.experiment.name || row.id}</Link> },
        ...(study === undefined ? [{ head: say("field.study"), cell: (row: { experiment: { study: string } }) => row.experiment.study }] : []),
        { head: say("field.state"), cell: (row) => <State of={row.state} /> },
        { head: say("job.rounds"), right: true, cell: (row) => say("home.of", { part: row.round, all: row.experiment.rounds }) },
        { head: say("field.author"), cell: (row) => row.author },
        { head: say("field.when"), cell: (row) => moment(row.created, language) },
      ]}
    />
  );
}

export default function Experiments() {
  const { say } = useText();
  const mayWrite = useMay("operator", "researcher");
  const [study, setStudy] = useState("");
  const [settled] = useDebouncedValue(study.trim(), TYPING_PAUSE);
  return (
    <Page title={say("nav.experiments")} lead={say("experiments.lead")} actions={mayWrite && (
      <Button component={Link} href="/experiments/new" leftSection={<IconPlus size={17} aria-hidden />}>{say("experiments.new")}</Button>
    )}>
      <Group>
        <TextInput label={say("experiments.of_study")} placeholder={say("experiments.of_study.all")} value={study} onChange={(event) => setStudy(event.currentTarget.value)} />
      </Group>
      <Section flush><JobList key={settled} {...(settled === "" ? {} : { study: settled })} /></Section>
    </Page>
  );
}
