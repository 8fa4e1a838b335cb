import { Group, NavLink, Stack, Tabs, Text } from "@mantine/core";
import { IconFile, IconFlag } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { day, moment, shortDigest } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { SideBySide, Source } from "../../shared/ui/code";
import { Confirm } from "../../shared/ui/confirm";
import { Facts, Mark, Page, Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { PlanView } from "../api/schema";
import { useChange, useClient, useMay } from "../api/use";
import { Approve } from "./approve-plan";
import { DryRun } from "./dry-run";
import { Decision } from "./studies";

/** Whether a finding asks for a decision; a note only tells. */
function isGrave(finding: PlanView["findings"][number]): boolean {
  return finding.severity !== "note";
}

function Files({ plan }: { plan: PlanView }) {
  const { say } = useText();
  const [chosen, setChosen] = useState(plan.entry.split(":")[0] ?? "");
  const file = plan.files.find((one) => one.path === chosen) ?? plan.files[0];
  if (!file) return <Empty title={say("plan.no_files")} />;
  const remarks = plan.findings
    .filter((finding) => finding.file === file.path)
    .map((finding) => ({ line: finding.line, text: finding.what, grave: isGrave(finding) }));
  return (
    <Section flush title={say("plan.files")} hint={say("plan.files.hint", { count: plan.findings.filter(isGrave).length })}>
      <Group align="stretch" gap={0} wrap="nowrap" className="plan-files">
        <Stack gap={2} p="sm" miw={190} component="nav" aria-label={say("plan.files")} style={{ borderRight: "1px solid var(--line)" }}>
          {plan.files.map((one) => {
            const count = plan.findings.filter((finding) => finding.file === one.path && isGrave(finding)).length;
            return (
              <NavLink key={one.path} component="button" type="button" label={one.path} active={one.path === file.path} onClick={() => setChosen(one.path)}
                leftSection={<IconFile size={17} stroke={1.6} aria-hidden />} style={{ borderRadius: 8 }}
                rightSection={count > 0 && <Mark tone="waiting"><IconFlag size={12} aria-hidden /> {count}</Mark>} />
            );
          })}
        </Stack>
        <div style={{ flex: 1, minWidth: 0 }} className="source-pane"><Source label={file.path} text={file.text} remarks={remarks} /></div>
      </Group>
    </Section>
  );
}

function Differences({ plan }: { plan: PlanView }) {
  const { say, knows } = useText();
  const client = useClient();
  const diff = useQuery({ queryKey: ["plans", plan.summary.digest, "diff"], queryFn: () => client.planDiff(plan.summary.digest) });
  return (
    <Answer query={diff}>
      {(data) => (
        <Stack>
          <Text className="quiet">{data.against ? say("plan.against", { digest: shortDigest(data.against) }) : say("plan.against.none")}</Text>
          {data.files.map((file) => (
            <Section key={file.path} flush title={file.path} actions={<Mark tone={file.state === "same" ? "plain" : "waiting"}>{knows(`diff.${file.state}`) ? say(`diff.${file.state}`) : file.state}</Mark>}>
              <SideBySide label={file.path} rows={file.lines} />
            </Section>
          ))}
        </Stack>
      )}
    </Answer>
  );
}

function About({ plan }: { plan: PlanView }) {
  const { say, language } = useText();
  const { summary } = plan;
  return (
    <Stack gap="lg">
      <Section>
        <Facts items={[
          [say("field.description"), plan.description],
          [say("plan.author"), summary.author],
          [say("field.offered"), moment(summary.offered, language)],
          [say("plan.for"), summary.offered_for.join(", ")],
          [say("plan.entry"), <span key="e" className="mono">{plan.entry}</span>],
          [say("plan.requirements"), plan.requirements.join(", ") || say("plan.requirements.none")],
          [say("field.digest"), <span key="d" className="mono">{summary.digest}</span>],
          [say("plan.needed"), plan.reviewers_needed > 1 && [say("plan.needed.of", { count: plan.reviewers.length, needed: plan.reviewers_needed }), ...plan.reviewers].join(" · ")],
          [say("plan.reviewer"), summary.reviewer && `${summary.reviewer} · ${moment(summary.decided, language)}`],
          [say("field.reason"), summary.reason],
          [say("field.until"), summary.until && day(summary.until, language)],
          [say("plan.only_studies"), plan.studies.join(", ")],
        ]} />
      </Section>
      <Section flush title={say("plan.arguments")} hint={say("plan.arguments.hint")}>
        {plan.arguments.length === 0 ? <Empty title={say("plan.arguments.none")} /> : (
          <Rows compact label={say("plan.arguments")} rows={plan.arguments} id={(row) => row.name} columns={[
            { head: say("field.name"), cell: (row) => <span className="mono">{row.name}</span> },
            { head: say("plan.default"), right: true, cell: (row) => (row.default === null ? "–" : String(row.default)) },
            { head: say("plan.site_range"), cell: (row) => row.site_range || "–" },
            { head: say("plan.approved_range"), cell: (row) => row.approved || "–" },
          ]} />
        )}
      </Section>
    </Stack>
  );
}

/** Read a training plan, compare it, try it, decide. */
export default function Plan({ digest }: { digest: string }) {
  const { say } = useText();
  const client = useClient();
  const mayReview = useMay("reviewer");
  const plan = useQuery({ queryKey: ["plans", digest], queryFn: () => client.plan(digest) });
  const [seen, setSeen] = useState(""); // as it was when the person began to decide
  const reject = useChange((reason: string) => client.rejectPlan(digest, { reason, seen }));
  const revoke = useChange((reason: string) => client.revokePlan(digest, { reason }));
  const state = plan.data?.summary.state;
  const actions = mayReview && plan.data && (
    <>
      {state === "approved" ? (
        <Confirm label={say("plan.revoke")} title={say("plan.revoke")} consequence={say("plan.revoke.consequence")} reason="required" danger act={(reason) => revoke.mutateAsync(reason)} />
      ) : (
        <>
          {state === "pending" && <Confirm label={say("plan.reject")} title={say("plan.reject")} consequence={say("plan.reject.consequence")} reason="required" danger opened={() => setSeen(plan.data.mark)} act={(reason) => reject.mutateAsync(reason)} />}
          <Approve plan={plan.data} />
        </>
      )}
    </>
  );
  return (
    <Page title={plan.data?.summary.name ?? say("field.plan")} back={{ to: "/plans", label: say("nav.plans") }} badge={state && <Decision state={state} />} actions={actions}>
      <Answer query={plan}>
        {(data) => (
          <Tabs defaultValue="files" keepMounted={false}>
            <Tabs.List mb="lg">
              <Tabs.Tab value="files">{say("plan.files")}</Tabs.Tab>
              <Tabs.Tab value="diff">{say("plan.diff")}</Tabs.Tab>
              <Tabs.Tab value="about">{say("tab.about")}</Tabs.Tab>
              {mayReview && <Tabs.Tab value="try">{say("plan.try")}</Tabs.Tab>}
            </Tabs.List>
            <Tabs.Panel value="files"><Files plan={data} /></Tabs.Panel>
            <Tabs.Panel value="diff"><Differences plan={data} /></Tabs.Panel>
            <Tabs.Panel value="about"><About plan={data} /></Tabs.Panel>
            <Tabs.Panel value="try"><DryRun digest={digest} /></Tabs.Panel>
          </Tabs>
        )}
      </Answer>
    </Page>
  );
}
