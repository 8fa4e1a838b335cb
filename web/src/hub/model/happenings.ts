/** What a job's events tell of its open round and of each site: a pure fold over the stream. */
import type { EventView } from "../api/schema";
import type { Point } from "./scale";

export const STEPS = ["keys", "shares", "update", "consent", "unmask"] as const;
export type Step = (typeof STEPS)[number];
const LOG = 400; // lines that are kept to show

/** An event as it is told; what its body holds depends on its type. */
export interface Happening extends Omit<EventView, "body"> {
  readonly body: Readonly<Record<string, unknown>>;
}

export interface Line {
  readonly seq: number;
  readonly at: number;
  readonly type: string;
  readonly site: string;
  readonly round: number | null;
  readonly detail: string;
}

export interface Live {
  readonly round: number | null; // the open one, as far as an event has named it
  readonly spoken: Readonly<Partial<Record<Step, readonly string[]>>>; // sites that did a step of it
  readonly fractions: Readonly<Record<string, number>>; // of the running tasks, by site
  readonly values: Readonly<Record<string, Readonly<Record<string, readonly Point[]>>>>; // metric -> site -> points
  readonly log: readonly Line[]; // newest first
}

export const NOTHING: Live = { round: null, spoken: {}, fractions: {}, values: {}, log: [] };

/** The parts of a lease's id: JOB.ROUND.ATTEMPT.SITE; a site's name may hold dots. */
export function leaseParts(lease: unknown): { round: number; site: string } | null {
  if (typeof lease !== "string") return null;
  const [, round, , ...site] = lease.split(".");
  const number = Number(round);
  return site.length > 0 && Number.isInteger(number) ? { round: number, site: site.join(".") } : null;
}

function numbers(value: unknown): [string, number][] {
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).filter((pair): pair is [string, number] => typeof pair[1] === "number");
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function lineOf(event: Happening): Line {
  const { body } = event;
  const lease = leaseParts(body["lease"]);
  const named = body["round"];
  const enough = text(body["enough"]);
  const alarms = Array.isArray(body["alarms"]) ? body["alarms"].map(String) : [];
  const given = body["arguments"];
  const told = event.type === "Changed" && typeof given === "object" && given !== null
    ? Object.entries(given).map(([k, v]) => `${k}=${String(v)}`).join(", ")
    : [text(body["cause"]), text(body["step"]), enough, ...alarms].filter((part) => part !== "").join("; ");
  return {
    seq: event.seq,
    at: event.at,
    type: event.type,
    site: lease?.site ?? text(body["site"]),
    round: lease?.round ?? (typeof named === "number" ? named : null),
    detail: told,
  };
}

function isStep(value: unknown): value is Step {
  return STEPS.some((step) => step === value);
}

/** The picture of a later round starts with nothing spoken. */
function inRound(live: Live, round: number): Live {
  return live.round === round ? live : { ...live, round, spoken: {}, fractions: {} };
}

function spoke(live: Live, step: Step, site: string): Live {
  const before = live.spoken[step] ?? [];
  if (before.includes(site)) return live;
  return { ...live, spoken: { ...live.spoken, [step]: [...before, site] } };
}

function measured(live: Live, round: number, site: string, metrics: unknown): Live {
  let values = live.values;
  for (const [metric, value] of numbers(metrics)) {
    const sites = values[metric] ?? {};
    const points = (sites[site] ?? []).filter(([x]) => x !== round);
    values = { ...values, [metric]: { ...sites, [site]: [...points, [round, value] as const] } };
  }
  return { ...live, values };
}

function moved(live: Live, event: Happening): Live {
  const { type, body } = event;
  const lease = leaseParts(body["lease"]);
  if (type === "Closed" && typeof body["round"] === "number") return inRound(live, body["round"] + 1);
  if (!lease) return live;
  const here = inRound(live, lease.round);
  if (type === "Progress") {
    const fraction = body["fraction"];
    if (typeof fraction !== "number") return here;
    return { ...here, fractions: { ...here.fractions, [lease.site]: fraction } };
  }
  if (type === "Accepted") {
    return measured(spoke(here, "update", lease.site), lease.round, lease.site, body["metrics"]);
  }
  if (type === "Spoke" && isStep(body["step"])) return spoke(here, body["step"], lease.site);
  return here;
}

/** The picture after some more events, in their order. */
export function told(live: Live, events: readonly Happening[]): Live {
  const after = events.reduce(moved, live);
  const lines = events.filter((event) => event.type !== "Progress").map(lineOf).reverse();
  return lines.length === 0 ? after : { ...after, log: [...lines, ...after.log].slice(0, LOG) };
}

/** Each site's values of a metric, by name; none where hidden updates carry its name only, with 0 for the value. */
export function siteFigures(live: Live, metric: string, aggregation = "plain"): [string, readonly Point[]][] {
  if (aggregation !== "plain") return [];
  return Object.entries(live.values[metric] ?? {}).sort(([a], [b]) => a.localeCompare(b));
}
