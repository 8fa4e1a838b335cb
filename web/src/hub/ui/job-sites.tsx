import { Progress, Text } from "@mantine/core";

import { percent } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Rows } from "../../shared/ui/table";
import type { JobView } from "../api/schema";
import { STEPS, type Live, type Step } from "../model/happenings";
import { State } from "./marks";

/** The steps of the open round: five where sites mask their updates, one where they do not. */
export function Phases({ job, live }: { job: JobView; live: Live }) {
  const { say } = useText();
  const masked = STEPS.some((step) => step !== "update" && live.spoken[step] !== undefined);
  const steps: readonly Step[] = masked ? STEPS : ["update"];
  const reached = steps.reduce((last, step, index) => ((live.spoken[step]?.length ?? 0) > 0 ? index : last), 0);
  const closing = job.state === "closing";
  return (
    <ol className="steps">
      {steps.map((step, index) => {
        const count = live.spoken[step]?.length ?? 0;
        const state = closing || index < reached ? "done" : index === reached ? "now" : "next";
        return (
          <li key={step} data-state={state} {...(state === "now" ? { "aria-current": "step" as const } : {})}>
            <Text size="sm" fw={560}>{say(`step.${step}`)}</Text>
            <Text size="xs" className="quiet">{say("step.sites", { count })}</Text>
          </li>
        );
      })}
      <li data-state={closing ? "now" : "next"}>
        <Text size="sm" fw={560}>{say("step.close")}</Text>
        <Text size="xs" className="quiet">{say("step.close.hint")}</Text>
      </li>
    </ol>
  );
}

/** What each site does now, and how far it is. */
export function SitesNow({ job, live }: { job: JobView; live: Live }) {
  const { say, language } = useText();
  const rows = Object.entries(job.sites).sort(([a], [b]) => a.localeCompare(b));
  return (
    <Rows label={say("job.sites")} rows={rows} id={([site]) => site} compact columns={[
      { head: say("field.site"), cell: ([site]) => <Text fw={560} size="sm">{site}</Text> },
      { head: say("field.state"), cell: ([, state]) => <State of={state} /> },
      {
        head: say("job.task"), wide: true,
        cell: ([site, state]) => {
          const done = live.fractions[site] ?? job.progress[site];
          if (state !== "training" || done === undefined) return <Text span size="sm" className="quiet">–</Text>;
          return <Progress value={100 * done} aria-label={`${site}: ${percent(done, language)}`} />;
        },
      },
    ]} />
  );
}
