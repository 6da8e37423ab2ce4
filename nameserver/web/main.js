// The beginning: who is signed in, which view is asked for, and the frame around it. A view is
// `show(place, where, ended)`: it fills `place`, and stops what it began when `ended` fires.
import { session, signOut, whoAmI, get, words } from "./api.js";
import { attempt, button, failed, loading, menu, open, toast, tool } from "./dialog.js";
import { fill, h, hear, memory, put, settled, tell } from "./dom.js";
import { size } from "./format.js";
import { icon } from "./icons.js";
import { follow, leave } from "./live.js";

const VIEWS = {
  files: ["Files", "folder", () => import("./files.js")],
  shared: ["Shared links", "link", () => import("./sharing.js")],
  teams: ["Team folders", "users", () => import("./teams.js")],
  trash: ["Trash", "trash", () => import("./trash.js")],
  usage: ["Usage", "chart", () => import("./usage.js")],
  devices: ["Devices", "device", () => import("./people.js")],
  account: ["Account", "user", () => import("./people.js")],
  admin: ["Cluster", "server", () => import("./admin.js")],
};
const NAV = ["files", "shared", "teams", "trash", null, "usage", "devices", "admin"];
const KEYS = [
  ["↑ ↓", "Walk through the list"], ["Enter", "Open"], ["Space", "Select"], ["Shift + ↑ ↓", "Select several"],
  ["Ctrl + A", "Select all"], ["F2", "Rename"], ["Del", "Move to trash"], ["V", "Versions"], ["S", "Share"],
  ["M", "Move"], ["Backspace", "Folder above"], ["/", "Search"], ["U", "Upload"], ["N", "New folder"], ["Esc", "Close, or select nothing"],
];

const app = document.getElementById("app");
let ended = new AbortController(); // of the view that is shown
let frame = null;

/** Read the address: {view, path, words}. */
function where() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...names] = path.split("/");
  const safe = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };
  return { view: view in VIEWS ? view : "files", path: `/${names.filter(Boolean).map(safe).join("/")}`, words: new URLSearchParams(query).get("q") ?? "" };
}

async function begin() {
  if (location.pathname.startsWith("/s/")) return (await import("./public.js")).show(app, decodeURIComponent(location.pathname.slice(3)));
  put(app, loading(1));
  try {
    await whoAmI();
  } catch (err) {
    return put(app, failed(err, begin));
  }
  return session.user ? enter() : knock();
}

async function knock() {
  leave();
  ended.abort();
  frame = null;
  document.querySelectorAll("dialog, [popover]").forEach((each) => each.remove());
  document.title = "Sign in – Everfold";
  (await import("./signin.js")).show(app, enter);
}

async function enter() {
  frame = build();
  put(app, frame.node);
  await follow();
  show();
  measure();
  findTeams();
}

// ---------------------------------------------------------------- the frame

function build() {
  const links = NAV.map((view) => {
    if (!view) return h("hr", {});
    if (view === "admin" && session.user.role !== "admin") return null;
    const [title, drawing] = VIEWS[view];
    return h("a", { href: `#/${view}`, "data-view": view, hidden: view === "teams" }, icon(drawing), h("span", {}, title));
  });
  const meter = h("a", { href: "#/usage", class: "storage", "aria-label": "Storage used" });
  const nav = h("nav", { id: "nav", popover: "auto", "aria-label": "Main" }, brand(), h("div", { class: "links" }, links), meter);
  nav.addEventListener("click", (e) => e.target.closest("a") && nav.matches(":popover-open") && nav.hidePopover());
  const search = h("input", { type: "search", id: "search", placeholder: "Search files", "aria-label": "Search files", autocomplete: "off", spellcheck: "false" });
  search.addEventListener("input", settled(180, () => find(search.value.trim())));
  search.addEventListener("keydown", (e) => {
    if (e.key === "ArrowDown" || e.key === "Enter") document.querySelector(".row.item[tabindex='0']")?.focus();
    if (e.key === "Escape" && !search.value) search.blur();
  });
  const me = h("button", { type: "button", class: "me", "aria-label": `Account of ${session.user.username}`, title: session.user.username }, session.user.username[0]);
  me.addEventListener("click", () => menu(me, mine(), "Account"));
  const banner = h("div", { class: "banner", role: "status", hidden: true }, icon("offline"), h("span", {}, "No connection. What you see may be old; it comes back by itself."));
  const view = h("main", { id: "view", tabindex: "-1" });
  const node = h("div", { class: "frame" },
    h("a", { class: "skip", href: "#view", onclick: (e) => (e.preventDefault(), view.focus()) }, "Skip to content"),
    nav,
    h("header", { class: "bar" },
      h("button", { type: "button", class: "tool burger", popovertarget: "nav", "aria-label": "Menu" }, icon("menu")),
      h("label", { class: "search" }, icon("search"), search, h("kbd", { "aria-hidden": "true" }, "/")),
      tool("Keyboard shortcuts", "help", help, { class: "tool wide-only" }),
      me),
    banner, view);
  return { node, nav, view, search, meter, banner };
}

const brand = () => h("a", { class: "brand", href: "#/files" }, h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: 28, height: 28 }), h("span", {}, "Everfold"));

function mine() {
  const now = memory.get("theme");
  const theme = (name, text, drawing) => ({ text, drawing: now === name ? "check" : drawing, run: () => paint(name) });
  return [
    { text: "Account", drawing: "user", run: () => (location.hash = "#/account") },
    null,
    theme("", "As the system", "device"), theme("light", "Light", "sun"), theme("dark", "Dark", "moon"),
    null,
    { text: "Keyboard shortcuts", drawing: "help", keys: "?", run: help },
    { text: "Sign out", drawing: "leave", run: () => attempt(async () => (await signOut(), knock())) },
  ];
}

/** Choose a theme: "light", "dark", or "" for the system's. */
function paint(theme) {
  memory.set("theme", theme);
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

const help = () =>
  open("Keyboard shortcuts", () => h("dl", { class: "keys" }, KEYS.map(([keys, text]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, text)])), { look: "small" });

function find(text) {
  const { view, path, words: before } = where();
  if (text === before && view === "files") return;
  const base = view === "files" ? path.split("/").map(encodeURIComponent).join("/") : "";
  const to = `#/files${base === "/" ? "" : base}${text ? `?q=${encodeURIComponent(text)}` : ""}`;
  if (before) history.replaceState(null, "", to), show();
  else location.hash = to;
}

// ---------------------------------------------------------------- views

async function show() {
  if (!frame) return;
  const asked = where();
  const [title, , load] = VIEWS[asked.view];
  ended.abort();
  ended = new AbortController();
  const { signal } = ended;
  document.title = `${title} – Everfold`;
  if (asked.words !== frame.search.value.trim()) frame.search.value = asked.words;
  for (const link of frame.nav.querySelectorAll("a[data-view]")) {
    if (link.dataset.view === asked.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const view = await load();
    if (signal.aborted) return;
    scrollTo(0, 0);
    await view.show(frame.view, asked, signal);
  } catch (err) {
    if (signal.aborted || err.name === "AbortError" || err.status === 401) return;
    if (!err.kind) console.error(err);
    if (err.kind === "not_found" && asked.view === "files") put(frame.view, failed(err, () => (location.hash = "#/files"), "Go to Files"));
    else put(frame.view, failed(err, show));
  }
}

async function measure() {
  const told = await get("/storage").catch(() => null);
  if (!told || !frame) return;
  const used = told.quota_used ?? told.used;
  put(frame.meter,
    h("span", { class: "muted" }, told.quota ? `${size(used)} of ${size(told.quota)}` : `${size(used)} used`),
    told.quota ? h("meter", { min: 0, max: 1, high: 0.9, low: 0.75, optimum: 0, value: Math.min(1, used / told.quota) }) : null);
}

async function findTeams() {
  const there = await get("/api/teams").catch(() => null);
  if (there && frame) frame.nav.querySelector("[data-view=teams]").hidden = false;
}

// ---------------------------------------------------------------- what happens

window.addEventListener("hashchange", () => {
  document.querySelectorAll("dialog[open]").forEach((each) => each.close());
  show();
});
// In another tab somebody else may have signed in meanwhile: the cookie is shared, this page is not.
document.addEventListener("visibilitychange", async () => {
  if (!frame || document.hidden) return;
  const before = session.user?.id;
  const now = await whoAmI().catch(() => session);
  if (!now.user) tell("signed-out");
  else if (now.user.id !== before) location.reload();
});
hear("changed", settled(800, measure));
hear("signed-out", async () => {
  if (!frame) return;
  const before = session.user?.id;
  session.user = null;
  const now = await whoAmI().catch(() => session); // in another tab the password may have been changed
  if (now.user && now.user.id === before) {
    await follow();
    return tell("changed", null);
  }
  await knock();
  toast("You were signed out.");
});
hear("offline", () => frame && (frame.banner.hidden = false));
hear("online", () => frame && (frame.banner.hidden = true));

document.addEventListener("keydown", (e) => {
  if (!frame || e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select, dialog, [popover]:popover-open:not(nav)")) return;
  if (e.key === "/") e.preventDefault(), frame.search.focus(), frame.search.select();
  else if (e.key === "?") help();
});

begin().catch((err) => {
  console.error(err);
  put(app, h("div", { class: "plain" }, words(err)));
});
