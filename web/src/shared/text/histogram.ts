/** One bin: `records` values from `low` to below `high`. */
export interface Bin {
  readonly low: number;
  readonly high: number;
  readonly records: number;
}

/** A bar in a drawing that is 1 wide and 1 high. */
export interface Bar extends Bin {
  readonly x: number;
  readonly width: number;
  readonly height: number;
}

/** At most `most` bars, at their places on the axis: neighbours are joined, gaps stay gaps. */
export function barsOf(bins: readonly Bin[], most: number): Bar[] {
  const first = Math.min(...bins.map((bin) => bin.low));
  const last = Math.max(...bins.map((bin) => bin.high));
  const narrowest = Math.min(...bins.map((bin) => bin.high - bin.low));
  if (bins.length === 0 || !(last > first) || !(narrowest > 0)) return [];
  const count = Math.min(most, Math.max(1, Math.round((last - first) / narrowest)));
  const width = (last - first) / count;
  const sums = new Array<number>(count).fill(0);
  for (const bin of bins) {
    const at = Math.min(count - 1, Math.floor(((bin.low + bin.high) / 2 - first) / width));
    sums[at] = (sums[at] ?? 0) + bin.records;
  }
  const tallest = Math.max(...sums);
  return sums.flatMap((records, at) =>
    records === 0
      ? []
      : [{ low: first + at * width, high: first + (at + 1) * width, records, x: at / count, width: 1 / count, height: records / tallest }],
  );
}
