import { IconFileCheck } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "wouter";

import { moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Page, Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import { useClient } from "../api/use";
import { Decision } from "./studies";

export default function Plans() {
  const { say, language } = useText();
  const client = useClient();
  const plans = useQuery({ queryKey: ["plans"], queryFn: client.plans });
  return (
    <Page title={say("nav.plans")} lead={say("plans.lead")}>
      <Section flush>
        <Answer query={plans}>
          {(data) =>
            data.plans.length === 0 ? (
              <Empty title={say("plans.none")} hint={say("plans.none.hint")} icon={<IconFileCheck stroke={1.5} />} />
            ) : (
              <Rows label={say("nav.plans")} rows={data.plans} id={(row) => row.digest} columns={[
                { head: say("field.plan"), cell: (row) => <Link href={`/plans/${encodeURIComponent(row.digest)}`}>{row.name}</Link> },
                { head: say("field.state"), cell: (row) => <Decision state={row.state} /> },
                { head: say("plan.author"), cell: (row) => row.author },
                { head: say("field.digest"), cell: (row) => <span className="mono" title={row.digest}>{shortDigest(row.digest)}</span> },
                { head: say("field.offered"), cell: (row) => moment(row.offered, language) },
                { head: say("plan.reviewer"), cell: (row) => row.reviewer || "–" },
              ]} />
            )
          }
        </Answer>
      </Section>
    </Page>
  );
}
