// Making elements. The one invariant: text stays text. Nothing here or elsewhere parses markup,
// and the page's policy (trusted types) would refuse it.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "indeterminate", "textContent"]);

/** Return an element. `props`: attributes, a few properties, and listeners (`onclick`). */
export function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (PROPERTIES.has(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  return fill(node, ...children, null);
}

/** Append children; what is empty is left out. */
export function fill(node, ...children) {
  const given = children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);
  node.append(...given);
  return node;
}

/** Give a node these children and no others. */
export function put(node, ...children) {
  node.replaceChildren();
  return fill(node, ...children);
}

/** Return an element of a drawing. */
export function svg(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props ?? {})) node.setAttribute(key, value);
  return fill(node, ...children);
}

/** Say something to people who hear the page. */
export function say(text) {
  const said = document.getElementById("said");
  said.textContent = "";
  requestAnimationFrame(() => (said.textContent = text));
}

/** What parts of the page tell each other: "changed", "offline", "online", "signed-out". */
export const bus = new EventTarget();
export const tell = (type, detail) => bus.dispatchEvent(new CustomEvent(type, { detail }));

/** Listen until the view ends. */
export const hear = (type, listener, signal) => bus.addEventListener(type, (e) => listener(e.detail), { signal });

/** Return a function that runs `work` once calls have stopped coming for `wait` ms. */
export function settled(wait, work) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), wait);
  };
}

/** Remember small choices on this machine; a browser that keeps nothing is fine. */
export const memory = {
  get(name, otherwise = "") {
    try {
      return localStorage.getItem(`everfold.${name}`) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      if (value) localStorage.setItem(`everfold.${name}`, value);
      else localStorage.removeItem(`everfold.${name}`);
    } catch {
      // private windows may refuse; then nothing is remembered
    }
  },
};
