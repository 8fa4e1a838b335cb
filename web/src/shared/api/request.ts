/** One way to the server: same origin, JSON, the token against forged requests, errors as Problems. */

/** What went wrong, in the server's words: these say what was found and what to do. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly kind: string,
    detail: string,
    readonly type = "", // of RFC 9457: what a program may go by
  ) {
    super(detail);
    this.name = "Problem";
  }
}

/** The server as the pages see it. */
export interface Server {
  /** Send and return the parsed answer; throw a Problem (status 0: it cannot be reached). */
  request(method: string, path: string, body?: unknown): Promise<unknown>;
  /** Ask for something that is no JSON: a file, a stream. Throws a Problem as `request` does. */
  open(path: string, signal?: AbortSignal): Promise<Response>;
  /** Remember the token that every changing request must carry; it comes with the session. */
  rememberToken(token: string): void;
}

/** By what right requests are made, where a cookie alone does not say it. */
export interface Credentials {
  /** The header Authorization of the next request; "" for none. */
  header(): string;
  /** After a 401: get new ones. False: the person must sign in. */
  renew(): Promise<boolean>;
}

function problemOf(status: number, body: unknown): Problem {
  const record = typeof body === "object" && body !== null ? (body as Record<string, unknown>) : {};
  const detail = record["detail"];
  const kind = record["error"];
  const type = record["type"];
  return new Problem(
    status,
    typeof kind === "string" ? kind : "",
    typeof detail === "string" ? detail : `The server answered with status ${status}.`,
    typeof type === "string" ? type : "",
  );
}

async function parsed(response: Response): Promise<unknown> {
  const text = await response.text();
  if (text === "") return null;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return null;
  }
}

/** Connect to the server that the page came from. */
export function connect(credentials?: Credentials): Server {
  let forgeryToken = "";

  async function once(path: string, options: RequestInit): Promise<Response> {
    const headers = new Headers(options.headers);
    const right = credentials?.header() ?? "";
    if (right !== "") headers.set("Authorization", right);
    try {
      return await fetch(path, { ...options, headers, credentials: "same-origin" });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new Problem(0, "unreachable", "");
    }
  }

  async function send(path: string, options: RequestInit): Promise<Response> {
    const response = await once(path, options);
    if (response.status !== 401 || !credentials || !(await credentials.renew())) return response;
    return once(path, options);
  }

  return {
    rememberToken(token) {
      forgeryToken = token;
    },
    async open(path, signal) {
      const response = await send(path, signal ? { signal } : {});
      if (!response.ok) throw problemOf(response.status, await parsed(response));
      return response;
    },
    async request(method, path, body) {
      const headers: Record<string, string> = { Accept: "application/json" };
      if (method !== "GET" && !credentials) headers["X-CSRF-Token"] = forgeryToken;
      if (body !== undefined) headers["Content-Type"] = "application/json";
      const response = await send(path, {
        method,
        headers,
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      const answer = await parsed(response);
      if (!response.ok) throw problemOf(response.status, answer);
      return answer;
    },
  };
}

/** A path with its parts escaped and the query values that are set. */
export function address(
  template: string,
  parts: Readonly<Record<string, string | number>> = {},
  query: Readonly<Record<string, string | number | boolean | null | undefined>> = {},
): string {
  const path = template.replaceAll(/\{(\w+)(?::\w+)?\}/g, (_, name: string) => {
    const value = parts[name];
    if (value === undefined) throw new Error(`the address ${template} needs ${name}`);
    return encodeURIComponent(value);
  });
  const wanted = Object.entries(query).filter(
    (pair): pair is [string, string | number | boolean] => pair[1] !== null && pair[1] !== undefined && pair[1] !== "",
  );
  if (wanted.length === 0) return path;
  return `${path}?${wanted.map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join("&")}`;
}
