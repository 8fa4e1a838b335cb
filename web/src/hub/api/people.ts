/** The roles that the hub knows, in the order in which they are offered. */
export type Role = "operator" | "researcher" | "reviewer" | "data-manager" | "downstream" | "auditor";
export const ROLES: readonly Role[] = [
  "operator", "researcher", "reviewer", "data-manager", "downstream", "auditor",
];
/** Those that a person may hold in one study. */
export const STUDY_ROLES: readonly Role[] = ["researcher", "reviewer", "downstream", "auditor"];
