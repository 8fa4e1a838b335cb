/** Who is signed in: an account with its roles, or the owner of an API token. */
import { Problem } from "../../shared/api/request";
import type { HubClient } from "./client";
import type { Session } from "./session";
import type { Person } from "./use";

/** Return the person, or throw the Problem of the hub: 401 shows the door. */
export async function whoIsThere(client: HubClient, session: Session): Promise<Person> {
  if (session.header() === "" && !(await session.renew())) throw new Problem(401, "AuthError", "");
  const me = await client.me();
  const here = me.second_factor_due ? { hub: "", version: "" } : await client.whoami();
  return {
    hub: here.hub,
    version: here.version,
    name: me.name,
    roles: me.roles,
    studies: me.studies,
    site: me.site,
    account: me.key === null,
    secondFactor: me.second_factor,
    secondFactorDue: me.second_factor_due,
    provider: me.key === null ? me.provider : "key",
  };
}
