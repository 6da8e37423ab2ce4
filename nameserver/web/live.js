// What happens elsewhere: a parked request that the server answers when something changed.
// Nothing is missed: each answer says where the next begins. A page that nobody sees lets go of its
// connection, for a browser has only six to one server, over all its tabs.
import { get } from "./api.js";
import { tell } from "./dom.js";

const WAIT_S = 25;
const PAUSE_MS = [500, 1000, 2000, 4000, 8000, 15000];
const HIDDEN_MS = 20000;

let running = null; // the AbortController of the loop

/**
 * Begin to follow; "changed" is told with the events, or with null when anything may have changed.
 * Resolves once it is known from where: what is read after that cannot miss anything.
 */
export function follow() {
  leave();
  running = new AbortController();
  return new Promise((known) => loop(running.signal, known));
}

/** Stop following. */
export function leave() {
  running?.abort();
  running = null;
}

async function loop(ended, known) {
  let since = "";
  let failed = 0;
  while (!ended.aborted) {
    try {
      if (!since) since = (await get("/api/sync/status", {}, { signal: ended })).position;
      known();
      await seen(ended);
      const told = await poll(since, failed ? 0 : WAIT_S, ended);
      since = told.next_since;
      if (failed) {
        failed = 0;
        tell("online");
        tell("changed", null);
      } else if (told.events.length) tell("changed", told.events);
    } catch (err) {
      known();
      if (ended.aborted || err.status === 401) return;
      if (err.name === "AbortError") continue; // the page was hidden, or the network went
      failed += 1;
      if (failed === 2 || err.kind === "offline") tell("offline");
      await pause(PAUSE_MS[Math.min(failed, PAUSE_MS.length) - 1] * (0.75 + Math.random() / 2), ended);
    }
  }
}

async function poll(since, wait, ended) {
  const hidden = new AbortController();
  const cut = () => hidden.abort();
  let timer = 0;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(() => hidden.abort(), HIDDEN_MS);
  };
  document.addEventListener("visibilitychange", look);
  window.addEventListener("offline", cut);
  look();
  try {
    const signal = AbortSignal.any([ended, hidden.signal, AbortSignal.timeout((wait + 15) * 1000)]);
    return await get("/api/sync/events", { since, wait, limit: 200 }, { signal });
  } finally {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
    window.removeEventListener("offline", cut);
  }
}

/** Wait until somebody looks at the page. */
const seen = (ended) =>
  document.hidden
    ? new Promise((go) => {
        document.addEventListener("visibilitychange", go, { once: true });
        ended.addEventListener("abort", go, { once: true });
      })
    : null;

/** Wait, at most until the network comes back. */
const pause = (ms, ended) =>
  new Promise((go) => {
    const timer = setTimeout(go, ms);
    window.addEventListener("online", go, { once: true });
    ended.addEventListener("abort", () => (clearTimeout(timer), go()), { once: true });
  });
