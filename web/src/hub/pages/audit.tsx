import { Alert, Button, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconBook2, IconCircleCheck, IconDownload } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";

import { useServer } from "../../shared/api/server";
import { figure, moment, shortDigest, withShortDigests } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Mark, Page, Section } from "../../shared/ui/page";
import { Empty, Failure } from "../../shared/ui/states";
import { download } from "../api/client";
import { useClient } from "../api/use";
import { Listing } from "../ui/listing";

/** Recompute the chain from its first line, and say where it breaks if it does. */
function Verify() {
  const { say, language } = useText();
  const client = useClient();
  const verify = useMutation({ mutationFn: client.verifyAudit });
  const result = verify.data;
  return (
    <Section title={say("audit.verify")} hint={say("verify.hint")} actions={<Button variant="default" loading={verify.isPending} onClick={() => verify.mutate()}>{say("verify.run")}</Button>}>
      <div role="status">
        {verify.isError && <Failure error={verify.error} />}
        {!result && !verify.isError && <Text size="sm" className="quiet">{say("verify.idle")}</Text>}
        {result && (
          <Alert color={result.intact ? "teal" : "brick"} icon={result.intact ? <IconCircleCheck aria-hidden /> : <IconAlertTriangle aria-hidden />}
            title={result.intact ? say("verify.whole", { lines: figure(result.lines, language) }) : say("verify.broken", { line: figure(result.broken_at ?? 0, language) })}>
            <Stack gap={2}>
              {result.reason && <Text size="sm">{result.reason}</Text>}
              <Text className="mono" style={{ overflowWrap: "anywhere" }}>{result.head}</Text>
            </Stack>
          </Alert>
        )}
      </div>
    </Section>
  );
}

function Export({ format }: { format: "csv" | "json" }) {
  const server = useServer();
  const fetching = useMutation({ mutationFn: () => download(server, `/api/v1/audit/export?format=${format}`, `audit.${format}`) });
  return <Button variant="default" loading={fetching.isPending} onClick={() => fetching.mutate()} leftSection={<IconDownload size={17} aria-hidden />}>{format.toUpperCase()}</Button>;
}

export default function Audit() {
  const { say, language } = useText();
  const client = useClient();
  return (
    <Page title={say("nav.audit")} lead={say("audit.lead")} actions={<><Export format="csv" /><Export format="json" /></>}>
      <Verify />
      <Section flush>
        <Listing
          compact
          queryKey={["audit"]}
          load={(cursor) => client.audit({ before: cursor ?? "0", limit: 100 })}
          label={say("nav.audit")}
          id={(row) => row.seq}
          empty={<Empty title={say("audit.none")} icon={<IconBook2 stroke={1.5} />} />}
          columns={[
            { head: "#", right: true, cell: (row) => figure(row.seq, language) },
            { head: say("field.when"), cell: (row) => moment(row.at, language) },
            { head: say("field.who"), cell: (row) => row.actor },
            { head: say("audit.action"), cell: (row) => row.action },
            { head: say("audit.subject"), wide: true, cell: (row) => <span title={row.subject}>{row.subject.includes(":") ? shortDigest(row.subject) : row.subject}</span> },
            { head: say("field.outcome"), cell: (row) => <Mark tone={row.outcome === "done" ? "plain" : "bad"}>{row.outcome}</Mark> },
            { head: say("field.detail"), wide: true, cell: (row) => <span title={row.detail}>{withShortDigests(row.detail)}</span> },
          ]}
        />
      </Section>
    </Page>
  );
}
