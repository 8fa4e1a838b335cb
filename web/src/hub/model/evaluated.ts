/** What the sites have told of a model, as rows of a table. */
import type { EvaluationView, Measure } from "../api/schema";

const Z = 1.959964; // of a normal 95 % interval
const SHARES = new Set(["auc", "accuracy", "f1", "c_index", "dice"]); // from 0 to 1

export interface Part {
  readonly id: string;
  readonly site: string;
  readonly part: "whole" | "own" | "gain" | "group";
  readonly group: string; // "column level"; "" for the whole hold-out
  readonly metric: string;
  readonly measure: Measure;
  readonly low: number; // of the 95 % interval, within what the metric can be
  readonly high: number;
}

type Measures = Readonly<Record<string, Measure>>;

export function partsOf(found: EvaluationView): Part[] {
  const rows = (site: string, part: Part["part"], group: string, measures: Measures): Part[] =>
    Object.entries(measures)
      .sort(([a], [b]) => a.localeCompare(b))
      .map(([metric, measure]) => ({ id: [site, part, group, metric].join("\n"), site, part, group, metric, measure, ...within(metric, part, measure) }));
  return Object.entries(found.sites)
    .sort(([a], [b]) => a.localeCompare(b))
    .flatMap(([site, told]) => [
      ...rows(site, "whole", "", told.measures),
      ...(told.subgroups ?? []).flatMap((group) => rows(site, "group", `${group.column}: ${group.level}`, group.measures)),
      ...rows(site, "own", "", told.local ?? {}),
      ...rows(site, "gain", "", told.gain ?? {}),
    ]);
}

function within(metric: string, part: Part["part"], measure: Measure): { low: number; high: number } {
  const gain = part === "gain"; // a difference may be below 0
  const least = gain || !(SHARES.has(metric) || metric === "brier" || metric === "mae") ? -Infinity : 0;
  const most = gain ? Infinity : SHARES.has(metric) ? 1 : metric === "brier" ? 2 : Infinity;
  const room = Z * measure.error;
  return { low: Math.max(least, measure.value - room), high: Math.min(most, measure.value + room) };
}
