// The past of a file on a time line: what it was, when, by whom and at which machine. A restore is
// itself a new version, so nothing is lost by trying.
import { bytesOf, get, load, post } from "./api.js";
import { attempt, button, empty, failed, loading, open, toast, tool } from "./dialog.js";
import { h, hear, put, settled, tell } from "./dom.js";
import { clock, count, day, label, moment, size, time } from "./format.js";
import { picture } from "./preview.js";

/** Show the versions of a file, also of a deleted one. */
export function versions(item) {
  const ended = new AbortController();
  const place = h("div", { class: "timeline" }, loading(5));
  const draw = async () => {
    try {
      const told = await get(`/api/files/${item.id}/versions`);
      put(place, line(told, draw));
    } catch (err) {
      if (!err.kind) throw err;
      put(place, failed(err, draw));
    }
  };
  const again = settled(100, draw);
  hear("changed", (events) => (events === null || events.some((each) => each.file_id === item.id || each.path === item.path)) && again(), ended.signal);
  draw();
  return open("Versions", () => [h("p", { class: "about" }, label(item.name)), place], { look: "side", onclose: () => ended.abort() });
}

function line({ file, versions: known }, again) {
  if (!known.length) return empty("clock", "No versions yet", "The next save makes the first.");
  const days = Map.groupBy ? Map.groupBy(known, (v) => day(moment(v.created_at))) : group(known);
  return [
    h("p", { class: "muted" }, count(known.length, "version"), " kept, none is ever overwritten."),
    [...days].map(([name, some]) => h("section", { class: "day", "aria-label": name },
      h("h3", {}, name),
      h("ol", {}, some.map((version) => entry(file, version, known, again))))),
  ];
}

function group(known) {
  const days = new Map();
  for (const version of known) {
    const name = day(moment(version.created_at));
    days.set(name, [...(days.get(name) ?? []), version]);
  }
  return days;
}

function entry(file, version, known, again) {
  const before = known[known.indexOf(version) + 1];
  const grown = before ? version.size - before.size : 0;
  const isNow = version.current && !file.deleted_at;
  const look = h("div", { class: "look", hidden: true });
  const eye = tool(`Preview of version ${version.version}`, "eye", () => toggle(), { "aria-expanded": "false" });
  const toggle = async () => {
    look.hidden = !look.hidden;
    eye.setAttribute("aria-expanded", String(!look.hidden));
    if (look.hidden || look.firstChild) return;
    put(look, loading(2));
    const at = { version: version.version };
    put(look, await picture({ ...file, size: version.size }, bytesOf(file.id, { ...at, inline: true }), () => load(bytesOf(file.id, at))));
  };
  const restore = async () => {
    const made = await attempt(() => post(`/api/files/${file.id}/versions/${version.version}/restore`));
    if (!made) return;
    toast(`Version ${version.version} is the current one again, as version ${made.file.version}.`);
    tell("uploaded", made.file);
    await again();
  };
  return h("li", { class: isNow ? "now" : "" },
    h("div", { class: "when" },
      h("strong", {}, `Version ${version.version}`), " ",
      isNow && h("span", { class: "badge good" }, "Current"),
      version.open && h("span", { class: "badge" }, "Being written"),
      version.conflict && h("span", { class: "badge warn" }, "Conflict"),
      h("span", { class: "muted" }, time(version.created_at, clock))),
    h("div", { class: "what" },
      h("span", { class: "muted" }, [version.author, version.device].filter((w, k, all) => w && all.indexOf(w) === k).join(" · ")),
      h("span", { class: "muted" }, size(version.size), grown ? ` (${grown > 0 ? "+" : "−"}${size(Math.abs(grown))})` : "")),
    h("div", { class: "do" },
      eye,
      tool(`Download version ${version.version}`, "download", () => load(bytesOf(file.id, { version: version.version }))),
      !isNow && button("Restore", restore, { drawing: "undo", look: "quiet" })),
    look);
}
