// The drawings: 24 x 24, strokes of the text's colour. Each is the `d` of one path.
import { svg } from "./dom.js";

const DRAWN = {
  folder: "M3 7a2 2 0 0 1 2-2h4l2 2.5h8a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z",
  file: "M7 3h7l5 5v11a2 2 0 0 1-2 2H7a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2zm7 0v5h5",
  text: "M7 3h7l5 5v11a2 2 0 0 1-2 2H7a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2zm7 0v5h5M9 13h6M9 16.5h4",
  image: "M5 4h14a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2zM3.5 17l5-5 4 4 3-3 5 5M15.5 9h.01",
  video: "M5 5h14a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V7a2 2 0 0 1 2-2zm5 4.5v5l4.5-2.5z",
  audio: "M9 18V6l11-2v12M9 18a3 3 0 1 1-3-3 3 3 0 0 1 3 3zm11-2a3 3 0 1 1-3-3 3 3 0 0 1 3 3z",
  archive: "M4 4h16v5H4zM5 9v9a2 2 0 0 0 2 2h10a2 2 0 0 0 2-2V9M10 13h4",
  code: "m8 8-4 4 4 4M16 8l4 4-4 4M13.5 5.5l-3 13",
  link: "M10 14a4.5 4.5 0 0 0 6.4 0l3-3A4.5 4.5 0 0 0 13 4.600l-1 1M14 10a4.5 4.5 0 0 0-6.4 0l-3 3A4.5 4.5 0 0 0 11 19.400l1-1",
  users: "M9 11.500a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 19.500c.4-3.4 3-5.5 6.5-5.500s6.1 2.1 6.5 5.500M16 4.800a3.5 3.5 0 0 1 0 6.400M18 14.500c2 .8 3.2 2.6 3.5 5",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20.500c.5-3.8 3.5-6 7.5-6s7 2.2 7.5 6",
  trash: "M4 6.500h16M9.5 6V4h5v2M6 6.5 7 19a1.5 1.5 0 0 0 1.5 1.500h7A1.5 1.5 0 0 0 17 19l1-12.500M10 10.500v6M14 10.500v6",
  device: "M5 5h14a1 1 0 0 1 1 1v9H4V6a1 1 0 0 1 1-1zM2.5 18.500h19",
  chart: "M4 20V4M4 20h16M8.5 16v-4M13 16V8M17.5 16v-6",
  server: "M5 4h14a1.5 1.5 0 0 1 1.5 1.500v4A1.5 1.5 0 0 1 19 11H5a1.5 1.5 0 0 1-1.5-1.500v-4A1.5 1.5 0 0 1 5 4zm0 9h14a1.5 1.5 0 0 1 1.5 1.500v4A1.5 1.5 0 0 1 19 20H5a1.5 1.5 0 0 1-1.5-1.500v-4A1.5 1.5 0 0 1 5 13zM7.5 7.500h.01M7.5 16.500h.01",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5 20 20",
  upload: "M12 16V4.500M7 9l5-5 5 5M4 16v2.500A1.5 1.5 0 0 0 5.5 20h13a1.5 1.5 0 0 0 1.5-1.500V16",
  download: "M12 4v11.500M7 11l5 5 5-5M4 16v2.500A1.5 1.5 0 0 0 5.5 20h13a1.5 1.5 0 0 0 1.5-1.500V16",
  newfolder: "M3 7a2 2 0 0 1 2-2h4l2 2.500h8a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2zM12 10.500v5M9.5 13h5",
  more: "M12 5.500h.01M12 12h.01M12 18.500h.01",
  clock: "M12 21a9 9 0 1 0-8.5-6M3 20v-5h5M12 7v5.500l3.5 2",
  edit: "m4 20 1-4.500L16 4.500a1.8 1.8 0 0 1 2.6 0l.9.9a1.8 1.8 0 0 1 0 2.600L8.5 19z",
  move: "M3 7a2 2 0 0 1 2-2h4l2 2.500h8a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2zM8.5 13.200h6M12.2 10.700l2.5 2.5-2.5 2.5",
  undo: "M9 14 4.5 9.5 9 5M4.5 9.500H14a5.5 5.5 0 0 1 0 11h-3",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 15a3 3 0 1 0 0-6 3 3 0 0 0 0 6z",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 2.500v2M12 19.500v2M4.5 12h-2M21.5 12h-2M6.7 6.7 5.3 5.300M18.7 18.700l-1.4-1.400M6.7 17.300l-1.4 1.400M18.7 5.300l-1.4 1.4",
  moon: "M20 14.500A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.500z",
  leave: "M14 4h4a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2h-4M4 12h11M11 8l4 4-4 4",
  close: "m6 6 12 12M18 6 6 18",
  check: "m5 12.5 4.5 4.500L19 7.5",
  right: "m9 5 7 7-7 7",
  left: "m15 5-7 7 7 7",
  down: "m5 9 7 7 7-7",
  up: "m5 15 7-7 7 7",
  pause: "M9 5.500v13M15 5.500v13",
  play: "M8 5v14l11-7z",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  copy: "M9 9h10v11H9zM15 9V4.500H5V15h4",
  menu: "M4 7h16M4 12h16M4 17h16",
  alert: "M12 4 2.5 20h19zM12 10v5M12 17.500h.01",
  offline: "M3 3l18 18M8.5 8.600A6.5 6.5 0 0 0 6 18.500h11M19.7 17.200A4 4 0 0 0 17.5 10 6.5 6.5 0 0 0 12 6",
  plus: "M12 5v14M5 12h14",
  help: "M9 9a3 3 0 1 1 4.5 2.600c-1 .6-1.5 1.2-1.5 2.400M12 17.500h.01M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18z",
};

/** Return a drawing; it says nothing to who hears the page, what it stands on does. */
export function icon(name, kind = "") {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", class: `icon ${name === "more" ? "dots" : ""} ${kind}`, "aria-hidden": "true" },
    svg("path", { d: DRAWN[name] }),
  );
}

const ARCHIVES = /zip|tar|gzip|compressed|rar|7z|bzip|xz/;
const CODE = /json|javascript|xml|x-sh|python|x-c|html|css|x-java|sql/;

/** Return the name of the drawing of a file. */
export function kindOf(item) {
  if (item.type === "directory") return "folder";
  const mime = item.mime_type ?? "";
  for (const kind of ["image", "video", "audio"]) if (mime.startsWith(`${kind}/`)) return kind;
  if (ARCHIVES.test(mime)) return "archive";
  if (CODE.test(mime)) return "code";
  return mime.startsWith("text/") || /pdf|document|msword|rtf/.test(mime) ? "text" : "file";
}
