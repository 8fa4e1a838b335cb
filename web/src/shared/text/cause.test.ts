import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";

import { causeText } from "./cause";
import { translate, type Messages } from "./translate";

const read = (app: string, language: string) =>
  JSON.parse(readFileSync(new URL(`../../${app}/text/${language}.json`, import.meta.url), "utf-8")) as Messages;
const german = read("hub", "de");
const words = {
  say: (key: string, values?: Readonly<Record<string, string | number>>) => translate(german, "de", key, values),
  knows: (key: string) => key in german,
};

describe("causes on a German page", () => {
  it.each([
    ["plan-error", "Fehler im Trainingsplan"],
    ["failed: not-finite", "fehlgeschlagen: keine Zahl im Update"],
    ["declined", "abgelehnt"],
    ["stopped by ada", "angehalten von ada"],
    ["round 3 waits for 2 ready sites, found 1 (north)", "Runde 3 wartet auf 2 bereite Häuser, gefunden: 1 (north)"],
    [
      "round 2: too few sites are left; found 1 of 3 updates; north: accepted; south: failed (memory)",
      "Runde 2: Zu wenige Häuser sind übrig; 1 von 3 hatten geantwortet; north: angenommen; south: fehlgeschlagen (zu wenig Speicher)",
    ],
  ])("%s", (told, shown) => expect(causeText(told, words)).toBe(shown));

  it.each(["rejected-by-nobody", "the hub's disk is full: /var", "", "a: b: c"])("leaves %j as it was told", (told) =>
    expect(causeText(told, words)).toBe(told));

  it("has words for every cause that a site can give", () => {
    const source = readFileSync(new URL("../../../../src/consilia/wire/v1.py", import.meta.url), "utf-8");
    const list = /FailureCause = Literal\[([^\]]*)\]/.exec(source)?.[1] ?? "";
    const codes = [...list.matchAll(/"([a-z-]+)"/g)].map((found) => found[1] ?? "");
    expect(codes.length).toBeGreaterThan(10);
    for (const [app, language] of [["hub", "en"], ["hub", "de"], ["console", "en"], ["console", "de"]] as const) {
      const known = read(app, language);
      expect(codes.filter((code) => !(`cause.${code.replaceAll("-", "_")}` in known))).toEqual([]);
    }
  });
});
