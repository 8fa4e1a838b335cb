import type { SessionView as Session } from "./schema";

export type SessionView = Session;
export type Role = Session["roles"][number];
export const ROLES: readonly Role[] = ["data_manager", "reviewer", "dpo", "administrator"];
