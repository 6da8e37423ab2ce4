// Numbers, times and names as people read them.
import { h } from "./dom.js";

const UNITS = ["bytes", "KB", "MB", "GB", "TB", "PB"];
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const DATE = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const NUMBER = new Intl.NumberFormat();

/** Return a size, in units of 1024 as quotas are. */
export function size(bytes) {
  let value = Number(bytes) || 0;
  let unit = 0;
  while (value >= 1023.95 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  if (unit === 0) return value === 1 ? "1 byte" : `${value} bytes`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** Read a size as people write it ("10 GB", "512m"); NaN for what is none. */
export function parseSize(text) {
  const found = /^\s*([\d.]+)\s*([kmgtp]?)(i?b|ytes)?\s*$/i.exec(text);
  if (!found) return NaN;
  return Math.round(Number(found[1]) * 1024 ** " kmgtp".indexOf(found[2].toLowerCase() || " "));
}

export const count = (n, one, many = `${one}s`) => `${NUMBER.format(n)} ${n === 1 ? one : many}`;
export const number = (n) => NUMBER.format(n);
export const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(share * 100)} %`;

/** Return a moment: servers tell ISO text, or seconds since 1970. */
export const moment = (at) => new Date(typeof at === "number" ? at * 1000 : at);

const midnight = (at) => new Date(at.getFullYear(), at.getMonth(), at.getDate());

/** Return the day of a moment: "Today", "Yesterday", "3 Nov", "3 Nov 2024". */
export function day(at) {
  const days = Math.round((midnight(new Date()) - midnight(at)) / 864e5);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return (at.getFullYear() === new Date().getFullYear() ? DAY : DATE).format(at);
}

export const clock = (at) => CLOCK.format(at);

/** Return how long ago, while that says more than the date. */
export function ago(at) {
  const seconds = (Date.now() - at) / 1000;
  if (seconds < 45) return "Just now";
  if (seconds < 3570) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  const when = day(at);
  return when === "Today" || when === "Yesterday" ? `${when} ${clock(at)}` : when;
}

/** Return a <time> element that keeps its exact moment at hand. */
export function time(at, shown = ago) {
  if (!at) return "—";
  const when = moment(at);
  if (Number.isNaN(when.getTime())) return "—";
  return h("time", { datetime: when.toISOString(), title: FULL.format(when) }, shown(when));
}

// What would hide, break the line or turn the reading direction is shown as a sign of its own.
const HIDDEN = /[\u0000-\u001f\u007f\u0085\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Return a name as it may be shown: it cannot pretend to be another. */
export const visible = (name) => name.replace(HIDDEN, "\ufffd");

/** Return a name as an element that keeps its reading direction to itself. */
export const label = (name) => h("bdi", {}, visible(name));

/** Return the ending of a path's last name, and the path above it. */
export const parent = (path) => path.slice(0, path.lastIndexOf("/")) || "/";
export const join = (folder, name) => (folder === "/" ? `/${name}` : `${folder}/${name}`);
