// Share links: made and ended for one file, and all of them in one list.
import { get, post, remove } from "./api.js";
import { attempt, button, empty, field, form, loading, open, toast, tool } from "./dialog.js";
import { h, hear, put, settled } from "./dom.js";
import { count, label, time, visible } from "./format.js";
import { icon, kindOf } from "./icons.js";

const MAY = { read: "can view", write: "can change", admin: "can change, and end the link" };
const address = (link) => `${location.origin}/s/${link.share_token}`;

/** Show the links of a file or folder, and make new ones. */
export function share(item) {
  const links = h("ul", { class: "links-list" }, loading(1));
  const draw = async () => {
    const told = await attempt(() => get(`/api/files/${item.id}/shares`));
    put(links, (told?.shares ?? []).map((link) => row(link, draw)));
  };
  draw();
  return open("Share", (close) => [
    h("p", { class: "about" }, icon(kindOf(item)), label(item.name)),
    maker(item, draw), links,
  ]);
}

function maker(item, draw) {
  const may = h("select", {}, Object.entries(MAY).map(([value, text]) => h("option", { value }, `Whoever has it ${text}`)));
  const ends = h("select", {}, [["", "Never"], ["1", "After a day"], ["7", "After a week"], ["30", "After 30 days"], ["365", "After a year"]]
    .map(([value, text]) => h("option", { value }, text)));
  const password = h("input", { type: "password", autocomplete: "new-password", minlength: 8 });
  return form({
    fields: h("div", { class: "pair" }, field("Permission", may), field("Ends", ends), field("Password (optional)", password, "At least 8 characters.")),
    verb: "Create link",
    submit: async () => {
      const body = { permission: may.value };
      if (ends.value) body.expires_in_days = Number(ends.value);
      if (password.value) body.password = password.value;
      const made = await post(`/api/files/${item.id}/share`, body);
      password.value = "";
      await draw();
      await copy(made);
    },
  });
}

/** Copy a link; where the browser lets no page do that, the address can be marked and copied. */
async function copy(link) {
  try {
    await navigator.clipboard.writeText(address(link));
    toast("The link is copied.");
  } catch {
    toast("The link is made; copy it from the list.");
  }
}

function row(link, draw, item = null) {
  const shown = h("input", { class: "address", readonly: true, value: address(link), "aria-label": "Address of the link" });
  shown.addEventListener("focus", () => shown.select());
  const facts = [MAY[link.permission], link.has_password && "with a password", link.expires_at ? ["ends ", time(link.expires_at)] : "does not end", count(link.downloads, "download")];
  return h("li", { class: "link-row" },
    item && h("p", { class: "about" }, icon(kindOf(item)), label(item.name)),
    h("div", { class: "copy" }, shown, button("Copy", () => copy(link), { drawing: "copy" }),
      tool("Revoke this link", "trash", async () => {
        if (await attempt(() => remove(`/api/files/shares/${link.id}`))) toast("The link is revoked.");
        draw();
      })),
    h("p", { class: "muted facts" }, facts.filter(Boolean).map((fact, k) => [k ? " · " : "", fact])));
}

/** The view of all links. */
export async function show(place, where, ended) {
  const list = h("ul", { class: "links-list wide" });
  const draw = async () => {
    const { shares } = await get("/api/files/shares", {}, { signal: ended });
    const items = await Promise.all(shares.map((link) => get(`/api/files/${link.file_id}`, { deleted: 1 }).then((told) => told.file, () => null)));
    if (ended.aborted) return;
    if (!shares.length) put(body, empty("link", "No links yet", "Share a file or folder, and whoever has the link can reach it without an account."));
    else put(list, shares.map((link, k) => row(link, draw, items[k] ?? { name: "Something that is gone", type: "file" })));
  };
  const body = h("div", { class: "body" }, list);
  put(place, h("section", {}, h("div", { class: "view-head" }, h("h1", {}, "Shared links")), body));
  put(list, loading(4));
  hear("changed", settled(500, () => ended.aborted || attempt(draw)), ended);
  await draw();
}
