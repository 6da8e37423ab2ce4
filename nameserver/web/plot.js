// Plots without a library: lines over time, columns, and bars of parts. All are SVG or plain boxes
// with words beside them; each also says in words what it shows.
import { h, put, svg } from "./dom.js";
import { clock, moment } from "./format.js";

const W = 640;
const H = 180;
const LEFT = 8;
const TOP = 12;
const LOW = 24;

/** Round up to 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

/**
 * Return a plot of lines over time. `lines`: [{name, key, look}] of `points`, [{at, …}]; `unit(value)`
 * writes a value.
 */
export function lines(title, points, kinds, unit) {
  const top = ceiling(Math.max(...points.flatMap((p) => kinds.map((kind) => p[kind.key] ?? 0)), 0));
  const x = (k) => LEFT + (k / Math.max(1, points.length - 1)) * (W - 2 * LEFT);
  const y = (value) => TOP + (1 - Math.min(value, top) / top) * (H - TOP - LOW);
  const path = (key) => points.map((p, k) => (p[key] === null || p[key] === undefined ? "" : `${k && points[k - 1][key] !== null ? "L" : "M"}${x(k).toFixed(1)} ${y(p[key]).toFixed(1)}`)).join("");
  const last = points.at(-1) ?? {};
  const grid = [0, 0.5, 1].map((share) => [
    svg("line", { x1: LEFT, x2: W - LEFT, y1: y(top * share), y2: y(top * share), class: "grid" }),
    share > 0 ? svg("text", { x: LEFT, y: y(top * share) - 4, class: "tick" }, unit(top * share)) : null,
  ]);
  const stamps = [0, 0.5, 1].filter(() => points.length > 1).map((share) => {
    const k = Math.round(share * (points.length - 1));
    return svg("text", { x: x(k), y: H - 6, class: "tick", "text-anchor": ["start", "middle", "end"][share * 2] }, clock(moment(points[k].at)));
  });
  const words = `${title}: ${kinds.map((kind) => `${kind.name} now ${unit(last[kind.key] ?? 0)}, at most ${unit(Math.max(0, ...points.map((p) => p[kind.key] ?? 0)))}`).join("; ")}`;
  const area = kinds[0] && points.length > 1 ? svg("path", { d: `${path(kinds[0].key)}L${x(points.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z`, class: "area" }) : null;
  const mark = svg("line", { y1: TOP, y2: H - LOW, class: "mark", visibility: "hidden" });
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": words, class: "plot" },
    grid, area, kinds.map((kind, k) => svg("path", { d: path(kind.key), class: `line line${k}` })), stamps, mark);
  const legend = h("p", { class: "legend" });
  const tellOf = (p, when) => put(legend, kinds.map((kind, k) => h("span", { class: `key key${k}` }, `${kind.name} `, h("strong", {}, unit(p[kind.key] ?? 0)))), when && h("span", { class: "muted" }, when));
  tellOf(last, "");
  drawing.addEventListener("pointermove", (e) => {
    if (!points.length) return;
    const box = drawing.getBoundingClientRect();
    const share = ((e.clientX - box.left) / box.width * W - LEFT) / (W - 2 * LEFT);
    const k = Math.min(points.length - 1, Math.max(0, Math.round(share * (points.length - 1))));
    for (const name of ["x1", "x2"]) mark.setAttribute(name, x(k));
    mark.setAttribute("visibility", "visible");
    tellOf(points[k], clock(moment(points[k].at)));
  });
  drawing.addEventListener("pointerleave", () => (mark.setAttribute("visibility", "hidden"), tellOf(last, "")));
  return h("figure", { class: "panel figure" }, h("figcaption", {}, h("h2", {}, title), legend), drawing);
}

/** Return columns, one a day. `points`: [{label, value, words}]. */
export function columns(title, points) {
  const top = Math.max(1, ...points.map((p) => p.value));
  const step = (W - 2 * LEFT) / Math.max(1, points.length);
  const bars = points.map((p, k) => {
    const tall = p.value ? Math.max(2, (p.value / top) * (H - TOP - LOW)) : 0;
    return svg("g", {}, svg("title", {}, p.words),
      svg("rect", { x: LEFT + k * step, y: TOP, width: step, height: H - TOP - LOW, class: "ghost" }),
      svg("rect", { x: LEFT + k * step + step * 0.14, y: H - LOW - tall, width: step * 0.72, height: tall, rx: Math.min(3, step * 0.3), class: "column" }));
  });
  const ends = [points[0], points.at(-1)].map((p, k) => p && svg("text", { x: k ? W - LEFT : LEFT, y: H - 6, class: "tick", "text-anchor": k ? "end" : "start" }, p.label));
  const busiest = points.reduce((best, p) => (p.value > (best?.value ?? 0) ? p : best), null);
  return h("figure", { class: "panel figure" }, h("figcaption", {}, h("h2", {}, title)),
    svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", class: "plot", "aria-label": `${title}: most on ${busiest ? busiest.words : "no day"}` },
      svg("line", { x1: LEFT, x2: W - LEFT, y1: H - LOW, y2: H - LOW, class: "grid" }), bars, ends));
}

/** Return a bar of parts of a whole. `parts`: [{share, look, words}]. */
export const parts = (name, some) =>
  h("div", { class: "parts", role: "img", "aria-label": `${name}: ${some.map((p) => p.words).join(", ")}` },
    some.filter((p) => p.share > 0).map((p) => {
      const part = h("span", { class: `part ${p.look}`, title: p.words });
      part.style.flexGrow = p.share;
      return part;
    }));
