import { Button, Progress, Stack, Text } from "@mantine/core";
import { IconDownload, IconShieldLock } from "@tabler/icons-react";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";

import { figure, moment, percent } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { More } from "../../shared/ui/more";
import { Page, Section } from "../../shared/ui/page";
import { Answer, Empty, Failure, Waiting } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { Verify } from "../verify";
import type { AccountStanding } from "../api/schema";
import { useClient, useMay } from "../api/use";
import { CapForm, DropCap, Proposals } from "./caps";
import { Restore } from "./restore";

function Used({ account }: { account: AccountStanding }) {
  const { say, language } = useText();
  if (account.used === null || account.cap === null) return <span className="quiet">{say("ledger.no_cap")}</span>;
  return (
    <Stack gap={2} miw={120}>
      <Progress value={account.used * 100} color={account.used > 0.9 ? "brick" : account.used > 0.7 ? "amber" : "teal"} aria-label={say("ledger.used")} />
      <Text size="xs" className="figures">{say("ledger.used.of", { used: percent(account.used, language), cap: figure(account.cap, language) })}</Text>
    </Stack>
  );
}

function Entries() {
  const { say, language } = useText();
  const client = useClient();
  const pages = useInfiniteQuery({
    queryKey: ["ledger-entries"],
    queryFn: ({ pageParam }) => client.ledgerEntries({ before: pageParam, limit: 30 }),
    initialPageParam: null as number | null,
    getNextPageParam: (last) => last.next,
  });
  if (pages.isPending) return <Waiting />;
  if (pages.isError) return <Failure error={pages.error} retry={() => void pages.refetch()} />;
  const entries = pages.data.pages.flatMap((page) => page.entries);
  if (entries.length === 0) return <Empty title={say("ledger.no_entries")} />;
  return (
    <>
      <Rows compact label={say("ledger.entries")} rows={entries} id={(row) => row.seq} columns={[
        { head: say("field.when"), cell: (row) => moment(row.at, language) },
        { head: say("ledger.entry"), cell: (row) => row.kind },
        { head: say("field.study"), cell: (row) => row.study || "–" },
        { head: say("field.dataset"), cell: (row) => row.dataset || "–" },
        { head: "ε", right: true, cell: (row) => figure(row.epsilon, language) },
        { head: say("field.detail"), wide: true, cell: (row) => row.detail },
      ]} />
      <More shown={pages.hasNextPage} busy={pages.isFetchingNextPage} load={() => void pages.fetchNextPage()} />
    </>
  );
}

export default function Ledger() {
  const { say, language } = useText();
  const client = useClient();
  const mayCap = useMay("data_manager");
  const ledger = useQuery({ queryKey: ["ledger"], queryFn: client.ledger });
  const capColumn = mayCap ? [{ head: say("field.actions"), cell: (row: AccountStanding) => <DropCap account={row} /> }] : [];
  return (
    <Page title={say("nav.ledger")} lead={say("ledger.lead")} actions={
      <>
        {mayCap && ledger.data && <CapForm ledger={ledger.data} />}
        <Button component="a" href="/api/ledger/export" download variant="default" leftSection={<IconDownload size={17} aria-hidden />}>CSV</Button>
      </>
    }>
      <Answer query={ledger}>
        {(data) => (
          <Stack gap="lg">
            <Restore ledger={data} />
            <Proposals ledger={data} />
            <Section title={say("ledger.accounts")} flush>
              {data.accounts.length === 0 ? (
                <Empty title={say("ledger.none")} hint={say("ledger.none.hint")} icon={<IconShieldLock stroke={1.5} />} />
              ) : (
                <Rows label={say("ledger.accounts")} rows={data.accounts} id={(row) => `${row.kind} ${row.name}`} columns={[
                  { head: say("ledger.kind"), cell: (row) => say(`account.${row.kind}`) },
                  { head: say("field.name"), cell: (row) => row.name },
                  { head: say("ledger.spent"), right: true, cell: (row) => figure(row.epsilon, language) },
                  { head: "δ", right: true, cell: (row) => row.delta.toExponential(0) },
                  { head: say("ledger.used"), cell: (row) => <Used account={row} /> },
                  { head: say("ledger.open"), right: true, cell: (row) => row.open },
                  ...capColumn,
                ]} />
              )}
            </Section>
            <Section title={say("ledger.entries")} flush><Entries /></Section>
            <Verify title={say("ledger.verify")} hint={say("verify.hint")} run={client.verifyLedger} />
          </Stack>
        )}
      </Answer>
      <Text size="sm" className="quiet">{say("ledger.note")}</Text>
    </Page>
  );
}
