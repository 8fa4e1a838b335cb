/** Who is signed in: a short-lived access token in memory, renewed by a cookie that no script reads. */
import type { Credentials } from "../../shared/api/request";
import type { SignedIn } from "./schema";

/** The person's right to ask the hub, for as long as the page is open. */
export interface Session extends Credentials {
  /** Take the token that a sign-in has brought. */
  take(token: string): void;
  /** Forget it; `renew` is tried again only after another sign-in. */
  end(): void;
}

const REFRESH = "/api/v1/auth/refresh";

/** Only one window at a time may use the cookie: a used one that comes again ends the session. */
async function alone<T>(work: () => Promise<T>): Promise<T> {
  return "locks" in navigator ? navigator.locks.request("consilia-refresh", work) : work();
}

async function refreshed(): Promise<string> {
  try {
    const response = await fetch(REFRESH, {
      method: "POST",
      credentials: "same-origin",
      headers: { "Content-Type": "application/json" },
      body: "{}",
    });
    if (!response.ok) return "";
    return ((await response.json()) as SignedIn).access_token;
  } catch {
    return "";
  }
}

export function openSession(): Session {
  let token = "";
  let ended = false;
  let running: Promise<boolean> | null = null;

  async function renew(): Promise<boolean> {
    if (ended) return false;
    token = await alone(refreshed);
    return token !== "";
  }

  return {
    header: () => (token === "" ? "" : `Bearer ${token}`),
    take(given) {
      token = given;
      ended = false;
    },
    end() {
      token = "";
      ended = true;
    },
    renew() {
      running ??= renew().finally(() => {
        running = null;
      });
      return running;
    },
  };
}
