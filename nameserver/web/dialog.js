// What comes over the page: dialogs, menus, short messages. <dialog> traps the focus; what had it
// before gets it back. Each opens with `await`, and is gone when it is answered.
import { words } from "./api.js";
import { fill, h, put, say } from "./dom.js";
import { icon } from "./icons.js";

let ids = 0;
const fresh = () => `e${(ids += 1)}`;

/** Return a button. `look`: "primary", "danger", "quiet" or "". */
export const button = (text, onclick, { drawing, look = "", type = "button", ...more } = {}) =>
  h("button", { type, class: `button ${look}`, onclick, ...more }, drawing && icon(drawing), text && h("span", {}, text));

/** Return a button that is a drawing; its words are for the pointer and for who hears the page. */
export const tool = (text, drawing, onclick, more = {}) =>
  h("button", { type: "button", class: "tool", "aria-label": text, title: text, onclick, ...more }, icon(drawing));

/** Return a labelled field. */
export function field(text, input, hint = "") {
  input.id ||= fresh();
  const about = hint && h("p", { class: "hint", id: `${input.id}h` }, hint);
  if (about) input.setAttribute("aria-describedby", about.id);
  return h("div", { class: "field" }, h("label", { for: input.id }, text), input, about);
}

/**
 * Show a dialog. `build(close)` returns its content; `close(value)` ends it. Resolves with the value,
 * undefined when it was dismissed.
 */
export function open(title, build, { look = "", head = [], onclose } = {}) {
  const before = document.activeElement;
  return new Promise((resolve) => {
    let answer;
    const close = (value) => {
      answer = value;
      dialog.close();
    };
    const heading = h("h2", { id: fresh() }, title);
    const dialog = h("dialog", { class: `dialog ${look}`, "aria-labelledby": heading.id });
    const top = h("header", { class: "dialog-head" }, heading, head, tool("Close", "close", () => close()));
    fill(dialog, h("div", { class: "dialog-box" }, top, build(close, dialog)));
    dialog.addEventListener("click", (e) => e.target === dialog && close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      onclose?.();
      if (before?.isConnected) before.focus({ preventScroll: true });
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    (dialog.querySelector("[autofocus]") ?? dialog.querySelector("input, select"))?.focus();
  });
}

/**
 * Return a form. `submit(close)` may throw: its words are shown, and the form stays. While it works
 * the buttons wait.
 */
export function form({ fields, submit, verb, look = "primary", close, more = [] }) {
  const problem = h("p", { class: "problem", role: "alert" });
  const send = button(verb, null, { look, type: "submit" });
  const cancel = close && button("Cancel", () => close());
  const whole = h("form", { class: "form" }, fields, problem, h("div", { class: "actions" }, more, cancel, send));
  whole.addEventListener("submit", async (e) => {
    e.preventDefault();
    send.disabled = true;
    put(problem);
    try {
      await submit();
    } catch (err) {
      if (!err.kind) throw err;
      put(problem, words(err));
    } finally {
      send.disabled = false;
    }
  });
  return whole;
}

/** Ask a question that has a dangerous answer; resolves to true for yes. */
export const confirm = (title, text, verb, look = "danger") =>
  open(title, (close) => [
    h("p", { class: "text" }, text),
    h("div", { class: "actions" },
      button("Cancel", () => close(false)),
      button(verb, () => close(true), { look, autofocus: true })),
  ], { look: "small" });

/** Ask for a line of text, and do something with it; what it throws is shown. */
export const prompt = (title, { text, value = "", verb, mark = value.length, submit }) =>
  open(title, (close) => {
    const input = h("input", { type: "text", value, required: true, autofocus: true, autocomplete: "off", spellcheck: "false" });
    input.addEventListener("focus", () => input.setSelectionRange(0, mark), { once: true });
    return form({
      fields: field(text, input),
      verb, close,
      submit: async () => close(await submit(input.value)),
    });
  }, { look: "small" });

// ---------------------------------------------------------------- menus

/** Show a menu at an element. `entries`: {text, drawing, run, look} or null for a line. */
export function menu(at, entries, name = "Actions") {
  const list = h("div", { class: "menu", role: "menu", popover: "auto", "aria-label": name });
  for (const entry of entries) {
    if (!entry) fill(list, h("hr", {}));
    else
      fill(list, h("button", {
        type: "button", role: "menuitem", tabindex: "-1", class: entry.look ?? "",
        onclick: () => (list.hidePopover(), entry.run()),
      }, icon(entry.drawing), h("span", {}, entry.text), entry.keys && h("kbd", {}, entry.keys)));
  }
  const items = [...list.querySelectorAll("button")];
  list.addEventListener("keydown", (e) => {
    const here = items.indexOf(document.activeElement);
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: items.length - 1, Tab: NaN }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    if (e.key === "Tab") list.hidePopover();
    else items.at(to % items.length).focus();
  });
  list.addEventListener("toggle", (e) => {
    if (e.newState === "open") return;
    at.setAttribute("aria-expanded", "false");
    const hadFocus = list.contains(document.activeElement) || document.activeElement === document.body;
    list.remove();
    if (hadFocus && at.isConnected) at.focus({ preventScroll: true });
  });
  (at.closest("dialog") ?? document.body).append(list);
  at.setAttribute("aria-haspopup", "menu");
  at.setAttribute("aria-expanded", "true");
  list.showPopover();
  place(list, at.getBoundingClientRect());
  items[0]?.focus();
}

function place(list, at) {
  const box = list.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.right - box.width), innerWidth - box.width - 8);
  const below = at.bottom + 4 + box.height <= innerHeight - 8;
  list.style.left = `${left}px`;
  list.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - box.height - 4)}px`;
}

// ---------------------------------------------------------------- messages

/** Say something for a moment; `undo` offers to take it back. */
export function toast(text, { undo, look = "", verb = "Undo" } = {}) {
  const shown = h("div", { class: `toast ${look}` }, look === "bad" && icon("alert"), h("span", {}, text));
  if (undo) fill(shown, button(verb, () => (shown.remove(), undo()), { look: "quiet" }));
  const place = document.querySelector("dialog[open]:last-of-type") ?? document.getElementById("toasts");
  const last = document.getElementById("toasts");
  (place === last ? last : place).append(shown);
  setTimeout(() => shown.remove(), undo ? 9000 : look === "bad" ? 7000 : 4000);
  say(text);
}

/** Do something; a failure is told and not thrown. Returns undefined then. */
export async function attempt(work) {
  try {
    return await work();
  } catch (err) {
    if (err.name === "AbortError") return undefined;
    if (!err.kind) throw err;
    if (err.status !== 401) toast(words(err), { look: "bad" });
    return undefined;
  }
}

// ---------------------------------------------------------------- states of a view

/** Return what is shown where there is nothing. */
export const empty = (drawing, title, text, ...actions) =>
  h("div", { class: "empty" }, icon(drawing, "large"), h("h2", {}, title), h("p", {}, text), actions.length ? h("div", { class: "actions" }, actions) : null);

/** Return what is shown where something failed; `verb` says what `again` does. */
export const failed = (err, again, verb = "Try again") =>
  h("div", { class: "empty", role: "alert" },
    icon(err.kind === "offline" ? "offline" : "alert", "large"),
    h("h2", {}, err.kind === "not_found" ? "Nothing here" : err.kind === "offline" ? "No connection" : "That did not work"),
    h("p", {}, words(err)),
    h("div", { class: "actions" }, button(verb, again, { look: "primary" })));

/** Return what is shown while something loads: quiet lines, unseen for the first moment. */
export const loading = (lines = 6) =>
  h("div", { class: "loading", "aria-busy": "true", "aria-label": "Loading" },
    Array.from({ length: lines }, () => h("div", { class: "bone" })));
