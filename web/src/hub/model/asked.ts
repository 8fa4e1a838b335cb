/** What is asked of an evaluation, as a form holds it, and the record that stands for it. */
import type { Evaluate, Experiment, JobView, ModelView } from "../api/schema";
import type { Pair } from "./draft";

/** One form for both: evaluations on the way, and of a model that is there. */
export interface Asked {
  readonly every: number; // rounds between two evaluations; 0: only the last model
  readonly at: readonly string[]; // sites; empty: every ready one
  readonly subgroups: readonly Pair[]; // column -> levels or cut points, as one types them
  readonly benefit: boolean;
  readonly aggregation: "" | "plain" | "secure"; // "": as the sites ask
}

export const AGGREGATIONS = ["", "plain", "secure"] as const;

export const NOTHING_ASKED: Asked = { every: 1, at: [], subgroups: [], benefit: false, aggregation: "" };

/** Levels, or cut points where every part is a number: "A, B" or "40, 65". */
export function levelsOf(text: string): readonly (string | number)[] {
  const parts = text.split(",").map((part) => part.trim()).filter((part) => part !== "");
  const numbers = parts.map(Number);
  return parts.length > 0 && numbers.every(Number.isFinite) ? numbers : parts;
}

export function evaluateOf(asked: Asked): Evaluate {
  const named = asked.subgroups.filter((pair) => pair.key.trim() !== "");
  return {
    every: asked.every,
    at: asked.at,
    subgroups: Object.fromEntries(named.map((pair) => [pair.key.trim(), levelsOf(pair.value)])),
    benefit: asked.benefit,
    aggregation: asked.aggregation,
  };
}

export function askedOf(wanted: Evaluate): Asked {
  return {
    every: wanted.every ?? 0,
    at: wanted.at ?? [],
    subgroups: Object.entries(wanted.subgroups ?? {}).map(([key, values]) => ({ key, value: values.map(String).join(", ") })),
    benefit: wanted.benefit ?? false,
    aggregation: wanted.aggregation ?? "",
  };
}

/** A job that trains nothing: the sites tell what they find of one model of another job. */
export function evaluationOf(job: JobView, model: ModelView, asked: Asked): Experiment {
  return {
    ...job.experiment,
    name: `${job.experiment.name || job.id}, ${model.round}`,
    arguments: model.arguments,
    rounds: 0,
    base: model.id,
    early_stop: null,
    watch: null,
    sites: [],
    evaluate: { ...evaluateOf(asked), every: 0, local_rounds: asked.benefit ? Math.max(1, model.round) : 0 },
  };
}
