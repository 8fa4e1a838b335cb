import { Button, SimpleGrid, Stack, Text, Title } from "@mantine/core";
import { IconChartHistogram } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";

import { Problem } from "../../shared/api/request";
import { day, figure, percent } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Histogram, Levels } from "../../shared/ui/histogram";
import { Facts, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import type { ProfileColumn, ProfileView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";

const DAY = 86_400; // seconds; dates come as days since 1970

function ColumnCard({ column, records }: { column: ProfileColumn; records: number }) {
  const { say, language } = useText();
  const dated = column.type === "date" || column.type === "timestamp";
  const value = (number: number | null | undefined) =>
    number === null || number === undefined ? null : dated ? day(number * DAY, language) : figure(number, language);
  const bins = column.cells.flatMap((cell) => (cell.low !== null && cell.high !== null ? [{ low: cell.low, high: cell.high, records: cell.records }] : []));
  const levels = column.cells.filter((cell) => cell.low === null);
  return (
    <div className="surface" style={{ padding: "1rem 1.1rem", overflow: "hidden" }}>
      <Stack gap="sm">
        <div>
          <Title order={3} size="0.98rem" style={{ overflowWrap: "anywhere" }}>{column.name}</Title>
          <Text size="xs" className="quiet"><span className="mono">{column.type}</span> · {say("profile.missing")}: {percent(records > 0 ? column.missing / records : 0, language)}</Text>
        </div>
        {bins.length > 1 ? <Histogram bins={bins} label={say("profile.chart", { name: column.name })} {...(dated ? { written: (days: number) => day(days * DAY, language) } : {})} /> : <Levels levels={levels} total={records} />}
        <Facts items={[
          [say("profile.mean"), dated ? null : value(column.mean)],
          [say("profile.sd"), dated ? null : value(column.sd)],
          [say("profile.median"), value(column.quantiles[2])],
          [say("profile.distinct"), figure(column.distinct, language)],
        ]} />
      </Stack>
    </div>
  );
}

function Columns({ profile }: { profile: ProfileView }) {
  const { say, language } = useText();
  return (
    <Stack gap="lg">
      <Section hint={say("profile.hint")} title={say("dataset.profile")}>
        <Facts items={[
          [say("field.records"), figure(profile.records, language)],
          [say("profile.patients"), figure(profile.patients, language)],
        ]} />
      </Section>
      <SimpleGrid cols={{ base: 1, sm: 2, lg: 3 }}>
        {profile.columns.map((column) => <ColumnCard key={column.name} column={column} records={profile.records} />)}
      </SimpleGrid>
    </Stack>
  );
}

/** What every column holds, drawn. */
export function Profile({ name }: { name: string }) {
  const { say } = useText();
  const client = useClient();
  const profile = useQuery({ queryKey: ["profile", name], queryFn: () => client.profile(name), gcTime: 0 });
  const mayRefresh = useMay("data_manager");
  const refresh = useChange(() => client.refreshDataset(name));
  if (profile.error instanceof Problem && profile.error.status === 404) {
    return (
      <Section>
        <Empty title={say("profile.none")} hint={profile.error.message} icon={<IconChartHistogram stroke={1.5} />}>
          {mayRefresh && <Button loading={refresh.isPending} onClick={() => refresh.mutate(undefined)}>{say("dataset.refresh")}</Button>}
        </Empty>
        {refresh.isError && <Failure error={refresh.error} />}
      </Section>
    );
  }
  return <Answer query={profile} lines={8}>{(data) => <Columns profile={data} />}</Answer>;
}
