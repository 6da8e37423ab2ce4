// A list of files that keyboard, pointer, finger and screen reader can walk through: a grid of rows,
// one of which is in the tab order. What is set again keeps its rows, so focus, selection and scroll
// stay where they are when the list changes by itself.
import { fill, h, put, say } from "./dom.js";
import { label, visible } from "./format.js";
import { icon, kindOf } from "./icons.js";

export const keyOf = (item) => [item.id, item.raw_name ?? item.path, item.deleted_at ?? ""].join("|");
const isCoarse = () => matchMedia("(pointer: coarse)").matches;

export class List {
  /**
   * `columns`: [{key, title, sort, cell(item), look}] after the name. `open(item)`, `actions(at, items)`
   * show what may be done; `keys` maps further keys to functions of the chosen items.
   */
  constructor({ name, columns, open, actions, keys = {}, chosen, sorted, badge, detail, drag }) {
    Object.assign(this, { columns, open, actions, keys, chosen, sorted, badge, detail, drag });
    this.items = [];
    this.rows = new Map();
    this.picked = new Set();
    this.at = "";
    this.anchor = "";
    this.body = h("div", { role: "rowgroup", class: "rows" });
    this.head = h("div", { role: "rowgroup", class: "list-head" });
    this.node = h("div", { role: "grid", class: "list", "aria-label": name, "aria-multiselectable": "true" }, this.head, this.body);
    this.body.addEventListener("keydown", (e) => this.#key(e));
    this.body.addEventListener("click", (e) => this.#click(e));
    this.body.addEventListener("dblclick", (e) => this.#twice(e));
    this.body.addEventListener("contextmenu", (e) => this.#menu(e));
    this.body.addEventListener("focusin", (e) => this.#focused(e));
  }

  /** Show the columns' titles; `order` is {key, falls}. */
  order(order) {
    const cells = [{ key: "name", title: "Name", sort: true }, ...this.columns].map((column) => {
      const isIt = column.key === order?.key;
      const turned = isIt ? (order.falls ? "descending" : "ascending") : "none";
      const title = column.sort && this.sorted
        ? h("button", { type: "button", onclick: () => this.sorted(column.key, isIt && !order.falls) },
            column.title, isIt && icon(order.falls ? "down" : "up", "small"))
        : column.title;
      return h("div", { role: "columnheader", class: `cell ${column.key}`, "aria-sort": turned }, title);
    });
    put(this.head, h("div", { role: "row", class: "row" }, h("div", { class: "cell pick" }), cells, h("div", { class: "cell more" })));
  }

  /** Show these items; those that were there keep their rows. */
  set(items, total = items.length) {
    const active = this.body.contains(document.activeElement) ? document.activeElement : null;
    const focused = active?.closest(".row");
    const place = focused ? [...this.body.children].indexOf(focused) : -1;
    const rows = new Map();
    for (const item of items) rows.set(keyOf(item), this.#row(keyOf(item), item));
    for (const [key, row] of this.rows) if (!rows.has(key)) row.remove();
    let before = null;
    for (const row of rows.values()) {
      const next = before ? before.nextSibling : this.body.firstChild;
      if (row !== next) this.body.insertBefore(row, next);
      before = row;
    }
    this.items = items;
    this.rows = rows;
    this.picked = new Set([...this.picked].filter((key) => rows.has(key)));
    if (!rows.has(this.at)) this.at = items.length ? keyOf(items[Math.min(Math.max(place, 0), items.length - 1)]) : "";
    this.node.setAttribute("aria-rowcount", total + 1);
    this.#mark();
    if (active && document.activeElement !== active) (active.isConnected ? active : this.rows.get(this.at))?.focus({ preventScroll: true });
  }

  get selection() {
    return this.items.filter((item) => this.picked.has(keyOf(item)));
  }

  /** Select nothing. */
  clear() {
    this.#pick([]);
  }

  /** Give the keyboard to a row. */
  focus(item = null) {
    if (item) this.at = keyOf(item);
    this.#mark();
    this.rows.get(this.at)?.focus();
  }

  // ------------------------------------------------------------ rows

  #row(key, item) {
    const row = this.rows.get(key) ?? h("div", { role: "row", class: "row item", tabindex: "-1" });
    const state = JSON.stringify(item) + (this.badge?.(item) ?? "");
    if (row.shown === state) return row;
    row.shown = state;
    row.item = item;
    row.key = key;
    const name = visible(item.name);
    const badge = this.badge?.(item);
    put(row,
      h("div", { role: "gridcell", class: "cell pick" },
        h("span", { class: "picker" }, icon(kindOf(item), kindOf(item)), h("span", { class: "tick" }, icon("check")))),
      h("div", { role: "gridcell", class: "cell name" },
        h("span", { class: "open", title: name }, label(item.name)),
        badge && h("span", { class: "badge" }, badge),
        h("span", { class: "detail" }, this.detail?.(item))),
      this.columns.map((column) => h("div", { role: "gridcell", class: `cell ${column.key}` }, column.cell(item))),
      h("div", { role: "gridcell", class: "cell more" },
        h("button", { type: "button", class: "tool", tabindex: "-1", "aria-label": `Actions for ${name}`, title: "Actions" }, icon("more"))));
    this.drag?.(row, item);
    return row;
  }

  #mark() {
    for (const [key, row] of this.rows) {
      row.tabIndex = key === this.at ? 0 : -1;
      row.setAttribute("aria-selected", this.picked.has(key));
    }
    this.node.classList.toggle("picking", this.picked.size > 0);
  }

  #pick(keys) {
    const before = this.picked.size;
    this.picked = new Set(keys);
    this.#mark();
    if (before || this.picked.size) this.chosen?.(this.selection);
    if (this.picked.size > 1) say(`${this.picked.size} selected`);
  }

  #toggle(key) {
    const keys = new Set(this.picked);
    if (!keys.delete(key)) keys.add(key);
    this.anchor = key;
    this.#pick(keys);
  }

  #through(key) {
    const keys = this.items.map(keyOf);
    const [from, to] = [keys.indexOf(this.anchor || this.at), keys.indexOf(key)].sort((a, b) => a - b);
    this.#pick(keys.slice(Math.max(0, from), to + 1));
  }

  /** What an action is for: the selection when the row is part of it, else the row alone. */
  #meant(item) {
    return this.picked.has(keyOf(item)) ? this.selection : [item];
  }

  // ------------------------------------------------------------ pointer

  #click(e) {
    const row = e.target.closest(".row.item");
    if (!row) return;
    this.at = row.key;
    if (e.target.closest(".more .tool")) return this.actions(e.target.closest(".tool"), this.#meant(row.item));
    if (e.target.closest(".picker") || e.ctrlKey || e.metaKey) return this.#toggle(row.key);
    if (e.shiftKey) return this.#through(row.key);
    if (isCoarse() && this.picked.size) return this.#toggle(row.key);
    if (e.target.closest(".open") || isCoarse()) return this.open(row.item);
    this.anchor = row.key;
    this.#pick(this.picked.size === 1 && this.picked.has(row.key) ? [] : [row.key]);
    row.focus();
  }

  #twice(e) {
    const row = e.target.closest(".row.item");
    if (row && !e.target.closest("button, .picker, .open")) this.open(row.item);
  }

  #menu(e) {
    const row = e.target.closest(".row.item");
    if (!row || e.shiftKey) return;
    e.preventDefault();
    this.at = row.key;
    this.#mark();
    this.actions(row.querySelector(".more .tool"), this.#meant(row.item));
  }

  #focused(e) {
    const row = e.target.closest(".row.item");
    if (row && row.key !== this.at) {
      this.at = row.key;
      this.#mark();
    }
  }

  // ------------------------------------------------------------ keyboard

  #key(e) {
    const row = e.target.closest(".row.item");
    if (!row || e.target.closest("button") || e.altKey) return;
    const here = this.items.findIndex((item) => keyOf(item) === row.key);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
    if (e.key in steps) this.#step(here, steps[e.key], e.shiftKey);
    else if (e.key === " ") this.#toggle(row.key);
    else if (e.key === "Enter") this.open(row.item);
    else if (e.key === "a" && (e.ctrlKey || e.metaKey)) this.#pick(this.items.map(keyOf));
    else if (e.key === "Escape" && this.picked.size) this.clear();
    else if (e.key === "ContextMenu" || (e.key === "F10" && e.shiftKey)) this.actions(row.querySelector(".more .tool"), this.#meant(row.item));
    else if (e.key in this.keys && !e.ctrlKey && !e.metaKey) this.keys[e.key](this.#meant(row.item));
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  #step(here, by, isWide) {
    const to = Math.min(Math.max(here + by, 0), this.items.length - 1);
    const key = keyOf(this.items[to]);
    if (isWide) {
      this.anchor ||= keyOf(this.items[here]);
      this.#through(key);
    } else this.anchor = key;
    this.at = key;
    this.#mark();
    const row = this.rows.get(key);
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }
}
