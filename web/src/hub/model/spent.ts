/** What a study's experiments have cost each site, put together by plain addition. */
import type { JobView } from "../api/schema";

export interface Spent {
  readonly site: string;
  readonly jobs: number;
  readonly epsilon: number;
  readonly delta: number;
}

/**
 * Epsilons and deltas of jobs add up at worst (basic composition, Dwork & Roth 2014, theorem 3.16).
 * A site counts in a job when an update of it is in any round.
 */
export function spentBySite(jobs: readonly JobView[]): Spent[] {
  const found = new Map<string, Spent>();
  for (const job of jobs) {
    const epsilon = job.rounds.at(-1)?.epsilon ?? 0;
    if (!epsilon) continue;
    const delta = job.experiment.privacy?.dp?.delta ?? 1e-5;
    for (const site of new Set(job.rounds.filter((round) => round.round > 0).flatMap((round) => round.sites))) {
      const before = found.get(site) ?? { site, jobs: 0, epsilon: 0, delta: 0 };
      found.set(site, { site, jobs: before.jobs + 1, epsilon: before.epsilon + epsilon, delta: before.delta + delta });
    }
  }
  return [...found.values()].sort((a, b) => a.site.localeCompare(b.site));
}
