/** How one number of a statistics question is named in a table. */
import type { Figure } from "../api/schema";

/** The column with its level, or both columns of a crosstab's cell. */
export function aboutOf(one: Figure): string {
  const named = (column: string, level: string) => (level === "" ? column : `${column}: ${level}`);
  return [named(one.column, one.level), named(one.across, one.across_level)].filter((part) => part !== "").join(" × ");
}

export function identityOf(one: Figure): string {
  return [one.statistic, one.column, one.group, one.level, one.across, one.across_level].join("\n");
}
