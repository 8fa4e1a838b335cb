import { Button, Stack, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { day, figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Mark, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { DatasetView, MockColumnView, MockView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { PreviewTable } from "./dataset";

const MILLISECONDS = 86_400_000; // of a day
const SHOWN = 8; // levels named in one line

function Told({ column }: { column: MockColumnView }) {
  const { say, language } = useText();
  const levels = Object.entries(column.levels);
  if (levels.length > 0) {
    const more = levels.length - SHOWN;
    return <>{levels.slice(0, SHOWN).map(([level, count]) => `${level}: ${figure(count, language)}`).join(", ")}{more > 0 && ` ${say("profile.more", { count: more })}`}</>;
  }
  if (column.counts.length === 0) return <span className="quiet">{say("mock.silent")}</span>;
  const end = column.start + column.width * column.counts.length;
  const dated = column.type === "date" || column.type === "timestamp"; // then numbers are days since 1970
  const shown = (edge: number) => (dated ? day(new Date(edge * MILLISECONDS).toISOString(), language) : figure(edge, language));
  const width = dated ? say("mock.days", { count: column.width }) : figure(column.width, language);
  return <>{say("mock.bins", { count: column.counts.length, from: shown(column.start), to: shown(end), width })}</>;
}

function Decision({ dataset, twin }: { dataset: DatasetView; twin: MockView }) {
  const { say } = useText();
  const client = useClient();
  const mayDecide = useMay("data_manager");
  const change = useChange((mock: boolean) => client.changeDataset(dataset.name, { mock }));
  const actions = mayDecide && (dataset.mock
    ? <Confirm label={say("mock.withdraw")} title={say("mock.withdraw")} consequence={say("mock.withdraw.consequence")} danger act={() => change.mutateAsync(false)} />
    : <Button loading={change.isPending} disabled={twin.problem !== ""} onClick={() => change.mutate(true)}>{say("mock.offer")}</Button>);
  return (
    <Section title={say(dataset.mock ? "mock.offered" : "mock.kept")} hint={say(dataset.mock ? "mock.offered.hint" : "mock.kept.hint")} actions={actions}>
      <Stack gap="sm">
        <Text size="sm" className="quiet">{say("mock.k", { k: twin.k })}</Text>
        {twin.problem && <Failure error={new Error(twin.problem)} />}
        {change.isError && <Failure error={change.error} />}
      </Stack>
    </Section>
  );
}

/** Whether the twin is also told as loading plans make the table: a decision of its own. */
function Loaded({ dataset, twin }: { dataset: DatasetView; twin: MockView }) {
  const { say } = useText();
  const client = useClient();
  const mayDecide = useMay("data_manager");
  const change = useChange((told: boolean) => client.changeDataset(dataset.name, { mock_loaded: told }));
  if (!dataset.mock) return null;
  const actions = mayDecide && (
    <Button variant="default" loading={change.isPending} onClick={() => change.mutate(!twin.as_loaded)}>
      {say(twin.as_loaded ? "mock.loaded.withdraw" : "mock.loaded.offer")}
    </Button>
  );
  return (
    <Section title={say("mock.loaded")} hint={say("mock.loaded.hint")} actions={actions} flush={twin.loaded.length > 0}>
      {change.isError && <Failure error={change.error} />}
      {twin.loaded.length === 0 && <Text size="sm" className="quiet">{say("mock.loaded.none")}</Text>}
      {twin.loaded.length > 0 && (
        <Rows compact label={say("mock.loaded")} rows={twin.loaded} id={(row) => row.study} columns={[
          { head: say("mock.loaded.plan"), cell: (row) => `${row.plan} ${row.version}` },
          { head: say("field.study"), cell: (row) => row.study || say("mock.loaded.every") },
          { head: say("field.state"), cell: (row) => <Mark tone={row.problem ? "plain" : "good"}>{say(row.problem ? "mock.loaded.kept" : "mock.loaded.told")}</Mark> },
          { head: say("mock.loaded.why"), wide: true, cell: (row) => (twin.as_loaded && row.problem) || "–" },
        ]} />
      )}
    </Section>
  );
}

/** The mock twin: all that the consortium would get, and records invented from it. */
export function MockTwin({ dataset }: { dataset: DatasetView }) {
  const { say, language } = useText();
  const client = useClient();
  const twin = useQuery({ queryKey: ["mock", dataset.name], queryFn: () => client.mockTwin(dataset.name) });
  return (
    <Answer query={twin}>
      {(data) => (
        <Stack gap="lg">
          <Decision dataset={dataset} twin={data} />
          <Loaded dataset={dataset} twin={data} />
          <Section title={say("mock.tells")} hint={say("mock.tells.hint")} flush>
            <Rows compact label={say("mock.tells")} rows={data.columns} id={(row) => row.name} columns={[
              { head: say("column.name"), cell: (row) => row.name },
              { head: say("column.type"), cell: (row) => <span className="mono">{row.type}</span> },
              { head: say("column.role"), cell: (row) => <Mark tone="plain">{say(`column.role.${row.role || "none"}`)}</Mark> },
              { head: say("column.unit"), cell: (row) => row.unit || "–" },
              { head: say("column.absent"), right: true, cell: (row) => figure(row.absent, language) },
              { head: say("mock.told"), wide: true, cell: (row) => <Told column={row} /> },
            ]} />
          </Section>
          <Section title={say("mock.invented")} hint={say("mock.invented.hint")} flush>
            <PreviewTable preview={data.invented} label={say("mock.invented")} />
          </Section>
        </Stack>
      )}
    </Answer>
  );
}
