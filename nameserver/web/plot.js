// Plots without a library: lines over time, columns, and bars of parts. All are SVG or plain boxes
// with words beside them; each also says in words what it shows.
import { h, put, svg } from "./dom.js";
import { clock, moment } from "./format.js";

const H = 190;
const LEFT = 2;
const TOP = 12;
const LOW = 24;

/** Round up to what reads well: 1, 2 or 5 times a power of ten, of `base` (1024 for bytes). */
function ceiling(value, base) {
  if (!(value > 0)) return 1;
  const unit = base ** Math.max(0, Math.floor(Math.log(value) / Math.log(base)));
  const rest = value / unit;
  const power = 10 ** Math.floor(Math.log10(rest));
  return [1, 2, 5, 10].find((step) => step * power >= rest) * power * unit;
}

/** Return a place that is drawn as wide as it is, whenever that changes: text keeps its size. */
function sized(draw) {
  const place = h("div", { class: "plot" });
  let before = 0;
  new ResizeObserver(([{ contentRect }]) => {
    const width = Math.round(contentRect.width);
    if (width && width !== before) put(place, draw((before = width)));
  }).observe(place);
  return place;
}

/**
 * Return a plot of lines over time. `kinds`: [{name, key}] of `points`, [{at, …}]; `unit(value)`
 * writes a value.
 */
export function lines(title, points, kinds, unit, base = 10) {
  const most = (kind) => Math.max(0, ...points.map((p) => p[kind.key] ?? 0));
  const top = ceiling(Math.max(...kinds.map(most)), base);
  const last = points.at(-1) ?? {};
  const legend = h("p", { class: "legend" });
  const tellOf = (p, when) => put(legend, when && h("span", { class: "muted" }, when),
    kinds.map((kind, k) => h("span", { class: `key key${k}` }, `${kind.name} `, h("strong", {}, unit(p[kind.key] ?? 0)))));
  tellOf(last, "");
  const words = `${title}: ${kinds.map((kind) => `${kind.name} now ${unit(last[kind.key] ?? 0)}, at most ${unit(most(kind))}`).join("; ")}`;
  const draw = (width) => {
    const x = (k) => LEFT + (k / Math.max(1, points.length - 1)) * (width - 2 * LEFT);
    const y = (value) => TOP + (1 - Math.min(value, top) / top) * (H - TOP - LOW);
    const path = (key) => points.map((p, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(p[key] ?? 0).toFixed(1)}`).join("");
    const mark = svg("line", { y1: TOP, y2: H - LOW, class: "mark", visibility: "hidden" });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${H}`, role: "img", "aria-label": words },
      grid(width, top, y, unit), points.length > 1 && svg("path", { d: `${path(kinds[0].key)}L${x(points.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z`, class: "area" }),
      kinds.map((kind, k) => svg("path", { d: path(kind.key), class: `line line${k}` })).reverse(), stamps(points, x), mark);
    drawing.addEventListener("pointermove", (e) => {
      if (!points.length) return;
      const share = (e.clientX - drawing.getBoundingClientRect().left - LEFT) / (width - 2 * LEFT);
      const k = Math.min(points.length - 1, Math.max(0, Math.round(share * (points.length - 1))));
      for (const name of ["x1", "x2"]) mark.setAttribute(name, x(k));
      mark.setAttribute("visibility", "visible");
      tellOf(points[k], clock(moment(points[k].at)));
    });
    drawing.addEventListener("pointerleave", () => (mark.setAttribute("visibility", "hidden"), tellOf(last, "")));
    return drawing;
  };
  return h("figure", { class: "panel figure" }, h("figcaption", {}, h("h2", {}, title), legend), sized(draw));
}

const grid = (width, top, y, unit) =>
  [0, 0.5, 1].map((share) => [
    svg("line", { x1: LEFT, x2: width - LEFT, y1: y(top * share), y2: y(top * share), class: "grid" }),
    share > 0 && svg("text", { x: LEFT, y: y(top * share) - 4, class: "tick" }, unit(top * share)),
  ]);

const stamps = (points, x) =>
  points.length > 1 && [0, 0.5, 1].map((share) => {
    const k = Math.round(share * (points.length - 1));
    return svg("text", { x: x(k), y: H - 6, class: "tick", "text-anchor": ["start", "middle", "end"][share * 2] }, clock(moment(points[k].at)));
  });

/** Return columns, one a day. `points`: [{label, value, words}]. */
export function columns(title, points) {
  const top = Math.max(1, ...points.map((p) => p.value));
  const busiest = points.reduce((best, p) => (p.value > (best?.value ?? 0) ? p : best), null);
  const draw = (width) => {
    const step = (width - 2 * LEFT) / Math.max(1, points.length);
    const bars = points.map((p, k) => {
      const tall = p.value ? Math.max(3, (p.value / top) * (H - TOP - LOW)) : 0;
      return svg("g", {}, svg("title", {}, p.words),
        svg("rect", { x: LEFT + k * step, y: TOP, width: step, height: H - TOP - LOW, class: "ghost" }),
        svg("rect", { x: LEFT + k * step + step * 0.15, y: H - LOW - tall, width: step * 0.7, height: tall, rx: 3, class: "column" }));
    });
    const ends = [points[0], points.at(-1)].map((p, k) => p && svg("text", { x: k ? width - LEFT : LEFT, y: H - 6, class: "tick", "text-anchor": k ? "end" : "start" }, p.label));
    return svg("svg", { viewBox: `0 0 ${width} ${H}`, role: "img", "aria-label": `${title}: most on ${busiest ? busiest.words : "no day"}` },
      svg("line", { x1: LEFT, x2: width - LEFT, y1: H - LOW, y2: H - LOW, class: "grid" }), bars, ends);
  };
  return h("figure", { class: "panel figure" }, h("figcaption", {}, h("h2", {}, title)), sized(draw));
}

/** Return a bar of parts of a whole. `parts`: [{share, look, words}]. */
export const parts = (name, some) =>
  h("div", { class: "parts", role: "img", "aria-label": `${name}: ${some.map((p) => p.words).join(", ")}` },
    some.filter((p) => p.share > 0).map((p) => {
      const part = h("span", { class: `part ${p.look}`, title: p.words });
      part.style.flexGrow = p.share;
      return part;
    }));
