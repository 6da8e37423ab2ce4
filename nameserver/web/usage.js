// What one's files amount to: room, history, kinds, days.
import { get } from "./api.js";
import { attempt, empty, loading } from "./dialog.js";
import { h, hear, put, settled } from "./dom.js";
import { count, day, number, percent, size } from "./format.js";
import { columns, parts } from "./plot.js";

const KINDS = [
  [/^image\//, "Images"], [/^video\//, "Video"], [/^audio\//, "Sound"], [/pdf|document|msword|rtf|epub/, "Documents"],
  [/zip|tar|compressed|gzip/, "Archives"], [/^text\/|json|xml|javascript/, "Text and code"],
];

export async function show(place, where, ended) {
  const body = h("div", { class: "body" }, loading(6));
  put(place, h("section", {}, h("div", { class: "view-head" }, h("h1", {}, "Usage")), body));
  const draw = async () => {
    const told = await get("/api/files/stats", { days: 30 }, { signal: ended });
    if (!ended.aborted) put(body, figures(told));
  };
  hear("changed", settled(1500, () => ended.aborted || attempt(draw)), ended);
  await draw();
}

function figures(told) {
  const live = told.total_bytes;
  const past = told.history_bytes;
  const quota = told.quota;
  const used = told.quota_used;
  const whole = quota ? Math.max(quota, used) : live + past || 1;
  const free = quota ? Math.max(0, quota - used) : 0;
  return [
    h("div", { class: "panel" },
      h("h2", {}, quota ? `${size(used)} of ${size(quota)} used` : `${size(live + past)} used`),
      parts("Room", [
        { share: live / whole, look: "live", words: `files ${size(live)}` },
        quota ? { share: free / whole, look: "free", words: `free ${size(free)}` } : { share: past / whole, look: "past", words: `history ${size(past)}` },
      ]),
      h("p", { class: "legend" },
        h("span", { class: "key live" }, "Files ", h("strong", {}, size(live))),
        quota ? h("span", { class: "key free" }, "Free ", h("strong", {}, size(free))) : null,
        h("span", { class: "key past" }, "History ", h("strong", {}, size(past)), quota ? " (does not count)" : ` (${percent(told.history_share)})`))),
    h("div", { class: "tiles" },
      tile("Files", number(told.total_files)), tile("Folders", number(told.total_folders)), tile("Versions", number(told.total_versions)),
      tile("Saved by sharing equal blocks", size(told.dedup.saved_bytes), percent(told.dedup.saved_share))),
    columns("Saves in the last 30 days", told.over_time.map((each) => {
      const at = new Date(`${each.day}T12:00:00`);
      return { label: day(at), value: each.versions, words: `${day(at)}: ${count(each.versions, "version")}, ${size(each.bytes)}` };
    })),
    kinds(told.by_type),
  ];
}

export const tile = (name, value, more = "", look = "") =>
  h("div", { class: `tile ${look}` }, h("span", { class: "muted" }, name), h("strong", {}, value), more && h("span", { class: "muted" }, more));

function kinds(byType) {
  const sums = new Map();
  for (const { mime_type, count: n, bytes } of byType) {
    const name = KINDS.find(([sign]) => sign.test(mime_type))?.[1] ?? "Other";
    const sum = sums.get(name) ?? { n: 0, bytes: 0 };
    sums.set(name, { n: sum.n + n, bytes: sum.bytes + bytes });
  }
  const sorted = [...sums].sort((a, b) => b[1].bytes - a[1].bytes);
  const most = Math.max(1, ...sorted.map(([, sum]) => sum.bytes));
  if (!sorted.length) return empty("chart", "No files yet", "Figures come with the first file.");
  return h("div", { class: "panel" }, h("h2", {}, "By kind"),
    h("ul", { class: "bars" }, sorted.map(([name, sum]) =>
      h("li", {}, h("span", {}, name), h("meter", { min: 0, max: most, value: sum.bytes, "aria-hidden": "true" }), h("span", { class: "muted" }, `${size(sum.bytes)} · ${count(sum.n, "file")}`)))));
}
