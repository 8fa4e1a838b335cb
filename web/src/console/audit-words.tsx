/** The audit trail in words; the code, which programs and other sites know, is in the tooltip. */
import { useText } from "../shared/text/language";

/** An action such as "mask.join". One without words here is shown as the trail has it. */
export function Action({ code }: { code: string }) {
  const { say, knows } = useText();
  const key = `act.${code.replaceAll("-", "_")}`;
  return <span title={code}>{knows(key) ? say(key) : code}</span>;
}

/** Who did it: an account of the console, somebody at the machine itself, the node, the hub. */
export function Actor({ code }: { code: string }) {
  const { say, knows } = useText();
  const [kind, name] = [code.split(":")[0] ?? "", code.split(":").slice(1).join(":")];
  const key = name === "" ? `actor.${kind}` : `actor.${kind}.named`;
  return <span title={code}>{knows(key) ? say(key, { name }) : code}</span>;
}

/** What came of it, from a closed list of words and causes. */
export function Outcome({ code }: { code: string }) {
  const { say, knows } = useText();
  const key = `outcome.${code.replaceAll("-", "_")}`;
  return <span title={code}>{knows(key) ? say(key) : code}</span>;
}
