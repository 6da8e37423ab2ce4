// Uploads: a queue that outlives the view, some at a time. Small files go in one request; large ones
// in pieces (`/api/files/uploads`) that go on where they were cut off: after a pause, a lost
// connection, or a reload of the page once the same file is chosen again.
import { ApiError, call, failure, get, post, proof, remove, session, words } from "./api.js";
import { button, tool } from "./dialog.js";
import { fill, h, hear, memory, put, say, settled, tell } from "./dom.js";
import { count, join, label, size, visible } from "./format.js";
import { icon, kindOf } from "./icons.js";

const AT_ONCE = 3;
const LARGE = 8 * 1024 * 1024;
const PIECE = 16 * 1024 * 1024;
const TRIES = 8;

const queue = []; // of Upload
let tray = null;

class Upload {
  constructor(file, path) {
    Object.assign(this, { file, path, state: "waiting", sent: 0, problem: "", tries: 0, id: "", turn: 0 });
  }

  get key() {
    return `upload.${session.user?.id}.${this.path}.${this.file.size}.${this.file.lastModified}`;
  }

  async run() {
    const turn = (this.turn += 1);
    this.state = "running";
    this.problem = "";
    try {
      this.result = await (this.file.size < LARGE ? this.whole() : this.pieces(turn));
      this.state = "done";
      this.sent = this.file.size;
      this.tell();
    } catch (err) {
      if (this.state === "dropped") this.forget();
      if (this.turn !== turn) return; // paused or given up
      if (["offline", "unavailable", "timeout", "busy"].includes(err.kind) && (this.tries += 1) < TRIES) return this.wait();
      this.state = "failed";
      this.problem = words(err);
    }
  }

  tell() {
    tell("uploaded", this.result?.file);
  }

  wait() {
    this.state = "waiting";
    this.problem = "Waiting for the connection";
    this.later = Date.now() + 500 * 2 ** this.tries;
  }

  async whole() {
    const form = new FormData();
    form.append("path", this.path);
    form.append("file", this.file, "file");
    return this.send("POST", "/api/files/upload", form);
  }

  async pieces(turn) {
    let at = await this.begin();
    for (;;) {
      if (this.turn !== turn) throw new ApiError("stopped", "stopped"); // while there was no request to abort
      this.sent = at.offset;
      if (at.complete) break;
      const piece = this.file.slice(at.offset, at.offset + PIECE);
      try {
        const told = await this.send("PATCH", `/api/files/uploads/${at.id}`, piece, { "Upload-Offset": at.offset });
        this.tries = 0;
        at = told.upload;
        if (told.file) {
          memory.set(this.key, "");
          return told;
        }
      } catch (err) {
        if (err.kind !== "conflict") throw err;
        at = (await get(`/api/files/uploads/${at.id}`)).upload;
      }
    }
    memory.set(this.key, "");
    return get(`/api/files/uploads/${at.id}`);
  }

  /** Return the upload on the server: one that was begun before, when it is still known. */
  async begin() {
    const known = this.id || memory.get(this.key);
    const mine = known && (await get("/api/files/uploads")).uploads.find((each) => each.id === known && each.size === this.file.size);
    const upload = mine || (await post("/api/files/uploads", { path: this.path, size: this.file.size })).upload;
    this.id = upload.id;
    memory.set(this.key, upload.id);
    return upload;
  }

  /** Send bytes; fetch cannot tell how far it is, so this is the older way. */
  send(method, route, body, headers = {}) {
    return new Promise((resolve, reject) => {
      const request = (this.request = new XMLHttpRequest());
      const base = this.sent;
      request.open(method, route);
      request.responseType = "json";
      for (const [name, value] of Object.entries({ ...proof(), ...headers })) request.setRequestHeader(name, value);
      request.upload.onprogress = (e) => {
        this.sent = base + Math.min(e.loaded, this.file.size - base);
        draw();
      };
      request.onload = () => (request.status < 300 ? resolve(request.response) : reject(failure(request.status, request.response)));
      request.onerror = () => reject(new ApiError("offline", "the connection broke off"));
      request.onabort = () => reject(new ApiError("stopped", "stopped"));
      request.send(body);
    });
  }

  pause() {
    this.stop("paused");
  }

  stop(state) {
    this.state = state;
    this.turn += 1;
    this.request?.abort();
  }

  resume() {
    Object.assign(this, { state: "waiting", tries: 0, later: 0 });
    if (this.file.size < LARGE) this.sent = 0;
    next();
  }

  drop() {
    const isBusy = this.state === "running";
    this.stop("dropped");
    if (!isBusy) this.forget(); // else once it has stopped: it may not know yet what to forget
    next();
  }

  forget() {
    memory.set(this.key, "");
    if (this.id) remove(`/api/files/uploads/${this.id}`).catch(() => {}); // it is forgotten by itself in the end
  }
}

/** Take files, each [File, its path below the folder], into the queue. */
export function enqueue(files, folder) {
  for (const [file, path] of files) queue.push(new Upload(file, join(folder, path)));
  if (files.length) say(`Uploading ${count(files.length, "file")}`);
  next();
}

/** Let a person choose files for a folder. */
export function choose(folder) {
  const input = h("input", { type: "file", multiple: true, class: "unseen", id: "chosen-files", tabindex: "-1", "aria-hidden": "true" });
  document.getElementById("chosen-files")?.remove();
  input.addEventListener("change", () => {
    enqueue([...input.files].map((file) => [file, file.name]), folder);
    input.remove();
  });
  document.body.append(input);
  input.click();
}

/** Return what was dropped, folders with all that is in them. */
export async function fromDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => [file, file.name]);
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

async function walk(entry, above, found) {
  const path = above + entry.name;
  if (entry.isFile) {
    found.push([await new Promise((yes, no) => entry.file(yes, no)), path]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((yes, no) => reader.readEntries(yes, no));
    if (!some.length) return;
    for (const each of some) await walk(each, `${path}/`, found);
  }
}

function next() {
  const now = Date.now();
  let room = AT_ONCE - queue.filter((each) => each.state === "running").length;
  for (const each of queue) {
    if (room <= 0) break;
    if (each.state !== "waiting" || each.later > now) continue;
    room -= 1;
    each.run().finally(next);
  }
  const later = queue.filter((each) => each.state === "waiting" && each.later > now).map((each) => each.later - now);
  if (later.length) setTimeout(next, Math.min(...later) + 10);
  draw();
  announce();
}

const announce = settled(300, () => {
  const open = queue.some((each) => ["waiting", "running"].includes(each.state));
  const done = queue.filter((each) => each.state === "done" && !each.told);
  if (open || !done.length) return;
  done.forEach((each) => (each.told = true));
  say(`${count(done.length, "file")} uploaded`);
});

hear("online", () => {
  for (const each of queue) if (each.state === "waiting") each.later = 0;
  next();
});
addEventListener("beforeunload", (e) => queue.some((each) => ["waiting", "running"].includes(each.state)) && e.preventDefault());
hear("signed-out", () => queue.forEach((each) => each.state === "running" && each.pause()));

// ---------------------------------------------------------------- the tray

let asked = 0;
function draw() {
  asked ||= requestAnimationFrame(() => ((asked = 0), paint()));
}

function paint() {
  const shown = queue.filter((each) => each.state !== "dropped");
  if (!shown.length) {
    tray?.node.remove();
    tray = null;
    return;
  }
  tray ??= make();
  const left = shown.filter((each) => each.state !== "done").length;
  const total = shown.reduce((sum, each) => sum + each.file.size, 0);
  const sent = shown.reduce((sum, each) => sum + (each.state === "done" ? each.file.size : each.sent), 0);
  tray.title.textContent = left ? `Uploading ${count(left, "file")}` : `${count(shown.length, "file")} uploaded`;
  tray.whole.value = total ? sent / total : 1;
  tray.whole.hidden = !left;
  for (const each of shown) row(each);
  for (const each of queue) if (each.state === "dropped") each.row?.remove();
}

function make() {
  const title = h("h2", { id: "tray-title" });
  const whole = h("progress", { max: 1, value: 0, "aria-label": "All uploads" });
  const rows = h("ul", {});
  const fold = tool("Fold", "down", () => {
    const folded = node.classList.toggle("folded");
    fold.setAttribute("aria-expanded", String(!folded));
  }, { "aria-expanded": "true" });
  const away = tool("Close", "close", () => {
    for (const each of queue) if (each.state !== "done") each.drop();
    queue.length = 0;
    draw();
  });
  const node = h("aside", { class: "tray", "aria-labelledby": "tray-title" }, h("header", {}, title, fold, away), whole, rows);
  document.body.append(node);
  return { node, title, whole, rows };
}

function row(each) {
  each.row ??= rowOf(each);
  if (!each.row.isConnected) tray.rows.append(each.row);
  each.bar.value = each.file.size ? each.sent / each.file.size : Number(each.state === "done");
  each.bar.hidden = each.state === "done" || each.state === "failed";
  const about = {
    waiting: each.problem || "Waiting", paused: `Paused at ${size(each.sent)} of ${size(each.file.size)}`, failed: each.problem,
    running: `${size(each.sent)} of ${size(each.file.size)}`,
    done: each.result?.file?.version > 1 ? `Saved as version ${each.result.file.version}` : size(each.file.size),
  }[each.state];
  if (each.about.textContent !== about) each.about.textContent = about;
  if (each.shown === each.state) return;
  each.shown = each.state;
  each.row.dataset.state = each.state;
  const name = visible(each.file.name);
  put(each.tools,
    each.state === "running" && tool(`Pause ${name}`, "pause", () => (each.pause(), next())),
    ["paused", "failed"].includes(each.state) && tool(`${each.state === "paused" ? "Resume" : "Try again"} ${name}`, "play", () => each.resume()),
    each.state === "done" ? icon("check", "good") : tool(`Cancel ${name}`, "close", () => each.drop()));
}

function rowOf(each) {
  each.bar = h("progress", { max: 1, value: 0, "aria-label": `Upload of ${visible(each.file.name)}` });
  each.about = h("span", { class: "muted" });
  each.tools = h("span", { class: "tools" });
  return h("li", {}, icon(kindOf({ mime_type: each.file.type })), h("div", {}, h("span", { class: "file-name" }, label(each.file.name)), each.about, each.bar), each.tools);
}
