import { useText } from "../../shared/text/language";
import { Mark, type Tone } from "../../shared/ui/page";

const TONES: Readonly<Record<string, Tone>> = {
  // of jobs
  waiting: "waiting", running: "good", closing: "good", paused: "waiting", pausing: "waiting", done: "good", stopped: "plain", failed: "bad",
  // of studies
  draft: "plain", submitted: "good", closed: "plain",
  // of a study's sites
  invited: "waiting", accepted: "good", left: "bad", declined: "bad",
  // of what a site does
  ready: "good", training: "good", reported: "good", away: "plain", refused: "bad",
  // of model versions
  candidate: "waiting", released: "good", retired: "plain",
  // of sites
  enrolled: "good", revoked: "bad",
};

/** A state as a word with a colour; one that this page does not know is shown as the hub says it. */
export function State({ of }: { of: string }) {
  const { say, knows } = useText();
  return <Mark tone={TONES[of] ?? "plain"}>{knows(`state.${of}`) ? say(`state.${of}`) : of}</Mark>;
}

export const RUNNING: readonly string[] = ["waiting", "running", "closing", "paused"];
