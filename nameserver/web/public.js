// The page of a share link: for people without an account. It knows the link and nothing else.
import { ApiError, get, load, post, route, words } from "./api.js";
import { button, empty, failed, field, form, loading, open, toast, tool } from "./dialog.js";
import { fill, h, put, say } from "./dom.js";
import { count, label, size, time, visible } from "./format.js";
import { icon, kindOf } from "./icons.js";
import { picture } from "./preview.js";

/** Show what a link leads to. */
export async function show(place, token) {
  const base = `/api/files/shared/${encodeURIComponent(token)}`;
  const main = h("main", { class: "shared" });
  put(place, h("div", { class: "public" },
    h("header", { class: "bar" }, h("span", { class: "brand" }, h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: 28, height: 28 }), h("span", {}, "Everfold"))), main));
  const where = () => decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  const draw = async () => {
    put(main, loading(4));
    try {
      put(main, await view(base, where(), draw));
    } catch (err) {
      if (!err.kind) throw err;
      put(main, refusal(err, base, draw));
      main.querySelector("input")?.focus();
    }
  };
  addEventListener("hashchange", draw);
  await draw();
}

function refusal(err, base, draw) {
  if (err.kind === "unauthenticated") return locked(base, draw);
  if (err.kind === "stale") return empty("clock", "This link has expired", "Ask whoever sent it for a new one.");
  if (err.kind === "not_found") return empty("link", "Nothing here", "This link does not exist, or was revoked.");
  return failed(err, draw);
}

function locked(base, draw) {
  const password = h("input", { type: "password", required: true, autocomplete: "off" });
  return h("div", { class: "card door-card" }, icon("lock", "large"), h("h1", {}, "This link has a password"),
    form({
      fields: field("Password", password), verb: "Open",
      submit: async () => {
        try {
          await post(`${base}/open`, { password: password.value }, { quiet: true });
        } catch (err) {
          throw err.kind === "unauthenticated" ? new ApiError("said", "That is not the password") : err;
        }
        await draw();
      },
    }));
}

async function view(base, path, draw) {
  const told = await get(base, { path, per_page: 1000 }, { quiet: true });
  document.title = `${visible(told.file.name)} – Everfold`;
  say(visible(told.file.name));
  const mayWrite = told.permission !== "read";
  return told.files ? folder(base, path, told, mayWrite, draw) : file(base, path, told.file, mayWrite, draw);
}

async function file(base, path, item, mayWrite, draw) {
  const url = (inline) => route(`${base}/download`, { path, inline });
  const loadIt = () => load(url(false));
  return h("section", {},
    crumbs(path),
    h("div", { class: "view-head" },
      h("div", { class: "title" }, icon(kindOf(item), "large"), h("div", {}, h("h1", {}, label(item.name)), h("p", { class: "muted" }, size(item.size), " · ", time(item.modified_at)))),
      h("div", { class: "tools" }, mayWrite && adder(base, "", "New version", draw), button("Download", loadIt, { drawing: "download", look: "primary" }))),
    h("div", { class: "stage" }, await picture(item, url(true), loadIt)));
}

function folder(base, path, told, mayWrite, draw) {
  const at = (name) => (path ? `${path}/${name}` : name);
  const items = [...told.files].sort((a, b) => (b.type === "directory") - (a.type === "directory") || a.name.localeCompare(b.name, undefined, { numeric: true }));
  const rows = items.map((item) => {
    const isFolder = item.type === "directory";
    const to = `#/${at(item.name).split("/").map(encodeURIComponent).join("/")}`;
    return h("li", {}, h("a", { href: to, class: "shared-row" }, icon(kindOf(item), kindOf(item)), h("span", { class: "grow" }, label(item.name)),
      h("span", { class: "muted" }, isFolder ? "Folder" : size(item.size))),
      isFolder ? null : tool(`Download ${visible(item.name)}`, "download", () => load(route(`${base}/download`, { path: at(item.name) }))));
  });
  return h("section", {}, crumbs(path),
    h("div", { class: "view-head" }, h("div", { class: "title" }, icon("folder", "large folder"), h("div", {}, h("h1", {}, label(told.file.name)), h("p", { class: "muted" }, count(told.total, "item")))),
      h("div", { class: "tools" }, mayWrite && adder(base, path, "Upload", draw))),
    rows.length ? h("ul", { class: "shared-list" }, rows) : empty("folder", "Nothing in here", "This folder is empty."));
}

function crumbs(path) {
  if (!path) return null;
  const names = path.split("/");
  return h("nav", { class: "crumbs", "aria-label": "Path" }, h("ol", {}, ["All", ...names.slice(0, -1)].map((name, k) =>
    h("li", {}, h("a", { href: `#/${names.slice(0, k).map(encodeURIComponent).join("/")}` }, visible(name))))));
}

function adder(base, path, text, draw) {
  return button(text, () => {
    const input = h("input", { type: "file", multiple: true, class: "unseen" });
    input.addEventListener("change", async () => {
      for (const each of input.files) {
        const body = new FormData();
        body.append("path", path ? `${path}/` : "");
        body.append("file", each, each.name);
        const answer = await fetch(`${base}/upload`, { method: "POST", body });
        const told = await answer.json().catch(() => ({}));
        if (!answer.ok) toast(words(new ApiError(told.error?.kind ?? "offline", told.error?.message ?? "")), { look: "bad" });
        else toast(`“${visible(each.name)}” is uploaded.`);
      }
      await draw();
    });
    input.click();
  }, { drawing: "upload" });
}
