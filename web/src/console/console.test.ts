import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

import { baseKey } from "../shared/text/translate";
import { valuesOf, withValue } from "./policy-text";
import { rangesOf } from "./ranges";
import english from "./text/en.json";
import german from "./text/de.json";

const HERE = import.meta.dirname;

function sources(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => /\.tsx?$/.test(name) && !name.endsWith(".test.ts"))
    .map((name) => readFileSync(join(folder, name), "utf8"));
}

describe("the languages", () => {
  it("have the same keys, with the same values in each message", () => {
    expect(Object.keys(german)).toEqual(Object.keys(english));
    const holes = (message: string) => [...message.matchAll(/\{(\w+)\}/g)].map((hole) => hole[1]).sort();
    const words: Record<string, string> = german;
    for (const [key, message] of Object.entries(english)) expect([key, holes(words[key] ?? "")]).toEqual([key, holes(message)]);
  });

  it("have words for every key that a page says, and no key that none says", () => {
    const code = [...sources(HERE), ...sources(join(HERE, "../shared"))].join("\n");
    const known = new Set(Object.keys(english).map(baseKey));
    const said = [...code.matchAll(/\b(?:say|knows)\(\s*"([a-z_.]+)"/g)].map((match) => match[1] ?? "");
    expect(said.length).toBeGreaterThan(150);
    expect(said.filter((key) => !known.has(key))).toEqual([]);
    const families = [...code.matchAll(/`([a-z_.]+\.)\$\{/g)].map((match) => match[1] ?? "");
    const used = (key: string) => code.includes(`"${key}"`) || families.some((family) => key.startsWith(family));
    expect([...known].filter((key) => !used(key))).toEqual([]);
  });
});

describe("rangesOf", () => {
  it("reads ranges, lists and single values, and leaves out what is empty", () => {
    expect(rangesOf({ lr: "0.001 to 0.1", batch: "16, 32", fast: "true", mode: "adam", none: " " })).toEqual({
      ranges: { lr: [0.001, 0.1], batch: [16, 32], fast: [true], mode: ["adam"] },
      wrong: "",
    });
    expect(rangesOf({ lr: "-1 .. 1e-3" }).ranges).toEqual({ lr: [-1, 0.001] });
  });

  it("names the first that it cannot read instead of guessing", () => {
    for (const text of ["0.1 to 0.01", "a to b", "1 to 2 to 3", "1,,2"]) expect(rangesOf({ lr: text }).wrong).toBe("lr");
  });
});

describe("the policy's text", () => {
  const text = "# ours\nsite: riverside # by the river\nlimits:\n  seconds: 60\n";

  it("keeps comments and order when the form changes a value", () => {
    const changed = withValue(withValue(text, ["limits", "seconds"], 90), ["disclosure", "k"], 10);
    expect(changed).toContain("site: riverside # by the river");
    expect(valuesOf(changed)).toEqual({ site: "riverside", limits: { seconds: 90 }, disclosure: { k: 10 } });
    expect(valuesOf(withValue(changed, ["limits", "seconds"], undefined))["limits"]).toEqual({});
  });

  it("says nothing of a text that cannot be read", () => {
    expect(valuesOf("a: [1,")).toEqual({});
  });
});
