import { NativeSelect, Stack, Text } from "@mantine/core";
import { IconBuildingBank, IconSend } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { bytes, figure, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Mark, Page, Section, type Tone } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { ArrivalView, PooledView, PoolView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";

const TONES: Readonly<Record<string, Tone>> = { preparing: "waiting", sent: "waiting", held: "good", withdrawn: "plain", deleted: "plain" };
const SENT: readonly string[] = ["sent", "held"]; // a copy is out: another one would need a withdrawal

function State({ of }: { of: string }) {
  const { say, knows } = useText();
  return <Mark tone={TONES[of] ?? "plain"}>{knows(`pool.state.${of}`) ? say(`pool.state.${of}`) : of}</Mark>;
}

/** What is asked, and who would get it. */
function Asked({ pool }: { pool: PoolView }) {
  const { say } = useText();
  return (
    <Section title={say("pool.asked")} hint={say(`pool.role.${pool.role === "other" ? "not_asked" : pool.role}`)}>
      <Facts items={[
        [say("study.data_centre"), pool.data_centre],
        [say("study.pooled"), pool.pooled.join(", ")],
        [say("pool.words"), pool.role === "asked" && (
          <Stack key="w" gap={2}>
            <span className="words">{pool.words || "–"}</span>
            <Text size="sm" className="quiet">{say(pool.words && pool.key === "pinned" ? "pool.words.hint" : pool.key === "changed" ? "pool.words.changed" : "pool.words.none")}</Text>
          </Stack>
        )],
        [say("pool.open"), pool.role === "data_centre" && say(pool.open ? "pool.open.yes" : "pool.open.no")],
      ]} />
    </Section>
  );
}

/** At the hospital: choose a dataset, see how it would leave, and let it. */
function Send({ pool }: { pool: PoolView }) {
  const { say, language } = useText();
  const client = useClient();
  const may = useMay("data_manager");
  const [chosen, setChosen] = useState("");
  const own = pool.copies.find((copy) => SENT.includes(copy.state));
  const found = pool.leaving.find((one) => one.dataset === chosen) ?? pool.leaving[0];
  const send = useChange((reason: string) =>
    client.sendCopy(pool.digest, { dataset: found?.dataset ?? "", to: pool.data_centre, reason }));
  const withdraw = useChange((reason: string) => client.withdrawCopy(pool.digest, { reason }));
  if (own) {
    return (
      <Section title={say("pool.out")} hint={say("pool.out.hint", { to: pool.data_centre })} actions={may && (
        <Confirm danger label={say("pool.withdraw")} title={say("pool.withdraw")} consequence={say("pool.withdraw.consequence", { to: pool.data_centre })} reason="required" act={withdraw.mutateAsync} />
      )}>
        <Text size="sm">{say("pool.out.what", { dataset: own.dataset, records: own.records })}</Text>
      </Section>
    );
  }
  if (!found) return <Section><Empty title={say("pool.nothing")} hint={say("pool.nothing.hint")} icon={<IconBuildingBank stroke={1.5} />} /></Section>;
  const ready = pool.state === "accepted" && pool.words !== "" && pool.key === "pinned" && found.problem === "";
  return (
    <Section title={say("pool.send.title")} hint={say("pool.send.hint")} actions={may && (
      <Confirm danger filled label={say("pool.send", { to: pool.data_centre })} title={say("pool.send", { to: pool.data_centre })} disabled={!ready}
        icon={<IconSend size={17} aria-hidden />} consequence={say("pool.send.consequence", { dataset: found.dataset, records: found.records, to: pool.data_centre })}
        reason="required" typed={pool.data_centre} act={send.mutateAsync} />
    )}>
      <Stack gap="md">
        {pool.leaving.length > 1 && (
          <NativeSelect maw={360} label={say("field.dataset")} value={found.dataset} data={pool.leaving.map((one) => one.dataset)} onChange={(event) => setChosen(event.currentTarget.value)} />
        )}
        <Facts items={[
          [say("field.dataset"), found.dataset],
          [say("field.records"), figure(found.records, language)],
          [say("pool.plan"), found.plan || say("pool.plan.none")],
          [say("pool.ids"), say("pool.ids.hint")],
        ]} />
        {found.problem && <Text size="sm">{found.problem}</Text>}
        {pool.state !== "accepted" && <Text size="sm">{say("pool.accept_first")}</Text>}
      </Stack>
    </Section>
  );
}

function Arrival({ pool, arrival }: { pool: PoolView; arrival: ArrivalView }) {
  const { say } = useText();
  const client = useClient();
  const take = useChange((reason: string) => client.takeCopy(pool.digest, { site: arrival.site, reason }));
  if (arrival.taken) return <Mark tone="plain">{say("pool.taken")}</Mark>;
  return (
    <Confirm filled label={say("pool.take")} title={say("pool.take")} consequence={say("pool.take.consequence", { site: arrival.site })} reason="required" act={take.mutateAsync} />
  );
}

/** At the data centre: open for copies, then take in what has arrived. */
function Centre({ pool }: { pool: PoolView }) {
  const { say, language } = useText();
  const client = useClient();
  const may = useMay("data_manager");
  const open = useChange((reason: string) => client.openPool(pool.digest, { reason }));
  const arrivals = useQuery({ queryKey: ["pool-arrivals", pool.digest], queryFn: () => client.poolArrivals(pool.digest), enabled: may && pool.open });
  if (!pool.open) {
    return (
      <Section title={say("pool.open.title")} hint={say("pool.open.hint")} actions={may && (
        <Confirm filled label={say("pool.open.act")} title={say("pool.open.act")} consequence={say("pool.open.consequence", { sites: pool.pooled.join(", ") })} reason="required"
          disabled={pool.state !== "accepted"} act={open.mutateAsync} />
      )}>
        {pool.state !== "accepted" && <Text size="sm">{say("pool.accept_first")}</Text>}
      </Section>
    );
  }
  if (!may) return null;
  return (
    <Section title={say("pool.arrivals")} hint={say("pool.arrivals.hint")} flush>
      <Answer query={arrivals}>
        {(data) => data.arrivals.length === 0 ? <Empty title={say("pool.arrivals.none")} icon={<IconBuildingBank stroke={1.5} />} /> : (
          <Rows label={say("pool.arrivals")} rows={data.arrivals} id={(row) => row.site} columns={[
            { head: say("field.site"), cell: (row) => row.site },
            { head: say("field.records"), right: true, cell: (row) => say("pool.about", { records: figure(row.records, language) }) },
            { head: say("field.size"), right: true, cell: (row) => bytes(row.bytes, language) },
            { head: say("field.actions"), cell: (row) => <Arrival pool={pool} arrival={row} /> },
          ]} />
        )}
      </Answer>
    </Section>
  );
}

function Copies({ copies }: { copies: readonly PooledView[] }) {
  const { say, language } = useText();
  if (copies.length === 0) return null;
  return (
    <Section title={say("pool.copies")} hint={say("pool.copies.hint")} flush>
      <Rows compact label={say("pool.copies")} rows={copies} id={(row) => row.site} columns={[
        { head: say("pool.whose"), cell: (row) => row.site },
        { head: say("field.state"), cell: (row) => <State of={row.state} /> },
        { head: say("field.dataset"), cell: (row) => row.dataset },
        { head: say("field.records"), right: true, cell: (row) => figure(row.records, language) },
        { head: say("pool.table"), cell: (row) => <span className="mono" title={row.digest}>{shortDigest(row.digest)}</span> },
        { head: say("field.decided"), wide: true, cell: (row) => `${moment(row.at, language)} · ${row.by}` },
      ]} />
    </Section>
  );
}

/** Copies of datasets at a study's data centre: what is asked, what leaves, and taking it back. */
export default function Pool({ digest }: { digest: string }) {
  const { say } = useText();
  const client = useClient();
  const pool = useQuery({ queryKey: ["pool", digest], queryFn: () => client.pool(digest), refetchInterval: 5_000 });
  return (
    <Page title={say("pool.title")} lead={say("pool.lead")} back={{ to: `/studies/${encodeURIComponent(digest)}`, label: pool.data?.study ?? say("field.study") }}>
      <Answer query={pool}>
        {(data) => data.role === "none" ? <Section><Empty title={say("pool.none")} icon={<IconBuildingBank stroke={1.5} />} /></Section> : (
          <Stack gap="lg">
            <Asked pool={data} />
            {data.role === "asked" && <Send pool={data} />}
            {data.role === "data_centre" && <Centre pool={data} />}
            <Copies copies={data.copies} />
          </Stack>
        )}
      </Answer>
    </Page>
  );
}
