/** A model's ancestry, drawn: the stretches of jobs that it went through, oldest first. */

export interface Stretch {
  readonly job: string; // "" for a frame that somebody uploaded
  readonly first: string; // id of the oldest version of the stretch, or the frame's digest
  readonly last: string;
  readonly from: number; // rounds
  readonly to: number;
}

/** Version ids are JOB.ROUND; `lineage` runs from the version itself back to the beginning. */
export function stretches(lineage: readonly string[]): Stretch[] {
  const found: Stretch[] = [];
  for (const id of [...lineage].reverse()) {
    const dot = id.lastIndexOf(".");
    const round = Number(id.slice(dot + 1));
    const job = dot > 0 && Number.isInteger(round) ? id.slice(0, dot) : "";
    const before = found.at(-1);
    if (before && job !== "" && before.job === job) found[found.length - 1] = { ...before, last: id, to: round };
    else found.push({ job, first: id, last: id, from: job === "" ? 0 : round, to: job === "" ? 0 : round });
  }
  return found;
}
