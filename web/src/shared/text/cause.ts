/** Causes in the reader's language: closed codes by their words, sentences of a known form, all else as it was told. */
import type { Values } from "./translate";

export interface Words {
  readonly say: (key: string, values?: Values) => string;
  readonly knows: (key: string) => boolean;
}

function byCode(code: string, words: Words): string {
  const key = `cause.${code.replaceAll("-", "_")}`;
  return /^[a-z][a-z-]*$/.test(code) && words.knows(key) ? words.say(key) : code;
}

/** What the hub says of jobs and rounds, with the values that it puts in. */
const FORMS: readonly (readonly [RegExp, string, readonly string[]])[] = [
  [/^(paused|stopped) by (\S+)$/, "cause.$1_by", ["", "who"]],
  [/^round (\d+) waits for (\d+) ready sites, found (.+)$/, "cause.waits", ["round", "needed", "found"]],
  [/^round (\d+): deadline of (\S+) s passed; found (\d+) of (\d+) [^;]+; (.+)$/, "cause.deadline", ["round", "seconds", "found", "needed", "sites"]],
  [/^round (\d+): too few sites are left; found (\d+) of (\d+) [^;]+; (.+)$/, "cause.few", ["round", "found", "needed", "sites"]],
];

/** `SITE: failed (plan-error)`, as a failed round lists its sites. */
function bySite(part: string, words: Words): string {
  const found = /^(.+): (\w+)(?: \((.+)\))?$/.exec(part);
  if (!found) return part;
  const [, site = "", status = "", cause] = found;
  return `${site}: ${byCode(status, words)}${cause === undefined ? "" : ` (${byCode(cause, words)})`}`;
}

/** The words of one cause: `plan-error`, `failed: plan-error`, or a sentence that the hub makes. */
export function causeText(text: string, words: Words): string {
  for (const [form, key, names] of FORMS) {
    const found = form.exec(text);
    const known = found && key.replace("$1", found[1] ?? "");
    if (!found || !known || !words.knows(known)) continue;
    const values = names.flatMap((name, at) => {
      const value = found[at + 1] ?? "";
      if (name === "") return [];
      return [[name, name === "sites" ? value.split("; ").map((part) => bySite(part, words)).join("; ") : value] as const];
    });
    return words.say(known, Object.fromEntries(values));
  }
  const [status = "", ...rest] = text.split(": ");
  if (rest.length === 0) return byCode(text, words);
  const told = byCode(status, words);
  return told === status ? text : `${told}: ${byCode(rest.join(": "), words)}`;
}
