/** Server-sent events over fetch: EventSource can send no Authorization header. */
import type { Server } from "../../shared/api/request";

export interface Sent {
  readonly id: string;
  readonly type: string;
  readonly data: string;
}

/** Cut a stream's text into whole events and the rest (WHATWG HTML, 9.2.6). */
export function eventsIn(text: string): { events: Sent[]; rest: string } {
  const blocks = text.replaceAll("\r\n", "\n").split("\n\n");
  const rest = blocks.pop() ?? "";
  const events = blocks.flatMap((block) => {
    let [id, type] = ["", "message"];
    const data: string[] = [];
    for (const line of block.split("\n")) {
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "id") id = value;
      else if (field === "event") type = value;
      else if (field === "data") data.push(value);
    }
    return data.length > 0 ? [{ id, type, data: data.join("\n") }] : [];
  });
  return { events, rest };
}

async function read(body: ReadableStream<Uint8Array>, tell: (events: Sent[]) => void): Promise<void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const found = eventsIn(rest + decoder.decode(value, { stream: true }));
    rest = found.rest;
    if (found.events.length > 0) tell(found.events);
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      done();
    }, { once: true });
  });
}

const FIRST_PAUSE = 500; // milliseconds before another try; doubled up to LONGEST_PAUSE
const LONGEST_PAUSE = 15_000;

/** Follow `path` from cursor `after` until it sends `end`; a lost line is taken up where it broke. */
export async function follow(
  server: Server,
  path: (after: string) => string,
  tell: (events: Sent[]) => void,
  line: (up: boolean) => void,
  signal: AbortSignal,
): Promise<void> {
  const at = { after: "0", over: false, wait: FIRST_PAUSE };
  const hear = (events: Sent[]) => {
    at.wait = FIRST_PAUSE;
    at.after = events.findLast((event) => event.id !== "")?.id ?? at.after;
    at.over = events.some((event) => event.type === "end");
    tell(events);
  };
  while (!signal.aborted) {
    try {
      const response = await server.open(path(at.after), signal);
      line(true);
      if (response.body) await read(response.body, hear);
    } catch {
      // said by `line`: whoever watches sees that it is broken, and what came before stays
    }
    if (at.over) return;
    line(false);
    await pause(at.wait, signal);
    at.wait = Math.min(at.wait * 2, LONGEST_PAUSE);
  }
}
