import { IconUsersGroup } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { day, moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Mark, Page, Section, type Tone } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { useClient } from "../api/use";

const TONES: Readonly<Record<string, Tone>> = {
  pending: "waiting", accepted: "good", approved: "good", declined: "bad", rejected: "bad", revoked: "bad", left: "plain", expired: "plain",
};

/** A decision's state in words and colour; a state that this page does not know is shown as it is. */
export function Decision({ state }: { state: string }) {
  const { say, knows } = useText();
  const key = `decision.${state}`;
  return <Mark tone={TONES[state] ?? "plain"}>{knows(key) ? say(key) : state}</Mark>;
}

export default function Studies() {
  const { say, language } = useText();
  const client = useClient();
  const studies = useQuery({ queryKey: ["studies"], queryFn: client.studies });
  return (
    <Page title={say("nav.studies")} lead={say("studies.lead")}>
      <Section flush>
        <Answer query={studies}>
          {(data) =>
            data.studies.length === 0 ? (
              <Empty title={say("studies.none")} hint={say("studies.none.hint")} icon={<IconUsersGroup stroke={1.5} />} />
            ) : (
              <Rows label={say("nav.studies")} rows={data.studies} id={(row) => row.digest} columns={[
                { head: say("field.study"), cell: (row) => <Link href={`/studies/${encodeURIComponent(row.digest)}`}>{row.name}</Link> },
                { head: say("field.state"), cell: (row) => <Decision state={row.state} /> },
                { head: say("study.purpose"), wide: true, cell: (row) => row.purpose },
                { head: say("field.sites"), right: true, cell: (row) => row.sites.length },
                { head: say("field.offered"), cell: (row) => moment(row.offered, language) },
                { head: say("field.until"), cell: (row) => day(row.until, language) },
              ]} />
            )
          }
        </Answer>
      </Section>
    </Page>
  );
}
