import "@fontsource-variable/inter/index.css";
import "@mantine/core/styles.css";
import "@mantine/notifications/styles.css";
import "../shared/shared.css";

import { MutationCache, QueryCache, QueryClient } from "@tanstack/react-query";
import { createRoot } from "react-dom/client";

import { connect, Problem } from "../shared/api/request";
import { Root } from "./root";
import { consoleClient } from "./api/client";

/** A session that ended shows the door again, from whatever page. */
function askWhoIsThere(error: Error) {
  if (error instanceof Problem && error.status === 401) void queries.invalidateQueries({ queryKey: ["session"] });
}

const queries = new QueryClient({
  queryCache: new QueryCache({
    onError: (error, query) => {
      if (query.queryKey[0] !== "session") askWhoIsThere(error);
    },
  }),
  mutationCache: new MutationCache({ onError: askWhoIsThere }),
  defaultOptions: {
    queries: {
      // A refusal stays one however often it is asked for; only a lost line is worth another try.
      retry: (tries, error) => tries < 2 && error instanceof Problem && error.status === 0,
      staleTime: 5_000,
    },
  },
});

const place = document.getElementById("root");
if (!place) throw new Error("index.html has no element #root");
const server = connect();
createRoot(place).render(<Root server={server} client={consoleClient(server)} queries={queries} />);
