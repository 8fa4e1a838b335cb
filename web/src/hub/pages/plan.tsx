import { Tabs, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Source } from "../../shared/ui/code";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer } from "../../shared/ui/states";
import { useClient } from "../api/use";

/** A training plan as its sites review it: text, never run at the hub. */
export default function Plan({ digest }: { digest: string }) {
  const { say, language } = useText();
  const client = useClient();
  const plan = useQuery({ queryKey: ["plan", digest], queryFn: () => client.plan(digest) });
  return (
    <Page title={plan.data?.name ?? say("plan.title")} lead={plan.data?.plan?.description}
      {...(plan.data ? { back: { to: `/studies/${encodeURIComponent(plan.data.study)}`, label: plan.data.study } } : {})}>
      <Answer query={plan}>
        {(view) => {
          const files = Object.entries(view.plan?.files ?? {});
          return (
            <>
              <Section>
                <Facts items={[
                  [say("field.digest"), <span key="d" className="mono">{view.digest}</span>],
                  [say("field.author"), view.author],
                  [say("field.when"), moment(view.created, language)],
                  [say("plan.entry"), view.plan?.entry],
                  [say("plan.requirements"), view.plan?.requirements?.join(", ")],
                  [say("study.approved_by"), view.approved.join(", ") || "–"],
                ]} />
              </Section>
              {files.length > 0 && (
                <Section flush>
                  <Tabs defaultValue={files[0]?.[0] ?? ""} keepMounted={false}>
                    <Tabs.List>{files.map(([path]) => <Tabs.Tab key={path} value={path}><Text span className="mono">{path}</Text></Tabs.Tab>)}</Tabs.List>
                    {files.map(([path, text]) => <Tabs.Panel key={path} value={path} py="sm"><Source label={path} text={text} /></Tabs.Panel>)}
                  </Tabs>
                </Section>
              )}
            </>
          );
        }}
      </Answer>
    </Page>
  );
}
