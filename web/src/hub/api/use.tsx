import { useMutation, useQueryClient } from "@tanstack/react-query";
import { createContext, useContext } from "react";

import type { HubClient } from "./client";
import type { Role } from "./people";
import type { Session } from "./session";

/** Who is signed in, and at which hub. */
export interface Person {
  readonly name: string;
  readonly roles: readonly string[];
  readonly studies: readonly { readonly study: string; readonly roles: readonly string[] }[];
  readonly site: string | null; // a data manager's own
  readonly account: boolean; // false: an API token speaks
  readonly secondFactor: boolean;
  readonly secondFactorDue: boolean;
  readonly provider: string;
  readonly hub: string;
  readonly version: string;
}

export const ClientContext = createContext<HubClient | null>(null);
export const SessionContext = createContext<Session | null>(null);
export const PersonContext = createContext<Person | null>(null);

function needed<T>(found: T | null, what: string): T {
  if (found === null) throw new Error(`${what} outside its context`);
  return found;
}

export const useClient = () => needed(useContext(ClientContext), "useClient");
export const useSession = () => needed(useContext(SessionContext), "useSession");
export const usePerson = () => needed(useContext(PersonContext), "usePerson");

/** Whether the person has one of these roles, here or in a study: the server decides, this hides. */
export function useMay(...roles: readonly Role[]): boolean {
  const person = usePerson();
  const theirs = [...person.roles, ...person.studies.flatMap((part) => part.roles)];
  return roles.some((role) => theirs.includes(role));
}

/** A change after which every page asks anew: a decision touches home, studies and the trail alike. */
export function useChange<Input, Output>(act: (input: Input) => Promise<Output>) {
  const cache = useQueryClient();
  return useMutation({
    mutationFn: act,
    onSuccess: () => cache.invalidateQueries(),
  });
}
