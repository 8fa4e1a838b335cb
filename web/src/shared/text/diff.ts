/** One row of a side-by-side diff; a side that has no line is null. */
export interface DiffRow {
  readonly kind: "same" | "changed" | "added" | "removed";
  readonly left_line: number | null;
  readonly left: string | null;
  readonly right_line: number | null;
  readonly right: string | null;
}

export type DiffPart = { readonly kind: "row"; readonly row: DiffRow } | { readonly kind: "fold"; readonly count: number };

/** Keep `context` unchanged rows around every change; fold the rest where that saves space. */
export function folded(rows: readonly DiffRow[], context: number): DiffPart[] {
  const near = rows.map((_, index) =>
    rows.slice(Math.max(0, index - context), index + context + 1).some((row) => row.kind !== "same"),
  );
  const parts: DiffPart[] = [];
  let start = 0;
  while (start < rows.length) {
    let end = start;
    while (end < rows.length && near[end] === near[start]) end += 1;
    const stretch = rows.slice(start, end);
    if (near[start] === false && stretch.length > 2) parts.push({ kind: "fold", count: stretch.length });
    else parts.push(...stretch.map((row) => ({ kind: "row" as const, row })));
    start = end;
  }
  return parts;
}
