import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { useServer } from "../../shared/api/server";
import { streamOf } from "../api/client";
import { follow, type Sent } from "../api/stream";
import { NOTHING, told, type Happening, type Live } from "../model/happenings";

const GATHER = 250; // milliseconds in which events are shown, and the job asked for, together

function eventsOf(sent: readonly Sent[]): Happening[] {
  return sent.filter((one) => one.type !== "end").map((one) => JSON.parse(one.data) as Happening);
}

/** A job's events as they happen; whatever they change is asked for anew. */
export function useLiveJob(id: string): { live: Live; up: boolean } {
  const server = useServer();
  const cache = useQueryClient();
  const [live, setLive] = useState(NOTHING);
  const [up, setUp] = useState(true);
  useEffect(() => {
    const ending = new AbortController();
    let waiting: Sent[] = [];
    let timer: ReturnType<typeof setTimeout> | null = null;
    const show = () => {
      timer = null;
      const sent = waiting;
      waiting = [];
      const events = eventsOf(sent);
      setLive((before) => told(before, events));
      if (sent.some((one) => one.type !== "Progress")) void cache.invalidateQueries({ queryKey: ["job", id] });
    };
    const gather = (sent: Sent[]) => {
      waiting.push(...sent);
      timer ??= setTimeout(show, GATHER);
    };
    void follow(server, (after) => streamOf(id, after), gather, setUp, ending.signal);
    return () => {
      ending.abort();
      if (timer !== null) clearTimeout(timer);
    };
  }, [server, cache, id]);
  return { live, up };
}
