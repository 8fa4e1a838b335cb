import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

import { baseKey } from "../shared/text/translate";
import { blockKinds, emptyBlock } from "./block-form";
import { draftOf, scalarOf, typedOf, withBlock, withField, withMoved, withoutBlock } from "./loading-text";
import { linesOf, namesOf, rangeLines } from "./policy-lines";
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

describe("a data loading plan as text and blocks", () => {
  const text = "name: si # ours\nblocks:\n  - block: rename # first\n    columns:\n      a: b\n  - block: filter\n    where: b > 1\n";

  it("changes, moves, adds and removes blocks, and keeps comments", () => {
    const moved = withMoved(withField(text, 1, "where", "b > 2"), 1, -1);
    expect(draftOf(moved).blocks).toEqual([{ block: "filter", where: "b > 2" }, { block: "rename", columns: { a: "b" } }]);
    expect(moved).toContain("# ours");
    expect(moved).toContain("# first");
    const longer = withBlock(withoutBlock(text, 0), { block: "keep", columns: [] });
    expect(draftOf(longer).blocks.map((block) => block["block"])).toEqual(["filter", "keep"]);
    expect(withBlock("blocks: []\n", { block: "filter", where: "" })).toBe('blocks:\n  - block: filter\n    where: ""\n');
    expect(draftOf(withoutBlock(withoutBlock(text, 1), 0))).toEqual({ blocks: [], description: "", readable: true });
  });

  it("says when a text can be edited as text only", () => {
    for (const odd of ["blocks: [", "blocks: [1]", "- a", "blocks: {a: 1}"]) expect(draftOf(odd).readable).toBe(false);
    expect(draftOf("name: x\n").blocks).toEqual([]);
  });

  it("reads typed values, and types them back the same", () => {
    for (const value of [1, -0.5, true, false, "f", "1", "true", " a"]) expect(scalarOf(typedOf(value))).toBe(value);
  });
});

describe("the forms of blocks", () => {
  it("follow the schema", () => {
    const strings = { type: "object", additionalProperties: { type: "string" } };
    const unit = { properties: { block: {}, column: { type: "string" }, to: { type: "string" } }, required: ["block", "column", "to"] };
    const kinds = blockKinds({ properties: { unit, rename: { properties: { columns: strings }, required: ["columns"] } } });
    expect(kinds["unit"]?.map((field) => field.asked)).toEqual(["column", "text"]);
    expect(kinds["rename"]?.map((field) => field.asked)).toEqual(["pairs"]);
    expect(emptyBlock("rename", kinds["rename"] ?? [])).toEqual({ block: "rename", columns: {} });
  });
});

describe("records of the policy as lines", () => {
  it("are read as they are written", () => {
    const ranges = { lr: [0.001, 0.1], batch: [16, 32, 64], mode: ["adam", "sgd"] };
    expect(linesOf(rangeLines(ranges))).toEqual({ values: ranges, wrong: "" });
    expect(namesOf(rangeLines({ icu: "patients" }))).toEqual({ values: { icu: "patients" }, wrong: "" });
  });

  it("name the first line that cannot be read", () => {
    expect(linesOf("lr: 0.1 to 0.01").wrong).toBe("lr: 0.1 to 0.01");
    for (const odd of ["lr", "lr: 1\nlr: 2", ": 1"]) expect(namesOf(odd).wrong).not.toBe("");
  });
});
