// What was deleted: it comes back as it was, with its history.
import { get, post, remove } from "./api.js";
import * as actions from "./actions.js";
import { attempt, button, confirm, empty, loading, menu, toast } from "./dialog.js";
import { h, hear, put, settled } from "./dom.js";
import { count, parent, size, time, visible } from "./format.js";
import { List } from "./list.js";

const MOST = 1000;

export async function show(place, where, ended) {
  const body = h("div", { class: "body" }, loading(6));
  const tools = h("div", { class: "tools" });
  put(place, h("section", {}, h("div", { class: "view-head" }, h("h1", {}, "Trash"), tools), body));

  const restore = async (items) => {
    const back = [];
    for (const item of items) if (await attempt(() => post("/api/files/undelete", { file_id: item.id }))) back.push(item);
    if (back.length) toast(back.length === 1 ? `“${visible(back[0].name)}” is back in ${visible(parent(back[0].path))}.` : `${count(back.length, "item")} are back.`);
    await draw();
  };
  const purge = async (items) => {
    const text = "All versions are deleted as well. This cannot be undone.";
    if (!(await confirm(`Delete ${items.length === 1 ? `“${visible(items[0].name)}”` : count(items.length, "file")} for good?`, text, "Delete for good"))) return;
    for (const item of items) await attempt(() => remove(`/files/${item.id}`));
    await draw();
  };
  const chosen = (items) => put(tools, items.length > 0 && button(`Restore ${items.length > 1 ? items.length : ""}`.trim(), () => restore(items), { drawing: "undo", look: "primary" }));
  const list = new List({
    name: "Trash",
    columns: [
      { key: "modified", title: "Deleted", cell: (item) => time(item.deleted_at) },
      { key: "size", title: "Size", cell: (item) => (item.type === "directory" ? "—" : size(item.size)) },
    ],
    detail: (item) => ["from ", h("bdi", {}, visible(parent(item.path) === "/" ? "Files" : parent(item.path).slice(1))), h("span", { class: "narrow-only" }, " · ", time(item.deleted_at))],
    open: (item) => (item.type === "file" ? actions.versions(item) : undefined),
    actions: (at, items) => menu(at, [
      { text: "Restore", drawing: "undo", keys: "R", run: () => restore(items) },
      items.length === 1 && items[0].type === "file" && { text: "Versions", drawing: "clock", keys: "Enter", run: () => actions.versions(items[0]) },
      items.every((item) => item.type === "file") && { text: "Delete for good", drawing: "trash", look: "danger", run: () => purge(items) },
    ].filter((entry) => entry !== false)),
    chosen,
    keys: { r: restore },
  });
  const draw = async () => {
    const told = await get("/api/files/list", { deleted: 1, recursive: 1, per_page: MOST }, { signal: ended });
    if (ended.aborted) return;
    if (!told.files.length) {
      put(body, empty("trash", "Nothing in the trash", "What you delete waits here, with all its versions."));
      return;
    }
    list.node.classList.add("with-detail");
    if (!list.node.isConnected) put(body, list.node);
    list.order(null);
    list.set(told.files, told.total);
    chosen(list.selection);
  };
  hear("changed", settled(150, () => ended.aborted || attempt(draw)), ended);
  await draw();
}
