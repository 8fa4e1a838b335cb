import type { Study } from "../api/schema";

// What a study's terms say about its data centre, kept such that the hub takes them: the centre is one of the sites,
// those asked to pool are others of them, and neither is named without the other.

/** The sites that a study may ask to pool: all but the data centre; nobody where there is none. */
export function poolable(study: Study): string[] {
  return study.data_centre ? study.sites.filter((site) => site !== study.data_centre) : [];
}

/** The change of a study whose data centre is chosen, or taken away (""). */
export function withCentre(study: Study, centre: string): Partial<Study> {
  const pooled = centre ? (study.pooled ?? []).filter((site) => site !== centre) : [];
  return { data_centre: centre, pooled };
}

/** The change of a study whose sites are chosen: who is no longer asked neither pools nor is the centre. */
export function withSites(study: Study, sites: readonly string[]): Partial<Study> {
  const left = { ...study, sites, pooled: (study.pooled ?? []).filter((site) => sites.includes(site)) };
  const centre = study.data_centre && sites.includes(study.data_centre) ? study.data_centre : "";
  return { sites, ...withCentre(left, centre) };
}

/** Whether the terms are whole: a data centre and somebody who pools there, or neither. */
export function poolingWhole(study: Study): boolean {
  return Boolean(study.data_centre) === ((study.pooled ?? []).length > 0);
}
