/** How one number of a statistics question is named and written in a table. */
import { figure } from "../../shared/text/format";
import type { Figure, StatisticsView } from "../api/schema";

/** The column with its level, or both columns of a crosstab's cell. */
export function aboutOf(one: Figure): string {
  const named = (column: string, level: string) => (level === "" ? column : `${column}: ${level}`);
  return [named(one.column, one.level), named(one.across, one.across_level)].filter((part) => part !== "").join(" × ");
}

export function identityOf(one: Figure): string {
  return [one.statistic, one.column, one.group, one.level, one.across, one.across_level].join("\n");
}

const MEASURED = new Set(["mean", "sd", "quantile"]); // everything else counts records

/** A number that belongs to a row; records are counted whole, as noise leaves them in parts. */
export function toldOf(one: Figure, value: number | null, language: string): string {
  if (value === null) return "–";
  return figure(MEASURED.has(one.statistic) ? value : Math.round(value) + 0, language);
}

/** Both ends that the number lies between, or the one that is known. */
export function betweenOf(one: Figure, language: string): string {
  const [low, high] = [toldOf(one, one.low, language), toldOf(one, one.high, language)];
  if (one.low !== null && one.high !== null) return `${low} … ${high}`;
  if (one.low !== null) return `≥ ${low}`;
  return one.high === null ? "–" : `≤ ${high}`;
}

export interface Paid {
  readonly epsilon: number; // at most, of each site
  readonly delta: number;
  readonly noise: number; // standard deviation on every count, in records
  readonly records: number; // of one patient that are hidden together
}

/** What a question with differential privacy has cost; null of one without. */
export function paidOf(view: StatisticsView): Paid | null {
  if (!view.dp || view.epsilon === null || view.noise === null) return null;
  return { epsilon: view.epsilon, delta: view.dp.delta ?? 1e-5, noise: view.noise, records: view.dp.clip };
}
