import { createContext, useContext } from "react";

import type { Server } from "./request";

export const ServerContext = createContext<Server | null>(null);

export function useServer(): Server {
  const server = useContext(ServerContext);
  if (!server) throw new Error("useServer outside a ServerContext");
  return server;
}
