/** An experiment while it is being written: what the form holds, and the record it makes. */
import type { Experiment, JobView } from "../api/schema";
import { askedOf, evaluateOf, NOTHING_ASKED, type Asked } from "./asked";

export type Scalar = boolean | number | string;
export interface Pair {
  readonly key: string;
  readonly value: string;
}

export interface Draft {
  readonly name: string;
  readonly study: string;
  readonly plan: string;
  readonly rounds: number;
  readonly arguments: readonly Pair[];
  readonly strategy: string;
  readonly options: readonly Pair[];
  readonly aggregate: string;
  readonly minUpdates: number;
  readonly minSites: number;
  readonly fraction: number;
  readonly deadline: number;
  readonly seed: number;
  readonly base: string;
  readonly protection: "default" | "plain" | "secure" | "ckks";
  readonly dp: boolean;
  readonly level: "record" | "patient" | "client";
  readonly noise: number;
  readonly clip: number;
  readonly sampling: number;
  readonly steps: number;
  readonly delta: number;
  readonly stopEarly: boolean;
  readonly metric: string;
  readonly better: "lower" | "higher";
  readonly patience: number;
  readonly compress: string;
  readonly evaluate: boolean;
  readonly asked: Asked;
  readonly kept: Experiment | null; // what it was made from: what the form does not show stays
}

export const FIRST: Draft = {
  name: "", study: "", plan: "", rounds: 10, arguments: [], strategy: "fedavg", options: [],
  aggregate: "mean", minUpdates: 2, minSites: 2, fraction: 1, deadline: 600, seed: 0, base: "",
  protection: "default", dp: false, level: "record", noise: 1, clip: 1, sampling: 0.1, steps: 10,
  delta: 1e-5, stopEarly: false, metric: "loss", better: "lower", patience: 5, compress: "none",
  evaluate: false, asked: NOTHING_ASKED, kept: null,
};

/** A value as a plan gets it: true, a number, else the text itself; text in quotes stays text. */
export function scalar(text: string): Scalar {
  const plain = text.trim();
  if (plain === "true" || plain === "false") return plain === "true";
  if (plain !== "" && Number.isFinite(Number(plain))) return Number(plain);
  return /^".*"$/.test(plain) ? plain.slice(1, -1) : plain;
}

/** A value as one types it: what `scalar` reads back unchanged. */
export function typed(value: Scalar): string {
  if (typeof value !== "string") return String(value);
  return scalar(value) === value ? value : `"${value}"`;
}

export function pairs(values: Readonly<Record<string, Scalar>> | undefined): Pair[] {
  return Object.entries(values ?? {}).map(([key, value]) => ({ key, value: typed(value) }));
}

/** The record that some rows of names and values stand for; rows without a name say nothing. */
export function valuesOf(list: readonly Pair[]): Record<string, Scalar> {
  return Object.fromEntries(list.filter((pair) => pair.key.trim() !== "").map((pair) => [pair.key.trim(), scalar(pair.value)]));
}

/** Only numbers: the options of a strategy. What is none stays out, so that the server names it. */
function options(list: readonly Pair[]): Record<string, number> {
  return valuesOf(list) as Record<string, number>;
}

function privacyOf(draft: Draft): NonNullable<Experiment["privacy"]> | null {
  const kept = draft.kept?.privacy ?? null;
  const dp = draft.dp
    ? {
        ...(kept?.dp?.level === draft.level ? kept.dp : {}),
        level: draft.level,
        noise_multiplier: draft.noise,
        clip: draft.clip,
        delta: draft.delta,
        ...(draft.level === "client" ? {} : { sampling: draft.sampling, steps: draft.steps }),
      }
    : null;
  if (draft.protection === "default" && dp === null) return null;
  const aggregation = draft.protection === "default" ? "secure" : draft.protection;
  const rest = kept?.aggregation === aggregation ? Object.entries(kept).filter(([key]) => key !== "dp") : [];
  return { ...Object.fromEntries(rest), aggregation, ...(dp ? { dp } : {}) };
}

/** What the form shows nothing of, as it was; where a study was changed, none of its sites. */
function hiddenOf(draft: Draft): Partial<Experiment> {
  const { kept } = draft;
  if (!kept) return {};
  const { grace, deterministic, watch, keep, fold, sites } = kept;
  const own = draft.study === kept.study ? { fold, sites } : {};
  return Object.fromEntries(Object.entries({ grace, deterministic, watch, keep, ...own }).filter(([, value]) => value !== undefined && value !== null));
}

function aggregateOf(draft: Draft): NonNullable<Experiment["aggregate"]> {
  const kept = draft.kept?.aggregate;
  return kept?.name === draft.aggregate ? kept : { name: draft.aggregate };
}

/** The record that the hub validates and runs. What stands at its default is left out. */
export function experimentOf(draft: Draft): Experiment {
  const privacy = privacyOf(draft);
  const chosen: [string, unknown, unknown][] = [
    ["name", draft.name.trim(), ""],
    ["aggregate", aggregateOf(draft), { name: "mean" }],
    ["min_updates", draft.minUpdates, 2],
    ["min_sites", draft.minSites, 2],
    ["fraction", draft.fraction, 1],
    ["deadline", draft.deadline, 600],
    ["seed", draft.seed, 0],
    ["base", draft.base.trim() || null, null],
    ["compress", draft.compress, "none"],
    ["privacy", privacy, null],
    ["early_stop", draft.stopEarly ? { ...draft.kept?.early_stop, metric: draft.metric, better: draft.better, rounds: draft.patience } : null, null],
    ["evaluate", draft.evaluate ? { ...draft.kept?.evaluate, ...evaluateOf(draft.asked) } : null, null],
  ];
  const set = chosen.filter(([, value, usual]) => JSON.stringify(value) !== JSON.stringify(usual));
  return {
    ...hiddenOf(draft),
    study: draft.study,
    plan: draft.plan,
    rounds: draft.rounds,
    arguments: valuesOf(draft.arguments),
    strategy: { name: draft.strategy, options: options(draft.options) },
    ...Object.fromEntries(set.map(([key, value]) => [key, value])),
  };
}

/** A draft of what a job ran, to change and run again. */
export function draftOf(job: JobView): Draft {
  const e = job.experiment;
  const dp = e.privacy?.dp;
  return {
    ...FIRST,
    kept: e,
    name: e.name ?? "",
    study: e.study,
    plan: e.plan,
    rounds: e.rounds,
    arguments: pairs(e.arguments),
    strategy: e.strategy?.name ?? FIRST.strategy,
    options: pairs(e.strategy?.options),
    aggregate: e.aggregate?.name ?? FIRST.aggregate,
    minUpdates: e.min_updates ?? FIRST.minUpdates,
    minSites: e.min_sites ?? FIRST.minSites,
    fraction: e.fraction ?? FIRST.fraction,
    deadline: e.deadline ?? FIRST.deadline,
    seed: e.seed ?? FIRST.seed,
    base: e.base ?? "",
    compress: e.compress ?? FIRST.compress,
    protection: e.privacy ? (e.privacy.aggregation ?? "plain") : "default",
    ...(dp
      ? {
          dp: true,
          level: dp.level,
          noise: dp.noise_multiplier,
          clip: dp.clip,
          sampling: dp.sampling ?? 1,
          steps: dp.steps ?? 1,
          delta: dp.delta ?? FIRST.delta,
        }
      : {}),
    ...(e.evaluate ? { evaluate: true, asked: askedOf(e.evaluate) } : {}),
    ...(e.early_stop
      ? {
          stopEarly: true,
          metric: e.early_stop.metric ?? FIRST.metric,
          better: e.early_stop.better ?? FIRST.better,
          patience: e.early_stop.rounds ?? FIRST.patience,
        }
      : {}),
  };
}
