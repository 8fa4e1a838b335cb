import { describe, expect, it } from "vitest";

import { address } from "../api/request";
import { folded, type DiffRow } from "./diff";
import { bytes, duration, moment, shortDigest, withShortDigests } from "./format";
import { barsOf } from "./histogram";
import { groupsOf, valueAt } from "./schema-form";
import { translate } from "./translate";

describe("translate", () => {
  const messages = { hello: "Hello {name}", "box.one": "{count} box", "box.other": "{count} boxes" };

  it("fills in values and leaves a hole that has none", () => {
    expect(translate(messages, "en", "hello", { name: "Maria" })).toBe("Hello Maria");
    expect(translate(messages, "en", "hello")).toBe("Hello {name}");
  });

  it("chooses the plural form by the count, written as the language does", () => {
    expect(translate(messages, "en", "box", { count: 1 })).toBe("1 box");
    expect(translate(messages, "de", "box", { count: 12_000 })).toBe("12.000 boxes");
  });

  it("puts a value in as it is, whatever pattern it holds", () => {
    expect(translate(messages, "en", "hello", { name: "$& {name}" })).toBe("Hello $& {name}");
  });
});

describe("format", () => {
  it("writes sizes, times and digests short", () => {
    expect(bytes(999, "en")).toBe("999 B");
    expect(bytes(8_590_000_000, "en")).toBe("8.6 GB");
    expect(duration(7500)).toBe("2 h 5 min");
    expect(duration(0.2)).toBe("0 s");
    expect(withShortDigests(`a b3:${"0f".repeat(32)}, 3 bytes`)).toBe("a 0f0f0f0f0f0f…, 3 bytes");
    expect(shortDigest("sha256:0123456789abcdef")).toBe("0123456789ab…");
  });

  it("shows an absent moment as a dash, never as 1970", () => {
    for (const absent of [0, "", null, undefined, "nonsense"]) expect(moment(absent, "en")).toBe("–");
  });
});

describe("address", () => {
  it("escapes what it is given, so that a name cannot become a path", () => {
    expect(address("/api/datasets/{name}", { name: "../accounts?x" })).toBe("/api/datasets/..%2Faccounts%3Fx");
    expect(address("/api/audit", {}, { text: "a&b", before: null, limit: 5 })).toBe("/api/audit?text=a%26b&limit=5");
  });
});

describe("folded", () => {
  const row = (kind: DiffRow["kind"]): DiffRow => ({ kind, left: "", left_line: 1, right: "", right_line: 1 });

  it("keeps the context of a change and folds the rest", () => {
    const rows = [...Array.from({ length: 10 }, () => row("same")), row("added"), row("same")];
    const parts = folded(rows, 3);
    expect(parts[0]).toEqual({ kind: "fold", count: 7 });
    expect(parts).toHaveLength(1 + 3 + 1 + 1);
  });

  it("loses no changed row", () => {
    const rows = [row("same"), row("removed"), row("same"), row("added")];
    expect(folded(rows, 0).filter((part) => part.kind === "row")).toHaveLength(4);
  });
});

describe("barsOf", () => {
  it("joins neighbours without losing a record, and leaves gaps empty", () => {
    const bins = Array.from({ length: 100 }, (_, at) => ({ low: at, high: at + 1, records: at === 50 ? 0 : 2 }));
    const bars = barsOf(bins, 20);
    expect(bars).toHaveLength(20);
    expect(bars.reduce((sum, bar) => sum + bar.records, 0)).toBe(198);
    expect(barsOf([{ low: 0, high: 1, records: 3 }, { low: 9, high: 10, records: 6 }], 40).map((bar) => bar.height)).toEqual([0.5, 1]);
  });

  it("draws nothing of nothing", () => {
    expect(barsOf([], 20)).toEqual([]);
  });
});

describe("groupsOf", () => {
  const schema = {
    $ref: "#/$defs/Top",
    $defs: {
      Top: {
        properties: {
          k: { type: "integer", default: 5 },
          mode: { enum: ["off", "on"], default: "on" },
          names: { type: "array", items: { type: "string" }, default: [] },
          table: { type: "object", additionalProperties: { type: "string" } },
          limits: { $ref: "#/$defs/Limits", default: { seconds: 60 } },
        },
      },
      Limits: { description: "What a task may use.", properties: { seconds: { type: "number", default: 3600 } } },
    },
  };

  it("asks for every kind of value as it fits, records in groups of their own", () => {
    const [top, limits] = groupsOf(schema);
    expect(top?.fields.map((field) => field.kind)).toEqual(["number", "choice", "list", "other"]);
    expect(limits).toMatchObject({ name: "limits", description: "What a task may use." });
    expect(limits?.fields[0]).toMatchObject({ path: ["limits", "seconds"], preset: 60, whole: false });
  });

  it("finds values at paths and nothing where there is none", () => {
    expect(valueAt({ limits: { seconds: 9 } }, ["limits", "seconds"])).toBe(9);
    expect(valueAt({ limits: [9] }, ["limits", "seconds"])).toBeUndefined();
  });
});
