// The cluster, for admins: nodes and what is lacking, how busy it is, people, and who did what.
// Looked at again every second while something is on its way, else less often; never unseen.
import { get, post, remove, session, set, words } from "./api.js";
import { attempt, button, confirm, field, form, loading, menu, open, toast, tool } from "./dialog.js";
import { h, memory, put } from "./dom.js";
import { count, label, number, parseSize, percent, size, time, visible } from "./format.js";
import { icon } from "./icons.js";
import { lines } from "./plot.js";
import { tile } from "./usage.js";

const TABS = { "": ["Nodes", nodes], load: ["Load", load], people: ["People", people], audit: ["Audit log", audit] };
const STATES = {
  up: ["Healthy", "good"], suspect: ["Slow to answer", "warn"], down: ["Away", "bad"],
  draining: ["Draining", "warn"], failed: ["Declared dead", "bad"],
};

export async function show(place, where, ended) {
  const chosen = where.path.slice(1) in TABS ? where.path.slice(1) : "";
  const body = h("div", { class: "body" }, loading(6));
  put(place, h("section", {},
    h("div", { class: "view-head" }, h("h1", {}, "Cluster")),
    h("nav", { class: "tabs", "aria-label": "Cluster" }, Object.entries(TABS).map(([tab, [title]]) =>
      h("a", { href: `#/admin${tab && `/${tab}`}`, "aria-current": tab === chosen && "page" }, title))),
    body));
  await TABS[chosen][1](body, ended);
}

/** Do something again and again until the view ends; `work` returns the pause in seconds. */
async function keep(ended, work) {
  while (!ended.aborted) {
    let pause = 5;
    try {
      if (!document.hidden) pause = await work();
    } catch (err) {
      if (ended.aborted || err.status === 401) return;
      if (!err.kind && err.name !== "AbortError") throw err;
    }
    await new Promise((go) => {
      const timer = setTimeout(go, pause * 1000);
      const now = () => (clearTimeout(timer), go());
      ended.addEventListener("abort", now, { once: true });
      addEventListener("everfold-look", now, { once: true });
    });
  }
}
const look = () => dispatchEvent(new Event("everfold-look"));

// ---------------------------------------------------------------- nodes

async function nodes(place, ended) {
  const health = h("div", {});
  const tiles = h("div", { class: "tiles" });
  const list = h("ul", { class: "cards nodes", "aria-label": "Nodes" });
  put(place, loading(6));
  const cards = new Map();
  const most = { deficit: 0, nodes: {} }; // the largest seen, so that a bar can show how far it is
  let first = true;
  const draw = async () => {
    const [system, rows] = await Promise.all([get("/admin/system", {}, { signal: ended }), get("/admin/system/nodes", {}, { signal: ended })]);
    if (ended.aborted) return 1;
    if (first) put(place, health, tiles, list);
    first = false;
    most.deficit = system.under_replicated ? Math.max(most.deficit, system.under_replicated) : 0;
    put(health, healthOf(system, most.deficit));
    put(tiles,
      tile("Files", size(system.live_bytes), count(system.inodes, "name")), tile("On the nodes", size(system.space_used), `of ${size(system.space_capacity)}`),
      tile("Blocks", number(system.blocks), `${system.replicas} copies each`), tile("Folders mounted", number(system.mounts), count(system.users, "user")));
    for (const node of rows) {
      most.nodes[node.id] = node.to_copy ? Math.max(most.nodes[node.id] ?? 0, node.to_copy) : 0;
      const card = cards.get(node.id) ?? cards.set(node.id, new NodeCard()).get(node.id);
      card.draw(node, most.nodes[node.id]);
      if (!card.node.isConnected) list.append(card.node);
    }
    for (const [id, card] of cards) if (!rows.some((node) => node.id === id)) card.node.remove(), cards.delete(id);
    const isCalm = !system.under_replicated && rows.every((node) => node.state === "up" && !node.to_copy);
    return isCalm ? 3 : 1;
  };
  await draw();
  keep(ended, draw);
}

function healthOf(system, most) {
  const { under_replicated: lacking, missing, corrupt, repairing } = system;
  if (!lacking && !missing && !corrupt)
    return h("div", { class: "health good", role: "status" }, icon("check"), h("div", {}, h("strong", {}, "Everything is safe. "), `Every block has its ${system.replicas} copies.`));
  const text = [
    missing && h("strong", {}, `${count(missing, "block")} cannot be read from any node. `),
    lacking && `${count(lacking, "block")} ${lacking === 1 ? "lacks" : "lack"} copies${repairing ? `, ${number(repairing)} on the way` : ""}. `,
    corrupt && `${count(corrupt, "copy", "copies")} went bad and ${corrupt === 1 ? "is" : "are"} being replaced.`,
  ];
  return h("div", { class: `health ${missing ? "bad" : "warn"}`, role: "status" }, icon("alert"),
    h("div", { class: "grow" }, h("div", {}, text), lacking ? h("progress", { max: most, value: most - lacking, "aria-label": "Copies made again" }) : null));
}

class NodeCard {
  constructor() {
    this.node = h("li", { class: "panel node" });
  }

  draw(node, most) {
    const shown = JSON.stringify([node, most]);
    if (shown === this.shown) return;
    this.shown = shown;
    const [text, mood] = STATES[node.state] ?? [node.state, ""];
    const fill = node.capacity ? 1 - node.free / node.capacity : 0;
    const work = node.to_copy > 0 && h("div", { class: "work" },
      h("span", { class: "muted" }, `${count(node.to_copy, "block")} ${["up", "suspect"].includes(node.state) ? "to be copied here" : "to be copied elsewhere"}`),
      h("progress", { max: most, value: most - node.to_copy, "aria-label": `Work left of ${node.id}` }));
    const isFocused = this.node.contains(document.activeElement);
    put(this.node,
      h("header", {}, h("h2", {}, visible(node.id)), h("span", { class: `badge ${mood}` }, text),
        tool(`Actions for ${node.id}`, "more", (e) => menu(e.currentTarget, this.entries(node)))),
      h("meter", { min: 0, max: 1, low: 0.75, high: 0.9, optimum: 0, value: fill, "aria-label": `Disk of ${node.id}: ${percent(fill)} full` }),
      h("p", { class: "muted" }, `${size(node.used)} in ${count(node.blocks, "block")}`, h("br", {}), `${size(node.free)} free of ${size(node.capacity)}`),
      h("p", { class: "muted" }, node.zone ? `Zone ${visible(node.zone)}` : "", node.silent_s > 2 ? ` Silent for ${Math.round(node.silent_s)} s` : ""),
      work);
    if (isFocused) this.node.querySelector(".tool").focus();
  }

  entries(node) {
    const isUp = ["up", "suspect"].includes(node.state);
    return [
      !isUp && { text: "Repair: take it back", drawing: "undo", run: () => act("repair", node, "counts again; what it lacks is copied.") },
      isUp && { text: "Drain", drawing: "move", run: () => act("drain", node, "is being emptied.", "Its copies are made elsewhere first; it can be read until then.") },
      node.state !== "failed" && { text: "Declare dead", drawing: "alert", look: "danger", run: () => act("fail", node, "counts as dead.", "Its copies count for nothing from now on; they are made again on the other nodes.") },
      !isUp && { text: "Remove", drawing: "trash", look: "danger", run: () => act("remove", node, "is removed.", "It leaves the cluster. What is on its disk stays there.") },
    ].filter(Boolean);
  }
}

async function act(verb, node, done, warning = "") {
  const title = { drain: "Drain", fail: "Declare dead", remove: "Remove" }[verb];
  if (warning && !(await confirm(`${title}: ${node.id}?`, warning, title, verb === "drain" ? "primary" : "danger"))) return;
  if (await attempt(() => post(`/admin/system/${verb}-node/${encodeURIComponent(node.id)}`))) toast(`${node.id} ${done}`);
  look();
}

// ---------------------------------------------------------------- load

async function load(place, ended) {
  const choice = h("select", { "aria-label": "How far back", onchange: () => (memory.set("minutes", choice.value), look()) },
    [["15", "15 minutes"], ["60", "1 hour"], ["360", "6 hours"], ["1440", "1 day"]].map(([value, text]) => h("option", { value }, `Last ${text}`)));
  choice.value = memory.get("minutes", "60");
  const plots = h("div", { class: "plots" });
  put(place, h("div", { class: "pair end" }, choice), plots);
  const rate = (value) => `${size(value)}/s`;
  const ms = (value) => (value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
  const draw = async () => {
    const { series } = await get("/admin/system/load", { minutes: choice.value }, { signal: ended });
    if (ended.aborted) return 1;
    put(plots,
      lines("Throughput", series, [{ name: "Written", key: "bytes_in_per_s" }, { name: "Read", key: "bytes_out_per_s" }], rate, 1024),
      lines("Requests", series, [{ name: "Per second", key: "requests_per_s" }], (value) => number(Math.round(value * 10) / 10)),
      lines("Latency", series, [{ name: "99 of 100 within", key: "p99_ms" }, { name: "Half within", key: "p50_ms" }], ms));
    return 10;
  };
  await draw();
  keep(ended, draw);
}

// ---------------------------------------------------------------- people

async function people(place, ended) {
  const draw = async () => {
    const { users } = await get("/admin/users", {}, { signal: ended });
    if (!ended.aborted) put(place,
      h("div", { class: "tools end" },
        session.registration === "invite" && button("Invite", () => invite(), { drawing: "link" }),
        button("Add user", () => addUser().then(draw), { drawing: "plus", look: "primary" })),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Users" },
        h("table", { class: "table" },
          h("thead", {}, h("tr", {}, ["Name", "Role", "Used", "Quota", "History", ""].map((title) => h("th", { scope: "col" }, title)))),
          h("tbody", {}, users.map((user) => person(user, draw))))));
  };
  await draw();
}

function person(user, draw) {
  const share = user.quota ? user.used_bytes / user.quota : 0;
  const change = async (body, done) => {
    if (await attempt(() => set(`/admin/users/${encodeURIComponent(user.username)}`, body))) toast(done);
    await attempt(draw);
  };
  const isMe = user.username === session.user.username;
  const entries = [
    { text: "Change the quota", drawing: "chart", run: () => quota(user).then((n) => n !== undefined && change({ quota: n }, "The quota is changed.")) },
    { text: "Set a password", drawing: "lock", run: () => password(user) },
    !isMe && { text: user.role === "admin" ? "Make a plain user" : "Make an admin", drawing: "user", run: () => change({ role: user.role === "admin" ? "user" : "admin" }, "The role is changed.") },
    !isMe && { text: user.disabled ? "Let in again" : "Disable", drawing: user.disabled ? "check" : "lock", look: user.disabled ? "" : "danger", run: () => change({ disabled: !user.disabled }, user.disabled ? "The account is enabled." : "The account is disabled.") },
  ].filter(Boolean);
  return h("tr", { class: user.disabled ? "off" : "" },
    h("th", { scope: "row" }, label(user.username), user.email && h("span", { class: "muted block" }, visible(user.email))),
    h("td", {}, h("span", { class: `badge ${user.disabled ? "bad" : user.role === "admin" ? "good" : ""}` }, user.disabled ? "Disabled" : user.role === "admin" ? "Admin" : "User")),
    h("td", {}, size(user.used_bytes ?? 0), user.quota ? h("meter", { min: 0, max: 1, low: 0.75, high: 0.9, optimum: 0, value: Math.min(1, share), "aria-label": percent(share) }) : null),
    h("td", {}, user.quota ? size(user.quota) : "No limit"),
    h("td", {}, size(user.history_bytes ?? 0)),
    h("td", { class: "end" }, tool(`Actions for ${user.username}`, "more", (e) => menu(e.currentTarget, entries))));
}

const quota = (user) =>
  open(`Quota of ${user.username}`, (close) => {
    const input = h("input", { value: user.quota ? size(user.quota) : "", placeholder: "No limit", autofocus: true, autocomplete: "off" });
    return form({
      fields: field("Quota", input, "Such as 500 MB or 10 GB; empty for no limit."), verb: "Save", close,
      submit: async () => {
        const n = input.value.trim() ? parseSize(input.value) : 0;
        if (Number.isNaN(n)) throw Object.assign(new Error("a size is a number and perhaps KB, MB, GB or TB"), { kind: "said" });
        close(n);
      },
    });
  }, { look: "small" });

const password = (user) =>
  open(`Password of ${user.username}`, (close) => {
    const input = h("input", { type: "password", required: true, minlength: 8, autocomplete: "new-password" });
    return form({
      fields: field("New password", input, "At least 8 characters. All devices of the user must sign in again."), verb: "Set password", close,
      submit: async () => {
        await set(`/admin/users/${encodeURIComponent(user.username)}/password`, { password: input.value });
        toast("The password is set.");
        close();
      },
    });
  }, { look: "small" });

const addUser = () =>
  open("Add user", (close) => {
    const name = h("input", { required: true, maxlength: 64, autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
    const secret = h("input", { type: "password", required: true, minlength: 8, autocomplete: "new-password" });
    const email = h("input", { type: "email", autocomplete: "off" });
    const role = h("select", {}, h("option", { value: "user" }, "User"), h("option", { value: "admin" }, "Admin"));
    return form({
      fields: [field("Name", name), field("Password", secret, "At least 8 characters."), field("E-mail (optional)", email), field("Role", role)], verb: "Add", close,
      submit: async () => {
        await post("/admin/users", { username: name.value.trim(), password: secret.value, email: email.value.trim(), role: role.value });
        toast(`${visible(name.value.trim())} is added.`);
        close(true);
      },
    });
  }, { look: "small" });

async function invite() {
  const made = await attempt(() => post("/admin/invitations"));
  if (!made) return;
  const address = `${location.origin}/#/?invite=${encodeURIComponent(made.invitation.token)}`;
  await open("Invitation", (close) => {
    const shown = h("input", { class: "address", readonly: true, value: address, "aria-label": "Address of the invitation" });
    return [h("p", { class: "text" }, "Whoever has this address may create one account."), shown,
      h("div", { class: "actions" }, button("Copy", () => navigator.clipboard?.writeText(address).then(() => toast("Copied."), () => shown.select()), { drawing: "copy", look: "primary" }))];
  }, { look: "small" });
}

// ---------------------------------------------------------------- audit

async function audit(place, ended) {
  let page = 1;
  const author = h("input", { type: "search", placeholder: "By whom", "aria-label": "By whom", autocomplete: "off" });
  const action = h("input", { type: "search", placeholder: "What, e.g. login", "aria-label": "What", autocomplete: "off" });
  const table = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Audit log" });
  const turn = h("div", { class: "tools end" });
  const draw = async () => {
    const told = await get("/admin/audit", { page, per_page: 50, author: author.value.trim(), action: action.value.trim() }, { signal: ended });
    if (ended.aborted) return;
    put(table, h("table", { class: "table" },
      h("thead", {}, h("tr", {}, ["When", "Who", "What", "About", "From"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, told.audit.map((row) => h("tr", {}, h("td", {}, time(row.at)), h("td", {}, label(row.author)), h("td", {}, h("code", {}, row.action)),
        h("td", {}, label(row.subject), row.detail && h("span", { class: "muted block" }, visible(row.detail))), h("td", { class: "muted" }, row.address))))));
    put(turn, h("span", { class: "muted" }, `Page ${told.page} of ${Math.max(1, told.pages)}`),
      tool("Newer", "left", () => ((page -= 1), attempt(draw)), { disabled: !told.has_prev }),
      tool("Older", "right", () => ((page += 1), attempt(draw)), { disabled: !told.has_next }));
  };
  for (const input of [author, action]) input.addEventListener("change", () => ((page = 1), attempt(draw)));
  put(place, h("div", { class: "pair" }, author, action), table, turn);
  await draw();
}
