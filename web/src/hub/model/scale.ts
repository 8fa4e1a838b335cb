/** The arithmetic of a chart: round ticks, places of points, fewer points where there are too many. */

export type Point = readonly [x: number, y: number];
export interface Series {
  readonly name: string;
  readonly points: readonly Point[];
}

/** Lowest and highest of some numbers; equal ones are moved apart so that a line can be drawn. */
export function span(values: readonly number[]): readonly [number, number] {
  const finite = values.filter(Number.isFinite);
  if (finite.length === 0) return [0, 1];
  const low = finite.reduce((a, b) => Math.min(a, b));
  const high = finite.reduce((a, b) => Math.max(a, b));
  if (low < high) return [low, high];
  const room = Math.abs(low) / 10 || 1;
  return [low - room, high + room];
}

/** Round values (1, 2 or 5 times a power of ten) from `low` to `high`, about `count` of them. */
export function ticks(low: number, high: number, count: number): number[] {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** At most about `most` of the points, the first and the last among them. */
export function thinned(points: readonly Point[], most: number): readonly Point[] {
  if (points.length <= most) return points;
  const step = Math.ceil(points.length / most);
  return points.filter((_, i) => i % step === 0 || i === points.length - 1);
}

/** The pieces of an SVG path through the points; a gap where a value is not a number. */
export function path(points: readonly Point[], x: (value: number) => number, y: (value: number) => number): string {
  let pen = "M";
  return points
    .flatMap(([a, b]) => {
      if (!Number.isFinite(b)) {
        pen = "M";
        return [];
      }
      const piece = `${pen}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
      pen = "L";
      return [piece];
    })
    .join("");
}
