// What may be done with files, wherever they are listed: each asks what it must know, does it, and
// resolves when it is done. Larger ones load their own module when they are first used.
import { get, post } from "./api.js";
import { button, confirm, loading, open, prompt, toast, tool } from "./dialog.js";
import { fill, h, put } from "./dom.js";
import { count, join, parent, visible } from "./format.js";
import { icon } from "./icons.js";

export const preview = async (item, among) => (await import("./preview.js")).preview(item, among);
export const versions = async (item) => (await import("./versions.js")).versions(item);
export const share = async (item) => (await import("./sharing.js")).share(item);
export const team = async (item, known) => (await import("./teams.js")).manage(item, known);

/** Make a folder in a folder. */
export const newFolder = (path) =>
  prompt("New folder", {
    text: "Name", verb: "Create",
    submit: async (name) => (await post("/api/files/mkdir", { path: join(path, oneName(name)) })).file,
  });

/** Give a file or folder another name. */
export function rename(item) {
  const dot = item.type === "file" ? item.name.lastIndexOf(".") : -1;
  return prompt("Rename", {
    text: "Name", value: item.name, verb: "Rename", mark: dot > 0 ? dot : item.name.length,
    submit: async (name) => {
      if (name === item.name) return item;
      const to = join(parent(item.path), oneName(name));
      await refuseTaken(to, item);
      return (await post("/api/files/move", { file_id: item.id, to })).file;
    },
  });
}

function oneName(name) {
  const clean = name.trim();
  if (!clean || clean.includes("/") || clean === "." || clean === "..") throw said("A name is some text without a slash");
  return clean;
}

const said = (message, kind = "said") => Object.assign(new Error(message), { kind });

/** A move to a folder's path goes into that folder; a new name must not. */
async function refuseTaken(to, item) {
  const name = to.split("/").at(-1);
  const there = await get("/api/files/list", { path: parent(to), search: name, per_page: 1000 }).catch(() => ({ files: [] }));
  if (there.files.some((each) => each.path === to && each.id !== item.id)) throw said("That name is taken", "exists");
}

/** Move files to a folder; asks before anything is replaced. */
export async function moveTo(items, to) {
  const moved = [];
  for (const item of items) {
    if (parent(item.path) === to) continue;
    const ask = { file_id: item.id, to: to === "/" ? "/" : `${to}/` };
    try {
      await post("/api/files/move", ask);
    } catch (err) {
      if (err.kind !== "exists") throw err;
      const text = `“${visible(item.name)}” is there already. What it holds now stays in its versions.`;
      if (!(await confirm("Replace?", text, "Replace"))) continue;
      await post("/api/files/move", { ...ask, replace: true });
    }
    moved.push(item);
  }
  if (moved.length) toast(`${count(moved.length, "item")} moved to ${visible(to === "/" ? "Files" : to.split("/").at(-1))}.`, {
    undo: async () => {
      for (const item of moved) await post("/api/files/move", { path: join(to, item.name), to: item.path });
    },
  });
  return moved;
}

/** Ask for a folder, and move files there. */
export async function move(items) {
  const names = items.length === 1 ? `“${visible(items[0].name)}”` : count(items.length, "item");
  const to = await chooseFolder(`Move ${names}`, parent(items[0].path), items);
  if (to === undefined) return [];
  return moveTo(items, to).catch((err) => (toast(err.message, { look: "bad" }), []));
}

/** Ask for a folder; resolves to its path. */
export function chooseFolder(title, path, without = []) {
  return open(title, (close) => {
    const where = h("p", { class: "picker-path" });
    const list = h("div", { class: "picker-list", role: "listbox", "aria-label": "Folders" });
    const here = button("Move here", () => close(path), { look: "primary" });
    const make = tool("New folder", "newfolder", async () => {
      const made = await newFolder(path);
      if (made) go(made.path);
    });
    const go = async (to) => {
      path = to;
      put(where, icon("folder"), h("bdi", { class: "grow" }, visible(to === "/" ? "Files" : to.slice(1))), make);
      put(list, loading(3));
      const told = await get("/api/files/list", { path: to === "/" ? "" : to, per_page: 1000 }).catch(() => ({ files: [] }));
      const folders = told.files.filter((each) => each.type === "directory" && !each.raw_name && !without.some((item) => item.id === each.id));
      const entry = (name, drawing, run) => h("button", { type: "button", role: "option", class: "picker-row", onclick: run }, icon(drawing), h("bdi", {}, name));
      put(list, to !== "/" && entry("Folder above", "left", () => go(parent(to))),
        folders.map((each) => entry(visible(each.name), "folder", () => go(each.path))),
        !folders.length && h("p", { class: "muted pad" }, "No folders in here."));
      list.querySelector("button")?.focus();
    };
    go(path);
    return [where, list, h("div", { class: "actions" }, button("Cancel", () => close()), here)];
  }, { look: "small" });
}
