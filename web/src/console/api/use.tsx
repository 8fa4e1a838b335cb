import { useMutation, useQueryClient } from "@tanstack/react-query";
import { createContext, useContext } from "react";

import type { ConsoleClient } from "./client";
import type { Role, SessionView } from "./roles";

export const ClientContext = createContext<ConsoleClient | null>(null);
export const SessionContext = createContext<SessionView | null>(null);

export function useClient(): ConsoleClient {
  const client = useContext(ClientContext);
  if (!client) throw new Error("useClient outside a ClientContext");
  return client;
}

export function useSession(): SessionView {
  const session = useContext(SessionContext);
  if (!session) throw new Error("useSession outside a SessionContext");
  return session;
}

/** Whether the person may do what these roles may: the server decides, this only hides. */
export function useMay(...roles: Role[]): boolean {
  const session = useSession();
  return roles.some((role) => session.roles.includes(role));
}

/** A change that makes every page ask anew: decisions touch home, studies, plans and audit alike. */
export function useChange<Input, Output>(act: (input: Input) => Promise<Output>) {
  const cache = useQueryClient();
  return useMutation({
    mutationFn: act,
    onSuccess: () => cache.invalidateQueries(),
  });
}
