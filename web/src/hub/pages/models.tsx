import { Button, Checkbox, Group, NativeSelect, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconCube, IconGitCompare } from "@tabler/icons-react";
import { useState } from "react";
import { Link, useLocation, useSearchParams } from "wouter";

import { figure, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Empty } from "../../shared/ui/states";
import type { ModelView } from "../api/schema";
import { useClient, useMay } from "../api/use";
import { INSIDERS } from "../shell";
import { Listing } from "../ui/listing";
import { State } from "../ui/marks";

const STAGES = ["candidate", "released", "retired"];
const MOST = 6; // models beside each other
const TYPING_PAUSE = 350; // milliseconds

export default function Models() {
  const { say, language } = useText();
  const client = useClient();
  const insider = useMay(...INSIDERS);
  const [, go] = useLocation();
  const [search] = useSearchParams();
  const [job, setJob] = useState(search.get("job") ?? "");
  const [stage, setStage] = useState("");
  const [chosen, setChosen] = useState<readonly string[]>([]);
  const [settled] = useDebouncedValue(job.trim(), TYPING_PAUSE);
  const choose = (id: string, on: boolean) => setChosen((old) => (on ? [...old, id] : old.filter((one) => one !== id)));
  const metrics = (row: ModelView) => Object.entries(row.metrics).slice(0, 3).map(([name, value]) => `${name} ${figure(value, language)}`).join(", ");
  return (
    <Page title={say("nav.models")} lead={say(insider ? "models.lead" : "models.lead.released")} actions={
      <Button variant="default" disabled={chosen.length < 2} leftSection={<IconGitCompare size={17} aria-hidden />}
        onClick={() => go(`/models/compare?${new URLSearchParams({ ids: chosen.join(",") }).toString()}`)}>
        {say("models.compare", { count: chosen.length })}
      </Button>
    }>
      {insider && (
        <Group align="flex-end">
          <TextInput label={say("models.of_job")} placeholder={say("models.of_job.all")} value={job} onChange={(event) => setJob(event.currentTarget.value)} />
          <NativeSelect label={say("models.stage")} value={stage} onChange={(event) => setStage(event.currentTarget.value)}
            data={[{ value: "", label: say("models.stage.any") }, ...STAGES.map((value) => ({ value, label: say(`state.${value}`) }))]} />
        </Group>
      )}
      <Section flush>
        <Listing
          queryKey={["models", settled, stage]}
          load={(cursor) => client.models({ job: settled, stage, cursor, limit: 50 })}
          label={say("nav.models")}
          id={(row) => row.id}
          empty={<Empty title={say("models.none")} hint={say(insider ? "models.none.hint" : "models.none.released")} icon={<IconCube stroke={1.5} />} />}
          columns={[
            {
              head: say("models.choose"),
              cell: (row) => <Checkbox aria-label={say("models.choose_this", { id: row.id })} checked={chosen.includes(row.id)} disabled={!chosen.includes(row.id) && chosen.length >= MOST}
                onChange={(event) => choose(row.id, event.currentTarget.checked)} />,
            },
            { head: say("model.version"), cell: (row) => <Link href={`/models/${encodeURIComponent(row.id)}`}>{row.id}</Link> },
            { head: say("models.stage"), cell: (row) => (row.stage ? <State of={row.stage} /> : "–") },
            { head: say("field.study"), cell: (row) => row.study },
            { head: say("model.metrics"), wide: true, cell: (row) => metrics(row) || "–" },
            { head: say("field.when"), cell: (row) => moment(row.created, language) },
          ]}
        />
      </Section>
    </Page>
  );
}
