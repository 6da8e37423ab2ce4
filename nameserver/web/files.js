// The files of a folder, or those that a search finds.
import { bytesOf, get, load, post, remove } from "./api.js";
import * as actions from "./actions.js";
import { attempt, button, empty, failed, loading, menu, toast, tool } from "./dialog.js";
import { fill, h, hear, memory, put, say, settled } from "./dom.js";
import { count, join, parent, size, time, visible } from "./format.js";
import { icon } from "./icons.js";
import { List } from "./list.js";
import { choose, enqueue, fromDrop } from "./upload.js";

const PAGE = 200;
const DRAGGED = "application/x-everfold";
const places = new Map(); // address -> where it was scrolled to, and what was opened from there
const byName = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** Return the address of a folder. */
export const address = (path) => `#/files${path === "/" ? "" : path.split("/").map(encodeURIComponent).join("/")}`;

export const show = (place, where, ended) => new Folder(place, where, ended).begin();

class Folder {
  constructor(place, { path, words }, ended) {
    Object.assign(this, { place, path, words, ended });
    this.order = JSON.parse(memory.get("order", '{"key":"name","falls":false}'));
    this.teams = [];
    this.state = { items: [], total: 0, page: 0, as_of: 0 };
    this.list = new List({
      name: words ? `Found for ${words}` : "Files",
      columns: [
        { key: "modified", title: "Modified", sort: true, cell: (item) => time(item.modified_at) },
        { key: "size", title: "Size", sort: true, cell: (item) => (item.type === "directory" ? "—" : size(item.size)) },
      ],
      open: (item) => this.open(item),
      actions: (at, items) => menu(at, this.entries(items)),
      chosen: (items) => this.bar(items),
      sorted: words ? null : (key, falls) => this.sort(key, falls),
      badge: (item) => this.team(item.path) && "Team",
      detail: (item) => (this.words ? h("bdi", {}, visible(parent(item.path) === "/" ? "Files" : parent(item.path).slice(1))) : detail(item)),
      drag: (row, item) => this.drag(row, item),
      keys: {
        F2: ([item]) => this.mayChange() && actions.rename(item).then(this.again),
        Delete: (items) => this.mayChange() && this.trash(items),
        Backspace: () => this.path !== "/" && (location.hash = address(parent(this.path))),
        v: ([item]) => item.type === "file" && actions.versions(item),
        s: ([item]) => actions.share(item),
        m: (items) => this.mayChange() && actions.move(items).then(this.again),
      },
    });
    this.again = () => this.refresh();
  }

  async begin() {
    this.tools = h("div", { class: "tools" });
    this.body = h("div", { class: "body" });
    this.end = h("div", { class: "list-end" });
    this.view = h("section", { class: "folder", "aria-label": this.words ? "Search" : "Folder" },
      h("div", { class: "view-head" }, this.crumbs(), this.tools), this.body);
    put(this.place, this.view);
    this.bar([]);
    this.watch();
    const bones = setTimeout(() => put(this.body, loading(8)), 120);
    try {
      [this.teams] = await Promise.all([teams(), this.read(1)]);
    } finally {
      clearTimeout(bones);
    }
    if (this.ended.aborted) return;
    this.draw();
    this.bar(this.list.selection);
    const before = places.get(location.hash);
    if (before) scrollTo(0, before.scroll);
    if (before?.focus && document.activeElement === document.body) this.list.focus(this.state.items.find((item) => item.id === before.focus));
    say(`${visible(this.title())}: ${count(this.state.total, "item")}`);
  }

  title() {
    return this.words ? `Found for “${this.words}”` : this.path === "/" ? "Files" : this.path.split("/").at(-1);
  }

  crumbs() {
    if (this.words) {
      const within = this.path === "/" ? null : h("p", { class: "muted" }, "in ", h("bdi", {}, visible(this.path)));
      return h("div", {}, h("h1", {}, this.title()), within);
    }
    const names = this.path.split("/").filter(Boolean);
    const steps = ["Files", ...names].map((name, k) => {
      const to = `/${names.slice(0, k).join("/")}`;
      const isLast = k === names.length;
      const text = h("bdi", {}, visible(name));
      const step = isLast ? h("h1", {}, text) : h("a", { href: address(to) }, text);
      if (!isLast) this.receive(step, to);
      return h("li", { "aria-current": isLast && "page" }, step);
    });
    return h("nav", { "aria-label": "Path", class: "crumbs" }, h("ol", {}, steps));
  }

  // ------------------------------------------------------------ what is there

  async read(page, per_page = PAGE, as_of = 0) {
    const { key, falls } = this.order;
    const told = await get("/api/files/list", {
      path: this.path === "/" ? "" : this.path, search: this.words, page, per_page, as_of: as_of || "",
      sort: key, order: falls ? "desc" : "asc",
    }, { signal: this.ended });
    const items = page === 1 ? told.files : [...this.state.items, ...told.files];
    this.state = { items, total: told.total, page: Math.ceil(items.length / PAGE), as_of: told.as_of, more: told.has_next };
    if (!told.has_next && !this.words) items.sort((a, b) => this.compare(a, b));
  }

  /** All of a folder is here: folders come first, names in the order of people. */
  compare(a, b) {
    const folders = (b.type === "directory") - (a.type === "directory");
    if (folders) return folders;
    const { key, falls } = this.order;
    const names = byName.compare(a.name, b.name);
    const way = { name: names, size: a.size - b.size, modified: a.modified_at < b.modified_at ? -1 : 1 }[key] || names;
    return falls ? -way : way;
  }

  draw() {
    const { items, total } = this.state;
    if (!items.length) {
      put(this.body, this.nothing());
      return;
    }
    if (!this.list.node.isConnected) put(this.body, this.list.node, this.end);
    this.list.order(this.words ? null : this.order);
    this.list.set(items, total);
    put(this.end, this.state.more ? loading(2) : h("p", { class: "muted" }, count(total, "item")));
  }

  nothing() {
    if (this.words) return empty("search", "Nothing found", "No name here has all these words.");
    if (!this.mayChange()) return empty("folder", "Nothing here yet", "Others may put files here; you may look at them.");
    return empty("upload", "Drop files here", "Or choose some. Every version of every file is kept.",
      button("Upload files", () => choose(this.path), { drawing: "upload", look: "primary" }));
  }

  async more() {
    if (!this.state.more || this.busy) return;
    this.busy = true;
    await attempt(() => this.read(this.state.page + 1, PAGE, this.state.as_of));
    this.busy = false;
    if (!this.ended.aborted) this.draw();
  }

  /** Read again what is shown; rows that stay keep focus and selection. */
  async refresh() {
    if (this.ended.aborted) return;
    try {
      const pages = Math.max(1, this.state.page);
      await this.read(1, Math.min(1000, pages * PAGE));
      if (this.ended.aborted) return;
      this.draw();
      this.bar(this.list.selection);
    } catch (err) {
      if (this.ended.aborted || err.kind === "offline" || err.status === 401) return;
      if (!err.kind) throw err;
      put(this.body, failed(err, () => (location.hash = address(parent(this.path))), "Folder above"));
    }
  }

  sort(key, falls) {
    this.order = { key, falls };
    memory.set("order", JSON.stringify(this.order));
    this.refresh();
  }

  /** Listen to what happens elsewhere, to the end of the list, and to what is dropped. */
  watch() {
    const again = settled(80, () => this.refresh());
    hear("changed", (events) => (events === null || events.some((event) => this.concerns(event))) && again(), this.ended);
    hear("uploaded", again, this.ended);
    hear("teams", async () => ((this.teams = await teams()), again()), this.ended);
    const sight = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && this.more(), { rootMargin: "600px" });
    sight.observe(this.end);
    this.ended.addEventListener("abort", () => sight.disconnect());
    this.takeDrops();
    document.addEventListener("keydown", (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select, dialog, .menu")) return;
      if (e.key === "u" && this.mayChange()) choose(this.path);
      else if (e.key === "n" && this.mayChange()) e.preventDefault(), actions.newFolder(this.path).then(this.again);
      else if (e.key === "ArrowDown" && e.target === document.body) e.preventDefault(), this.list.focus();
    }, { signal: this.ended });
  }

  concerns(event) {
    const at = this.path === "/" ? "" : this.path;
    return [event.path, event.old_path].some((path) => path && (this.words ? true : parent(path) === this.path || `${at}/`.startsWith(`${path}/`)));
  }

  // ------------------------------------------------------------ what may be done

  team(path) {
    return this.teams.find((team) => team.path === path);
  }

  mayChange() {
    const within = this.teams.find((team) => team.path && `${this.path}/`.startsWith(`${team.path}/`));
    return within?.permission !== "read";
  }

  bar(items) {
    if (!items.length) {
      put(this.tools, this.mayChange() && !this.words && [
        button("New folder", () => actions.newFolder(this.path).then(this.again), { drawing: "newfolder", "aria-keyshortcuts": "n" }),
        button("Upload", () => choose(this.path), { drawing: "upload", look: "primary", "aria-keyshortcuts": "u" }),
      ]);
      return;
    }
    const files = items.filter((item) => item.type === "file");
    put(this.tools,
      h("div", { class: "chosen", role: "toolbar", "aria-label": "Selection" },
        tool("Select nothing", "close", () => this.list.clear()),
        h("span", { class: "how-many" }, `${items.length} selected`),
        files.length > 0 && files.length === items.length && tool("Download", "download", () => files.forEach((item) => load(bytesOf(item.id)))),
        items.length === 1 && tool("Share", "link", () => actions.share(items[0])),
        this.mayChange() && [
          tool("Move", "move", () => actions.move(items).then(this.again)),
          tool("Move to trash", "trash", () => this.trash(items)),
        ]));
  }

  entries(items) {
    const [item] = items;
    const isFile = item.type === "file";
    const one = items.length === 1;
    return [
      one && { text: isFile ? "Preview" : "Open", drawing: isFile ? "eye" : "folder", keys: "Enter", run: () => this.open(item) },
      items.every((each) => each.type === "file") && { text: "Download", drawing: "download", run: () => items.forEach((each) => load(bytesOf(each.id))) },
      one && isFile && { text: "Versions", drawing: "clock", keys: "V", run: () => actions.versions(item) },
      one && { text: "Share link", drawing: "link", keys: "S", run: () => actions.share(item) },
      one && !isFile && this.path !== undefined && { text: "Share with people", drawing: "users", run: () => actions.team(item, this.team(item.path)) },
      this.words && one && { text: "Show in its folder", drawing: "folder", run: () => (location.hash = address(parent(item.path))) },
      this.mayChange() && [
        null,
        one && { text: "Rename", drawing: "edit", keys: "F2", run: () => actions.rename(item).then(this.again) },
        { text: "Move", drawing: "move", keys: "M", run: () => actions.move(items).then(this.again) },
        { text: "Move to trash", drawing: "trash", keys: "Del", look: "danger", run: () => this.trash(items) },
      ],
    ].flat().filter((entry) => entry !== false && entry !== undefined && entry !== "");
  }

  open(item) {
    if (item.type === "directory") {
      if (item.raw_name) return toast("This name is not valid text. Rename the folder, then open it.", { look: "bad" });
      places.set(location.hash, { scroll: scrollY, focus: item.id });
      location.hash = address(item.path);
      return undefined;
    }
    return actions.preview(item, this.state.items.filter((each) => each.type === "file"));
  }

  async trash(items) {
    const names = items.length === 1 ? `“${visible(items[0].name)}”` : count(items.length, "item");
    const gone = [];
    await attempt(async () => {
      for (const item of items) {
        await remove(`/api/files/${item.id}`, { recursive: item.type === "directory" });
        gone.push(item);
      }
    });
    this.list.clear();
    await this.refresh();
    if (gone.length)
      toast(`${names} moved to the trash.`, {
        undo: () => attempt(async () => {
          for (const item of gone.reverse()) await post("/api/files/undelete", { file_id: item.id });
          await this.refresh();
        }),
      });
  }

  // ------------------------------------------------------------ dragging

  drag(row, item) {
    row.draggable = true;
    row.addEventListener("dragstart", (e) => {
      const meant = this.list.selection.includes(row.item) ? this.list.selection : [row.item];
      this.dragged = meant;
      e.dataTransfer.setData(DRAGGED, "1");
      e.dataTransfer.effectAllowed = "move";
    });
    if (item.type === "directory" && !item.raw_name) this.receive(row, item.path);
  }

  /** Let what is dragged be dropped on an element that stands for a folder. */
  receive(node, path) {
    if (node.receives) return;
    node.receives = true;
    const over = (is) => node.classList.toggle("target", is);
    node.addEventListener("dragover", (e) => {
      const types = e.dataTransfer.types;
      if (!types.includes(DRAGGED) && !types.includes("Files")) return;
      e.preventDefault();
      e.stopPropagation();
      over(true);
    });
    node.addEventListener("dragleave", () => over(false));
    node.addEventListener("drop", async (e) => {
      e.preventDefault();
      e.stopPropagation();
      over(false);
      this.veil?.remove();
      const to = node.item?.path ?? path;
      if (e.dataTransfer.types.includes(DRAGGED)) await attempt(() => actions.moveTo(this.dragged.filter((item) => item.path !== to), to));
      else enqueue(await fromDrop(e.dataTransfer), to);
      this.refresh();
    });
  }

  takeDrops() {
    const signal = this.ended;
    let depth = 0;
    this.veil = h("div", { class: "veil", "aria-hidden": "true" }, h("div", {}, icon("upload", "large"), h("p", {}, "Drop to upload to ", h("strong", {}, h("bdi", {}, visible(this.path === "/" ? "Files" : this.path.slice(1)))))));
    const isFiles = (e) => e.dataTransfer?.types.includes("Files") && this.mayChange() && !this.words;
    const leave = () => ((depth = 0), this.veil.remove());
    addEventListener("dragenter", (e) => isFiles(e) && ((depth += 1), this.view.append(this.veil)), { signal });
    addEventListener("dragleave", (e) => isFiles(e) && (depth -= 1) <= 0 && leave(), { signal });
    addEventListener("dragover", (e) => e.dataTransfer?.types.includes("Files") && e.preventDefault(), { signal });
    addEventListener("drop", async (e) => {
      if (!e.dataTransfer?.types.includes("Files")) return;
      e.preventDefault();
      leave();
      if (isFiles(e)) enqueue(await fromDrop(e.dataTransfer), this.path);
    }, { signal });
  }
}

const detail = (item) => [item.type === "directory" ? "Folder" : size(item.size), " · ", time(item.modified_at)];

/** Return the team folders that one is in; none where the server knows none. */
export async function teams() {
  const told = await get("/api/teams").catch((err) => {
    if (err.name === "AbortError") throw err;
    return { teams: [] };
  });
  return told.teams.map((team) => ({ ...team, path: team.path && `/${team.path.replace(/^\/|\/$/g, "")}` }));
}
