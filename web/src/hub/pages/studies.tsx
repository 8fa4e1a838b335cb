import { Button } from "@mantine/core";
import { IconPlus, IconUsersGroup } from "@tabler/icons-react";
import { Link } from "wouter";

import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Empty } from "../../shared/ui/states";
import { useClient, useMay } from "../api/use";
import { Listing } from "../ui/listing";
import { State } from "../ui/marks";

export default function Studies() {
  const { say } = useText();
  const client = useClient();
  const mayWrite = useMay("operator", "researcher");
  return (
    <Page title={say("nav.studies")} lead={say("studies.lead")} actions={mayWrite && (
      <Button component={Link} href="/studies/new" leftSection={<IconPlus size={17} aria-hidden />}>{say("study.new")}</Button>
    )}>
      <Section flush>
        <Listing
          queryKey={["studies"]}
          load={(cursor) => client.studies({ cursor, limit: 50 })}
          label={say("nav.studies")}
          id={(row) => row.study.name}
          empty={<Empty title={say("studies.none")} hint={say("studies.none.hint")} icon={<IconUsersGroup stroke={1.5} />} />}
          columns={[
            { head: say("field.name"), cell: (row) => <Link href={`/studies/${encodeURIComponent(row.study.name)}`}>{row.study.name}</Link> },
            { head: say("field.state"), cell: (row) => <State of={row.state} /> },
            { head: say("study.purpose"), wide: true, cell: (row) => row.study.purpose },
            { head: say("study.accepted"), right: true, cell: (row) => say("home.of", { part: Object.values(row.sites).filter((state) => state === "accepted").length, all: Object.keys(row.sites).length }) },
            { head: say("field.author"), cell: (row) => row.author },
          ]}
        />
      </Section>
    </Page>
  );
}
