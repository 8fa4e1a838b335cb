/** What the sites have told of a model, as rows of a table. */
import type { EvaluationView, Measure } from "../api/schema";

const Z = 1.959964; // of a normal 95 % interval

export interface Part {
  readonly id: string;
  readonly site: string;
  readonly part: "whole" | "own" | "gain" | "group";
  readonly group: string; // "column level"; "" for the whole hold-out
  readonly metric: string;
  readonly measure: Measure;
  readonly room: number; // half of the 95 % interval
}

type Measures = Readonly<Record<string, Measure>>;

export function partsOf(found: EvaluationView): Part[] {
  const rows = (site: string, part: Part["part"], group: string, measures: Measures): Part[] =>
    Object.entries(measures)
      .sort(([a], [b]) => a.localeCompare(b))
      .map(([metric, measure]) => ({ id: [site, part, group, metric].join("\n"), site, part, group, metric, measure, room: Z * measure.error }));
  return Object.entries(found.sites)
    .sort(([a], [b]) => a.localeCompare(b))
    .flatMap(([site, told]) => [
      ...rows(site, "whole", "", told.measures),
      ...(told.subgroups ?? []).flatMap((group) => rows(site, "group", `${group.column}: ${group.level}`, group.measures)),
      ...rows(site, "own", "", told.local ?? {}),
      ...rows(site, "gain", "", told.gain ?? {}),
    ]);
}
