// Team folders: folders that several people use, each in their own space.
import { get, post, remove, session, set } from "./api.js";
import { attempt, button, confirm, empty, field, form, loading, open, toast, tool } from "./dialog.js";
import { fill, h, hear, put, settled, tell } from "./dom.js";
import { address, teams } from "./files.js";
import { count, label, visible } from "./format.js";
import { icon } from "./icons.js";

const MAY = { read: "Can view", write: "Can change", owner: "Owner" };
const nameOf = (team) => team.name ?? team.path?.split("/").at(-1) ?? "Team folder";

/** The view of all team folders. */
export async function show(place, where, ended) {
  const body = h("div", { class: "body" }, loading(3));
  const make = button("New team folder", () => create(), { drawing: "plus", look: "primary" });
  put(place, h("section", {}, h("div", { class: "view-head" }, h("h1", {}, "Team folders"), h("div", { class: "tools" }, make)), body));
  const draw = async () => {
    const known = await teams();
    if (ended.aborted) return;
    put(body, known.length
      ? h("ul", { class: "cards" }, known.map(card))
      : empty("users", "No team folders yet", "Share a folder with other people: it appears in their files and mounts."));
  };
  hear("changed", settled(400, () => ended.aborted || attempt(draw)), ended);
  hear("teams", () => attempt(draw), ended);
  await draw();
}

const card = (team) =>
  h("li", { class: "panel device" }, icon("users", "large"),
    h("div", { class: "grow" },
      h("h2", {}, team.path ? h("a", { href: address(team.path) }, label(nameOf(team))) : label(nameOf(team))),
      h("p", { class: "muted" }, `${MAY[team.permission]} · ${team.owner === session.user.username ? "yours" : `of ${team.owner}`} · ${count(team.members?.length ?? 0, "member")}`)),
    button("People", () => manage({ path: team.path, name: nameOf(team) }, team), { drawing: "users", look: "quiet" }));

async function create() {
  const made = await open("New team folder", (close) => {
    const name = h("input", { required: true, autocomplete: "off", spellcheck: "false" });
    return form({
      fields: field("Name", name, "People are added next."), verb: "Create", close,
      submit: async () => close((await post("/api/teams", { path: name.value.trim(), members: [] })).team),
    });
  }, { look: "small" });
  if (!made) return;
  tell("teams");
  await manage({ path: `/${made.path?.replace(/^\//, "") ?? ""}`, name: nameOf(made) }, made);
}

/** Show who may use a folder, and change it. `team`: what is known of it, if it is a team folder. */
export function manage(item, team = null) {
  const people = h("ul", { class: "people" });
  const adder = h("div", {});
  const below = h("div", {});
  let close = () => {};
  const isOwner = () => !team || team.permission === "owner";
  const changed = async () => {
    if (team) team = await get(`/api/teams/${team.id}`).then((told) => told.team, () => team);
    tell("teams");
    draw();
  };
  const draw = () => {
    const members = (team?.members ?? []).filter((each) => each.username !== team.owner);
    put(people, team && person({ username: team.owner, permission: "owner" }), members.map(person),
      !members.length && h("li", { class: "muted pad" }, "Only you so far."));
    put(below, team && h("div", { class: "actions" }, isOwner()
      ? button("Stop sharing", () => attempt(stop), { look: "quiet danger" })
      : button("Leave this folder", () => attempt(() => leave(session.user.username)), { look: "quiet danger" })));
  };
  const person = (each) => {
    const may = isOwner() && each.permission !== "owner";
    const choice = h("select", { "aria-label": `Permission of ${each.username}`, onchange: () => attempt(() => grant(each.username, choice.value)).then(changed) },
      ["read", "write"].map((value) => h("option", { value, selected: value === each.permission }, MAY[value])));
    return h("li", {}, icon("user"), h("span", { class: "grow" }, label(each.username)),
      may ? [choice, tool(`Remove ${each.username}`, "close", () => attempt(() => leave(each.username)))] : h("span", { class: "muted" }, MAY[each.permission]));
  };
  const grant = (name, permission) => set(`/api/teams/${team.id}/members/${encodeURIComponent(name)}`, { permission });
  const leave = async (name) => {
    const isMe = name === session.user.username;
    if (isMe && !(await confirm("Leave this folder?", "It disappears from your files. The owner can let you in again.", "Leave"))) return;
    await remove(`/api/teams/${team.id}/members/${encodeURIComponent(name)}`);
    if (isMe) tell("teams"), close();
    else await changed();
  };
  const stop = async () => {
    if (!(await confirm("Stop sharing?", "It disappears from the files of all others. What is in it stays yours.", "Stop sharing"))) return;
    await remove(`/api/teams/${team.id}`);
    tell("teams");
    close();
  };
  const add = () => {
    const name = h("input", { required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
    const may = h("select", {}, ["write", "read"].map((value) => h("option", { value }, MAY[value])));
    return form({
      fields: h("div", { class: "pair" }, field("Name", name), field("Permission", may)),
      verb: "Add",
      submit: async () => {
        const username = name.value.trim();
        if (team) await grant(username, may.value);
        else team = (await post("/api/teams", { path: item.path, members: [{ username, permission: may.value }] })).team;
        name.value = "";
        toast(`${visible(username)} ${may.value === "read" ? "can view" : "can change"} it.`);
        await changed();
        name.focus();
      },
    });
  };
  return open("People", (end) => {
    close = end;
    draw();
    if (isOwner()) fill(adder, add());
    return [h("p", { class: "about" }, icon("folder"), label(item.name)), adder, people, below];
  });
}
