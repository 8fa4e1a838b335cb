import "@fontsource-variable/inter/index.css";
import "@mantine/core/styles.css";
import "../shared/shared.css";
import "./hub.css";

import { QueryCache, QueryClient } from "@tanstack/react-query";
import { createRoot } from "react-dom/client";

import { connect, Problem } from "../shared/api/request";
import { hubClient } from "./api/client";
import { openSession } from "./api/session";
import { Root } from "./root";

const queries = new QueryClient({
  queryCache: new QueryCache({
    onError: (error, query) => {
      // A session that ended shows the door again, from whatever page.
      const ended = error instanceof Problem && error.status === 401;
      if (ended && query.queryKey[0] !== "person") void queries.invalidateQueries({ queryKey: ["person"] });
    },
  }),
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
const session = openSession();
const server = connect(session);
createRoot(place).render(<Root server={server} session={session} client={hubClient(server)} queries={queries} />);
