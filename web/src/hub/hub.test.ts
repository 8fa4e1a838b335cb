import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

import { baseKey } from "../shared/text/translate";
import { eventsIn } from "./api/stream";
import type { EvaluationView, Figure, JobView, ModelView, StatisticsView } from "./api/schema";
import { askedOf, evaluateOf, evaluationOf, levelsOf, NOTHING_ASKED } from "./model/asked";
import { draftOf, experimentOf, FIRST, scalar, typed } from "./model/draft";
import { partsOf } from "./model/evaluated";
import { aboutOf, betweenOf, identityOf, paidOf, toldOf } from "./model/statistics";
import { leaseParts, NOTHING, siteFigures, told, type Happening } from "./model/happenings";
import { stretches } from "./model/lineage";
import { path, span, thinned, ticks, type Point } from "./model/scale";
import { poolable, poolingWhole, withCentre, withSites } from "./model/pooling";
import { spentBySite } from "./model/spent";
import german from "./text/de.json";
import english from "./text/en.json";

const HERE = import.meta.dirname;

function sources(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => /\.tsx?$/.test(name) && !name.endsWith(".test.ts"))
    .map((name) => readFileSync(join(folder, name), "utf8"));
}

describe("a study's data centre", () => {
  const study = { name: "s", purpose: "p", sites: ["a", "b", "c"], tags: ["t"], data_centre: "c", pooled: ["a", "b"] };

  it("is one of the sites, and the others may pool", () => {
    expect(poolable(study)).toEqual(["a", "b"]);
    expect(poolable({ ...study, data_centre: "" })).toEqual([]);
    expect(withCentre(study, "b")).toEqual({ data_centre: "b", pooled: ["a"] });
    expect(withCentre(study, "")).toEqual({ data_centre: "", pooled: [] });
  });

  it("is not named without who pools, nor the other way round", () => {
    expect([study, { ...study, pooled: [] }, { ...study, data_centre: "" }, { ...study, ...withCentre(study, "") }].map(poolingWhole)).toEqual([true, false, false, true]);
  });

  it("goes when its site is no longer asked", () => {
    expect(withSites(study, ["a", "c"])).toEqual({ sites: ["a", "c"], data_centre: "c", pooled: ["a"] });
    expect(withSites(study, ["a", "b"])).toEqual({ sites: ["a", "b"], data_centre: "", pooled: [] });
  });
});

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
    expect(said.length).toBeGreaterThan(250);
    expect(said.filter((key) => !known.has(key))).toEqual([]);
    const families = [...code.matchAll(/`([a-z_.]+\.)\$\{/g)].map((match) => match[1] ?? "");
    const used = (key: string) => code.includes(`"${key}"`) || families.some((family) => key.startsWith(family));
    expect([...known].filter((key) => !used(key))).toEqual([]);
  });
});

describe("a stream's text", () => {
  it("is cut into whole events, wherever a packet ends", () => {
    const text = ': hello\n\nid: 7\nevent: Closed\ndata: {"a":\ndata: 1}\n\nevent: end\ndata: {}\n\n';
    const whole = eventsIn(text);
    expect(whole.events).toEqual([{ id: "7", type: "Closed", data: '{"a":\n1}' }, { id: "", type: "end", data: "{}" }]);
    for (let cut = 0; cut <= text.length; cut += 1) {
      const first = eventsIn(text.slice(0, cut));
      const second = eventsIn(first.rest + text.slice(cut));
      expect([...first.events, ...second.events]).toEqual(whole.events);
    }
  });
});

function happened(seq: number, type: string, body: Record<string, unknown>): Happening {
  return { seq, at: seq, type, body };
}

describe("what a job's events tell", () => {
  it("names round and site of a lease, whatever the site is called", () => {
    expect(leaseParts("job1.4.0.north.ward")).toEqual({ round: 4, site: "north.ward" });
    for (const wrong of ["job1", "a.b.c.d", "", 7, null]) expect(leaseParts(wrong)).toBeNull();
  });

  it("keeps the open round's steps, every site's figures by round, and the log", () => {
    const events = [
      happened(1, "Leased", { lease: "j.1.0.a" }),
      happened(2, "Spoke", { lease: "j.1.0.a", step: "keys" }),
      happened(3, "Progress", { lease: "j.1.0.a", fraction: 0.5 }),
      happened(4, "Accepted", { lease: "j.1.0.a", metrics: { loss: 0.7, bad: "x" } }),
      happened(5, "Closed", { round: 1, alarms: ["odd"], enough: "" }),
      happened(6, "Accepted", { lease: "j.2.0.b", metrics: { loss: 0.4 } }),
      happened(7, "Changed", { arguments: { lr: 0.1 } }),
    ];
    const once = told(NOTHING, events);
    const steps = events.reduce((live, event) => told(live, [event]), NOTHING);
    expect(steps).toEqual(once);
    expect(once.round).toBe(2);
    expect(once.spoken).toEqual({ update: ["b"] });
    expect(once.fractions).toEqual({});
    expect(once.values).toEqual({ loss: { a: [[1, 0.7]], b: [[2, 0.4]] } });
    expect(once.log.map((line) => line.type)).toEqual(["Changed", "Accepted", "Closed", "Accepted", "Spoke", "Leased"]);
    expect(once.log[0]?.detail).toBe("lr=0.1");
    expect(once.log[2]?.detail).toBe("odd");
  });

  it("shows no zeros for what masked updates keep to themselves", () => {
    const live = told(NOTHING, [happened(1, "Accepted", { lease: "j.1.0.a", metrics: { loss: 0 } })]);
    expect(siteFigures(live, "loss", "secure")).toEqual([]);
    expect(siteFigures(live, "loss", "plain")).toEqual([["a", [[1, 0]]]]);
  });

  it("does not grow without bound", () => {
    const many = Array.from({ length: 5000 }, (_, i) => happened(i, "Joined", { site: "a" }));
    expect(told(NOTHING, many).log).toHaveLength(400);
  });
});

describe("a draft", () => {
  it("reads values as a plan gets them, and writes them so that they are read again", () => {
    expect(["0.1", "true", "adam", '"5"', "", "1e-3"].map(scalar)).toEqual([0.1, true, "adam", "5", "", 0.001]);
    for (const value of [0.5, true, "5", "true", "adam"]) expect(scalar(typed(value))).toBe(value);
  });

  it("says only what differs from the usual", () => {
    const draft = { ...FIRST, study: "s", plan: "p", arguments: [{ key: "lr", value: "0.1" }, { key: " ", value: "1" }] };
    expect(experimentOf(draft)).toEqual({ study: "s", plan: "p", rounds: 10, arguments: { lr: 0.1 }, strategy: { name: "fedavg", options: {} } });
    expect(experimentOf({ ...draft, dp: true, level: "client" }).privacy).toEqual({
      aggregation: "secure", dp: { level: "client", noise_multiplier: 1, clip: 1, delta: 1e-5 },
    });
  });

  it("of a job makes the same experiment again", () => {
    const asked = experimentOf({ ...FIRST, study: "s", plan: "p", dp: true, stopEarly: true, minSites: 4, compress: "int8", base: "j.3" });
    const job = { experiment: asked } as JobView;
    expect(experimentOf(draftOf(job))).toEqual(asked);
  });

  it("of a job keeps what the form does not show, as long as it still fits", () => {
    const dp = { level: "record" as const, noise_multiplier: 1, clip: 1, sampling: 0.1, steps: 10, delta: 1e-5, distributed: true, colluding: 2 };
    const asked = {
      ...experimentOf({ ...FIRST, study: "s", plan: "p", stopEarly: true }), deterministic: true, grace: 30, sites: ["a", "b", "c"],
      aggregate: { name: "trimmed-mean", options: { share: 0.2 } }, privacy: { aggregation: "secure" as const, range: 64, dp },
    };
    const draft = draftOf({ experiment: asked } as unknown as JobView);
    expect(experimentOf(draft)).toEqual(asked);
    expect(experimentOf({ ...draft, study: "t" })).not.toHaveProperty("sites");
    expect(experimentOf({ ...draft, protection: "ckks", dp: false }).privacy).toEqual({ aggregation: "ckks" });
    expect(experimentOf({ ...draft, level: "client" }).privacy?.dp).toEqual({ level: "client", noise_multiplier: 1, clip: 1, delta: 1e-5 });
    expect(experimentOf({ ...draft, aggregate: "median" }).aggregate).toEqual({ name: "median" });
  });
});

describe("a chart", () => {
  it("has round ticks, and room where all values are one", () => {
    expect(ticks(0, 1, 4)).toEqual([0, 0.5, 1]);
    expect(ticks(3, 97, 5)).toEqual([20, 40, 60, 80]);
    expect(span([5, 5])).toEqual([4.5, 5.5]);
    expect(span([NaN, 2, 3])).toEqual([2, 3]);
    expect(span([])).toEqual([0, 1]);
  });

  it("draws ten thousand rounds with few points, and a gap where nothing was measured", () => {
    const points = Array.from({ length: 10_000 }, (_, i): Point => [i, i]);
    const fewer = thinned(points, 400);
    expect(fewer.length).toBeLessThanOrEqual(402);
    expect([fewer[0], fewer.at(-1)]).toEqual([points[0], points.at(-1)]);
    expect(path([[0, 1], [1, NaN], [2, 3]], (x) => x, (y) => y)).toBe("M0.0 1.0M2.0 3.0");
  });
});

describe("a lineage", () => {
  it("is one box a job, oldest first, beginning with what was uploaded", () => {
    expect(stretches(["b.7", "b.6", "a.5", "a.4", "b3:00ff"])).toEqual([
      { job: "", first: "b3:00ff", last: "b3:00ff", from: 0, to: 0 },
      { job: "a", first: "a.4", last: "a.5", from: 4, to: 5 },
      { job: "b", first: "b.6", last: "b.7", from: 6, to: 7 },
    ]);
  });
});

describe("what a study has cost", () => {
  it("adds up over jobs for the sites that took part", () => {
    const job = (epsilon: number, sites: string[]) =>
      ({ experiment: { privacy: { dp: { delta: 1e-6 } } }, rounds: [{ round: 0, sites: ["z"], epsilon: 0 }, { round: 1, sites, epsilon }] }) as unknown as JobView;
    expect(spentBySite([job(1, ["a", "b"]), job(0.5, ["a"])])).toEqual([
      { site: "a", jobs: 2, epsilon: 1.5, delta: 2e-6 },
      { site: "b", jobs: 1, epsilon: 1, delta: 1e-6 },
    ]);
  });
});

describe("an evaluation", () => {
  const asked = { ...NOTHING_ASKED, every: 2, at: ["north"], subgroups: [{ key: " sex ", value: "f, m" }, { key: "age", value: "40,65" }, { key: "", value: "x" }], benefit: true };

  it("takes levels as texts and cut points as numbers", () => {
    expect(levelsOf("A, 1")).toEqual(["A", "1"]);
    expect(levelsOf("40, 65.5")).toEqual([40, 65.5]);
    expect(levelsOf(" , ")).toEqual([]);
    expect(evaluateOf(asked).subgroups).toEqual({ sex: ["f", "m"], age: [40, 65] });
    expect(evaluateOf(askedOf(evaluateOf(asked)))).toEqual(evaluateOf(asked));
  });

  it("goes through the form of an experiment unchanged", () => {
    const draft = { ...FIRST, study: "s", plan: "p", evaluate: true, asked };
    const experiment = experimentOf(draft);
    const job = { id: "job-1", experiment } as unknown as JobView;
    expect(experimentOf(draftOf(job)).evaluate).toEqual(experiment.evaluate);
    expect("evaluate" in experimentOf(FIRST)).toBe(false);
  });

  it("of a model trains nothing and keeps the arguments of that model", () => {
    const experiment = { ...experimentOf({ ...FIRST, study: "s", plan: "p", stopEarly: true }), sites: ["north"], name: "first" };
    const job = { id: "job-1", experiment } as unknown as JobView;
    const model = { id: "job-1.3", round: 3, arguments: { lr: 0.1 } } as unknown as ModelView;
    expect(evaluationOf(job, model, asked)).toMatchObject({
      name: "first, 3", rounds: 0, base: "job-1.3", arguments: { lr: 0.1 }, early_stop: null, watch: null, sites: [],
      evaluate: { every: 0, local_rounds: 3, at: ["north"] },
    });
  });

  it("is told by site: the whole, groups, the own model, the gain", () => {
    const measure = { value: 0.8, error: 0.1, records: 50 };
    const told = { measures: { auc: measure }, subgroups: [{ column: "sex", level: "f", records: 20, measures: { auc: measure } }], local: { auc: measure }, gain: { auc: measure } };
    const rows = partsOf({ sites: { south: { measures: { auc: measure } }, north: told } } as unknown as EvaluationView);
    expect(rows.map((row) => [row.site, row.part, row.group])).toEqual([
      ["north", "whole", ""], ["north", "group", "sex: f"], ["north", "own", ""], ["north", "gain", ""], ["south", "whole", ""],
    ]);
    expect(rows[0]?.low).toBeCloseTo(0.604, 3);
    expect(rows.map((row) => row.high <= 1)).toEqual([true, true, true, true, true]);
    expect(partsOf({ sites: { north: { measures: { mae: measure }, gain: { auc: { ...measure, value: 0.05 } } } } } as unknown as EvaluationView)
      .map((row) => row.low < 0)).toEqual([false, true]);
    expect(new Set(rows.map((row) => row.id)).size).toBe(rows.length);
  });
});

describe("a number of a statistics question", () => {
  const number: Figure = { statistic: "mean", column: "age", group: "", level: "", across: "", across_level: "", value: 61, low: null, high: null, error: null, sites: 4 };

  it("is named by its column, its level, or both sides of a cell", () => {
    expect(aboutOf(number)).toBe("age");
    expect(aboutOf({ ...number, level: "50 to 60" })).toBe("age: 50 to 60");
    expect(aboutOf({ ...number, column: "sex", level: "f", across: "stage", across_level: "II" })).toBe("sex: f × stage: II");
    expect(aboutOf({ ...number, statistic: "records", column: "" })).toBe("");
  });

  it("is told apart by group, too", () => {
    expect(identityOf(number)).not.toBe(identityOf({ ...number, group: "f" }));
  });

  it("counts whole records, whatever the noise, and measures in parts", () => {
    const count = { ...number, statistic: "count" };
    expect(toldOf(count, 12_345.67, "en")).toBe("12,346");
    expect(toldOf(count, -0.3, "en")).toBe("0");
    expect(toldOf(count, -17.2, "en")).toBe("-17");
    expect(toldOf(number, 56.1118, "en")).toBe("56.11");
    expect(toldOf(number, null, "en")).toBe("–");
  });

  it("has one end where only one is known", () => {
    expect(betweenOf(number, "en")).toBe("–");
    expect(betweenOf({ ...number, low: 1.5 }, "en")).toBe("≥ 1.5");
    expect(betweenOf({ ...number, low: 1.5, high: 2 }, "en")).toBe("1.5 … 2");
  });

  it("has a price where noise was asked for, and none elsewhere", () => {
    const dp = { delta: 1e-5, clip: 3 };
    const view = { dp, epsilon: 0.99, noise: 11.7 } as unknown as StatisticsView;
    expect(paidOf(view)).toEqual({ epsilon: 0.99, delta: 1e-5, noise: 11.7, records: 3 });
    expect(paidOf({ ...view, dp: null })).toBeNull();
  });
});
