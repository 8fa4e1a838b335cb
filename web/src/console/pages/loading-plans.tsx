import { Button, Group, TextInput } from "@mantine/core";
import { IconPlus, IconRoute } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { Link, useLocation } from "wouter";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { useClient, useMay } from "../api/use";

function NewPlan() {
  const { say } = useText();
  const [, go] = useLocation();
  const [name, setName] = useState("");
  function open(event: SyntheticEvent) {
    event.preventDefault();
    go(`/loading-plans/${encodeURIComponent(name)}`);
  }
  return (
    <form onSubmit={open}>
      <Group align="flex-end">
        <TextInput label={say("loading.name")} value={name} required pattern="[a-z0-9][a-z0-9_.\-]*" title={say("loading.name.hint")}
          onChange={(event) => setName(event.currentTarget.value)} />
        <Button type="submit" leftSection={<IconPlus size={17} aria-hidden />}>{say("loading.new")}</Button>
      </Group>
    </form>
  );
}

export default function LoadingPlans() {
  const { say, language } = useText();
  const client = useClient();
  const mayEdit = useMay("data_manager");
  const plans = useQuery({ queryKey: ["loading-plans"], queryFn: client.loadingPlans });
  return (
    <Page title={say("nav.loading")} lead={say("loading.lead")} actions={mayEdit && <NewPlan />}>
      <Section flush>
        <Answer query={plans}>
          {(data) =>
            data.plans.length === 0 ? (
              <Empty title={say("loading.none")} hint={say("loading.none.hint")} icon={<IconRoute stroke={1.5} />} />
            ) : (
              <Rows label={say("nav.loading")} rows={data.plans} id={(row) => row.name} columns={[
                { head: say("field.name"), cell: (row) => <Link href={`/loading-plans/${encodeURIComponent(row.name)}`}>{row.name}</Link> },
                { head: say("field.version"), cell: (row) => row.version },
                { head: say("loading.attached"), wide: true, cell: (row) => row.attached.map((at) => (at.study ? `${at.dataset} (${at.study})` : at.dataset)).join(", ") || "–" },
                { head: say("field.saved"), cell: (row) => `${moment(row.at, language)} · ${row.by}` },
              ]} />
            )
          }
        </Answer>
      </Section>
    </Page>
  );
}
