/** Numbers, sizes and times as people read them, in the language of the page. */

export function bytes(count: number, language: string): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toLocaleString(language, { maximumFractionDigits: value < 10 && unit > 0 ? 1 : 0 })} ${units[unit] ?? ""}`;
}

/** At most `digits` significant digits; whole numbers in full. */
export function figure(value: number, language: string, digits = 4): string {
  if (Number.isInteger(value)) return value.toLocaleString(language);
  return value.toLocaleString(language, { maximumSignificantDigits: digits });
}

export function percent(share: number, language: string): string {
  return share.toLocaleString(language, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });
}

/** A moment (ISO 8601, or seconds since 1970) as a date and time; "" and null are an en dash. */
export function moment(value: string | number | null | undefined, language: string): string {
  const at = instant(value);
  return at ? at.toLocaleString(language, { dateStyle: "medium", timeStyle: "short" }) : "–";
}

export function day(value: string | number | null | undefined, language: string): string {
  const at = instant(value);
  return at ? at.toLocaleDateString(language, { dateStyle: "medium" }) : "–";
}

function instant(value: string | number | null | undefined): Date | null {
  if (value === null || value === undefined || value === "" || value === 0) return null;
  const at = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(at.getTime()) ? null : at;
}

/** Seconds as the largest two units that say something: "2 h 5 min", "40 s". */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const parts: [number, string][] = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([n]) => n > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([n]) => n > 0)
    .map(([n, unit]) => `${n} ${unit}`)
    .join(" ");
}

/** A text with the digests in it cut short, for a table; the whole text belongs into a title. */
export function withShortDigests(text: string): string {
  return text.replaceAll(/\b(sha256|b3):[0-9a-f]{40,}/g, (digest) => shortDigest(digest));
}

/** The start of a digest, enough to compare by eye; the whole stands in the title. */
export function shortDigest(digest: string): string {
  const plain = digest.replace(/^(sha256|b3):/, "");
  return plain.length > 14 ? `${plain.slice(0, 12)}…` : plain;
}
