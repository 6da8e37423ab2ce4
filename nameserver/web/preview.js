// Looking at a file: the browser shows what it can (images, sound, video, PDF), text is shown as text.
// Nothing of a file ever runs: the server sends it sandboxed, and text is only ever text here.
import { bytesOf, get, load } from "./api.js";
import * as actions from "./actions.js";
import { button, failed, loading, open, tool } from "./dialog.js";
import { h, put, say } from "./dom.js";
import { label, size, visible } from "./format.js";
import { icon, kindOf } from "./icons.js";

const TEXT_MAX = 512 * 1024;
const SNIFFED = 4096;
const TEXTUAL = /^text\/|json|xml$|javascript|x-sh|sql|toml|yaml/;

/** Show a file; the arrow keys go through `among`. */
export function preview(item, among = [item]) {
  let here = Math.max(0, among.findIndex((each) => each.id === item.id));
  const stage = h("div", { class: "stage" });
  const name = h("span", { class: "preview-name" });
  const about = h("span", { class: "muted" });
  const current = () => among[here];
  const head = [
    tool("Versions", "clock", () => actions.versions(current())),
    tool("Share", "link", () => actions.share(current())),
    tool("Download", "download", () => load(bytesOf(current().id))),
  ];
  const draw = async () => {
    const file = current();
    put(name, label(file.name));
    put(about, size(file.size), among.length > 1 ? ` · ${here + 1} of ${among.length}` : "");
    say(visible(file.name));
    const shown = await picture(file, bytesOf(file.id, { inline: true }), () => load(bytesOf(file.id)));
    if (file === current()) put(stage, shown);
  };
  const go = (by) => {
    here = (here + by + among.length) % among.length;
    put(stage, loading(4));
    draw();
  };
  return open(name, (close, dialog) => {
    dialog.addEventListener("keydown", (e) => {
      if (e.target.closest("video, audio, pre, input")) return;
      if (e.key === "ArrowLeft" && among.length > 1) go(-1);
      if (e.key === "ArrowRight" && among.length > 1) go(1);
    });
    draw();
    const turn = among.length > 1 && [
      tool("File before", "left", () => go(-1), { class: "tool turn before" }),
      tool("Next file", "right", () => go(1), { class: "tool turn after" }),
    ];
    return [h("p", { class: "preview-about" }, about), stage, turn];
  }, { look: "full", head });
}

/** Return what shows the bytes at `url`, which are those of `file` or of a version of it. */
export async function picture(file, url, loadIt, key = url) {
  const mime = file.mime_type ?? "";
  const name = visible(file.name);
  const nothing = (why) => none(file, why, loadIt);
  if (!file.size) return nothing("This file is empty.");
  if (mime.startsWith("image/")) return media(h("img", { src: url, alt: name }), nothing);
  if (mime.startsWith("video/")) return media(h("video", { src: url, controls: true, "aria-label": name }), nothing);
  if (mime.startsWith("audio/")) return media(h("audio", { src: url, controls: true, "aria-label": name }), nothing);
  if (mime === "application/pdf") return h("iframe", { src: url, title: name });
  return text(file, key, nothing);
}

function media(node, nothing) {
  node.addEventListener("error", () => node.replaceWith(nothing("The browser cannot show this.")), { once: true });
  return node;
}

async function text(file, url, nothing) {
  const isText = TEXTUAL.test(file.mime_type ?? "");
  try {
    const most = isText ? TEXT_MAX : Math.min(TEXT_MAX, file.size);
    const head = await bytes(url, isText ? most : SNIFFED);
    if (!isText && !isReadable(head)) return nothing("There is no preview for this kind of file.");
    const all = isText || file.size <= SNIFFED ? head : await bytes(url, most);
    const cut = file.size > all.length;
    const note = cut && h("p", { class: "muted pad" }, `The first ${size(all.length)} of ${size(file.size)}.`);
    return h("div", { class: "paper" }, h("pre", { tabindex: "0", dir: "auto" }, new TextDecoder().decode(all)), note);
  } catch (err) {
    return failed(err.kind ? err : { kind: "offline" }, () => {});
  }
}

async function bytes(url, most) {
  const answer = await fetch(url, { headers: { Range: `bytes=0-${most - 1}` } });
  if (!answer.ok) throw Object.assign(new Error("the bytes did not come"), { kind: answer.status === 404 ? "not_found" : "unavailable" });
  return new Uint8Array(await answer.arrayBuffer()).slice(0, most);
}

function isReadable(head) {
  if (head.includes(0)) return false;
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(head.subarray(0, Math.max(0, head.length - 3)));
  } catch {
    return false;
  }
  return true;
}

const none = (file, why, loadIt) =>
  h("div", { class: "empty" }, icon(kindOf(file), "large"), h("h2", {}, why),
    h("div", { class: "actions" }, button("Download", loadIt, { drawing: "download", look: "primary" })));
