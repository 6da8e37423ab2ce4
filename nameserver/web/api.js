// Talking to the server. Every failure is an ApiError with the server's kind and words; a server
// that cannot be reached is the kind "offline". The session is a cookie that no script sees.
import { memory, tell } from "./dom.js";

export class ApiError extends Error {
  constructor(kind, message, status = 0, subject = "") {
    super(message);
    Object.assign(this, { kind, status, subject });
  }
}

/** Who is signed in, and what the server must be shown with everything that changes something. */
export const session = { user: null, csrf: "", device: "", registration: "" };

const SPOKEN = {
  quota: "There is no room left: your quota is used up.",
  too_large: "This is larger than the server takes.",
  no_space: "The cluster is full.",
  exists: "That name is taken.",
  not_found: "It is not there any more.",
  unavailable: "The storage cannot be reached right now. Try again in a moment.",
  rate_limited: "Too many attempts. Wait a few minutes.",
  offline: "The server cannot be reached.",
  read_only: "You may look here, but not change anything.",
};

/** Return what to tell a person about a failure. */
export const words = (err) =>
  SPOKEN[err.kind] ?? (err.message ? `${err.message[0].toUpperCase()}${err.message.slice(1)}.` : "That did not work.");

/** Return a route with a query; empty values are left out. */
export function route(path, query = {}) {
  const given = Object.entries(query).filter(([, v]) => v !== "" && v !== null && v !== undefined && v !== false);
  const text = new URLSearchParams(given.map(([k, v]) => [k, v === true ? "1" : v])).toString();
  return text ? `${path}?${text}` : path;
}

/** Return the headers of a request that changes something. */
export const proof = () => (session.csrf ? { "X-CSRF-Token": session.csrf } : {});

/** Return the answer's JSON; throw ApiError. `quiet`: a 401 is the caller's business. */
export async function call(method, path, { body, query, headers, signal, quiet } = {}) {
  const asked = { method, signal, headers: { Accept: "application/json", ...proof(), ...headers } };
  if (body !== undefined) {
    asked.body = JSON.stringify(body);
    asked.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(route(path, query), asked);
  } catch (err) {
    if (err.name === "AbortError") throw err;
    throw new ApiError("offline", err.message);
  }
  return read(answer, quiet);
}

async function read(answer, quiet) {
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  throw failure(answer.status, told, quiet);
}

/** Return the error that an answer is. */
export function failure(status, told, quiet = false) {
  const { kind = "internal", message = "", subject = "" } = told?.error ?? {};
  const is_proxy = !told?.error && [502, 503, 504].includes(status);
  if (status === 401 && !quiet && session.user) tell("signed-out");
  return new ApiError(is_proxy ? "offline" : kind, message, status, subject);
}

export const get = (path, query, more) => call("GET", path, { query, ...more });
export const post = (path, body, more) => call("POST", path, { body: body ?? {}, ...more });
export const set = (path, body) => call("PUT", path, { body: body ?? {} });
export const remove = (path, query) => call("DELETE", path, { query });

const learn = ({ user, csrf, device, device_id, registration }) =>
  Object.assign(session, {
    user,
    csrf: csrf ?? "",
    device: device?.id ?? device_id ?? "",
    registration: registration ?? session.registration,
  });

/** Ask who is signed in. */
export const whoAmI = async () => learn(await call("GET", "/api/auth/session"));

/** Sign in; the device is the same at every visit of this browser. */
export async function signIn(username, password, remember) {
  const body = {
    username, password, remember,
    device_id: memory.get("device"), device_name: browserName(), device_type: "browser",
  };
  const told = await post("/api/auth/session", body, { quiet: true });
  memory.set("device", told.device.id);
  return learn(told);
}

export async function signOut() {
  await remove("/api/auth/session");
  learn({ user: null });
}

function browserName() {
  const agent = navigator.userAgent;
  const find = (names) => names.find(([sign]) => agent.includes(sign))?.[1];
  const browser = find([["Edg/", "Edge"], ["Firefox/", "Firefox"], ["Chrome/", "Chrome"], ["Safari/", "Safari"]]);
  const system = find([
    ["Android", "Android"], ["iPhone", "iPhone"], ["iPad", "iPad"], ["Windows", "Windows"],
    ["Mac OS", "Mac"], ["Linux", "Linux"],
  ]);
  return [browser ?? "Browser", system].filter(Boolean).join(" on ");
}

/** Where a file's bytes are, now or at a version; `inline`: to be shown in place. */
export const bytesOf = (id, { version, inline } = {}) =>
  route(`/api/files/${encodeURIComponent(id)}/${version ? `versions/${version}/` : ""}download`, { inline });

/** Let the browser load a file to its disk. */
export function load(url) {
  const link = document.createElement("a");
  link.href = url;
  link.download = "";
  document.body.append(link);
  link.click();
  link.remove();
}
