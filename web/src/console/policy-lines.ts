/** Records of node.yaml as lines that people type: "lr: 0.001 to 0.1", "icu: patients". */
import { rangesOf } from "./ranges";

export interface Lines {
  readonly values: Readonly<Record<string, unknown>>;
  readonly wrong: string; // the first line that cannot be read, "" for none
}

function parted(text: string): { lines: [name: string, rest: string][]; wrong: string } {
  const lines: [string, string][] = [];
  for (const line of text.split("\n").filter((one) => one.trim() !== "")) {
    const at = line.indexOf(":");
    const name = line.slice(0, at).trim();
    const rest = line.slice(at + 1).trim();
    if (at < 0 || name === "" || rest === "" || lines.some(([known]) => known === name)) return { lines, wrong: line };
    lines.push([name, rest]);
  }
  return { lines, wrong: "" };
}

/** Ranges of arguments, one a line; a range that cannot be read names its line. */
export function linesOf(text: string): Lines {
  const { lines, wrong } = parted(text);
  if (wrong) return { values: {}, wrong };
  const found = rangesOf(Object.fromEntries(lines));
  return { values: found.ranges, wrong: lines.find(([name]) => name === found.wrong)?.join(": ") ?? "" };
}

/** Names, one a line. */
export function namesOf(text: string): Lines {
  const { lines, wrong } = parted(text);
  return { values: wrong ? {} : Object.fromEntries(lines), wrong };
}

function written(value: unknown): string {
  if (!Array.isArray(value)) return String(value);
  const numbers = value.length === 2 && value.every((one) => typeof one === "number");
  return value.map(String).join(numbers ? " to " : ", ");
}

/** The lines that say what a record holds. */
export function rangeLines(value: unknown): string {
  if (typeof value !== "object" || value === null) return "";
  return Object.entries(value).map(([name, one]) => `${name}: ${written(one)}`).join("\n");
}
