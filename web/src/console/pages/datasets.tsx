import { Button, Group } from "@mantine/core";
import { IconDatabase, IconPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { bytes, figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { DatasetView } from "../api/schema";
import { useClient, useMay } from "../api/use";

export function DatasetState({ dataset }: { dataset: DatasetView }) {
  const { say } = useText();
  if (!dataset.enabled) return <Mark tone="plain">{say("dataset.disabled")}</Mark>;
  if (dataset.problem || dataset.unfit.length > 0) return <Mark tone="bad">{say("dataset.trouble")}</Mark>;
  return <Mark tone="good">{say("dataset.ready")}</Mark>;
}

export default function Datasets() {
  const { say, language } = useText();
  const client = useClient();
  const mayAdd = useMay("data_manager");
  const datasets = useQuery({ queryKey: ["datasets"], queryFn: client.datasets });
  const add = mayAdd && (
    <Button component={Link} href="/datasets/add" leftSection={<IconPlus size={17} aria-hidden />}>{say("dataset.add")}</Button>
  );
  return (
    <Page title={say("nav.datasets")} lead={say("datasets.lead")} actions={add}>
      <Section flush>
        <Answer query={datasets}>
          {(data) =>
            data.datasets.length === 0 ? (
              <Empty title={say("datasets.none")} hint={say("datasets.none.hint")} icon={<IconDatabase stroke={1.5} />}>{add}</Empty>
            ) : (
              <Rows
                label={say("nav.datasets")} rows={data.datasets} id={(row) => row.name}
                columns={[
                  { head: say("field.name"), cell: (row) => <Link href={`/datasets/${encodeURIComponent(row.name)}`}>{row.name}</Link> },
                  { head: say("field.state"), cell: (row) => <DatasetState dataset={row} /> },
                  { head: say("field.tags"), cell: (row) => <Group gap={4}>{row.tags.map((tag) => <Mark key={tag} tone="plain">{tag}</Mark>)}</Group> },
                  { head: say("field.records"), right: true, cell: (row) => figure(row.records, language) },
                  { head: say("field.columns"), right: true, cell: (row) => row.columns.length },
                  { head: say("field.size"), right: true, cell: (row) => bytes(row.bytes, language) },
                ]}
              />
            )
          }
        </Answer>
      </Section>
    </Page>
  );
}
