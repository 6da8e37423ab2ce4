// One's own things: the devices that are let in, and the account.
import { get, remove, session, set } from "./api.js";
import { attempt, button, confirm, empty, field, form, loading, toast } from "./dialog.js";
import { h, hear, put, settled, tell } from "./dom.js";
import { count, time, visible } from "./format.js";
import { icon } from "./icons.js";
import { follow, leave } from "./live.js";

export const show = (place, where, ended) => (where.view === "devices" ? devices : account)(place, ended);

async function devices(place, ended) {
  const body = h("div", { class: "body" }, loading(4));
  put(place, h("section", {},
    h("div", { class: "view-head" }, h("div", {}, h("h1", {}, "Devices"), h("p", { class: "muted" }, "Browsers, mounts and programs that may use your files."))), body));
  const draw = async () => {
    const told = await get("/api/auth/devices", {}, { signal: ended });
    if (ended.aborted) return;
    const known = told.devices.sort((a, b) => (b.id === session.device) - (a.id === session.device) || b.last_seen - a.last_seen);
    put(body, known.length ? h("ul", { class: "cards" }, known.map((device) => card(device, draw))) : empty("device", "No devices", "None has signed in yet."));
  };
  hear("changed", settled(1000, () => ended.aborted || attempt(draw)), ended);
  await draw();
}

function card(device, draw) {
  const isThis = device.id === session.device;
  const name = visible(device.name);
  const revoke = async () => {
    const text = isThis ? "This is the browser that you are using: you will be signed out." : "It is signed out within a second, and cannot come back without the password.";
    if (!(await confirm(`Revoke “${name}”?`, text, "Revoke"))) return;
    await attempt(() => remove(`/api/auth/devices/${encodeURIComponent(device.id)}`));
    if (!isThis) toast(`“${name}” is revoked.`);
    await attempt(draw);
  };
  return h("li", { class: "panel device" }, icon(device.type === "mount" ? "folder" : "device", "large"),
    h("div", { class: "grow" }, h("h2", {}, h("bdi", {}, name), " ", isThis && h("span", { class: "badge good" }, "This one"), device.active && h("span", { class: "badge good" }, "Mounted")),
      h("p", { class: "muted" }, [device.type && `${device.type[0].toUpperCase()}${device.type.slice(1)} · `, "seen ", time(device.last_seen), " · added ", time(device.created_at), device.active && device.behind > 0 && ` · ${count(device.behind, "change")} behind`])),
    button("Revoke", revoke, { look: "quiet danger", "aria-label": `Revoke ${name}` }));
}

async function account(place, ended) {
  const { user } = await get("/api/auth/profile", {}, { signal: ended });
  const email = h("input", { type: "email", value: user.email ?? "", autocomplete: "email" });
  const old = h("input", { type: "password", required: true, autocomplete: "current-password" });
  const fresh = h("input", { type: "password", required: true, minlength: 8, autocomplete: "new-password" });
  put(place, h("section", { class: "narrow" },
    h("div", { class: "view-head" }, h("div", {}, h("h1", {}, user.username), h("p", { class: "muted" }, user.role === "admin" ? "Admin" : "User", " · since ", time(user.created_at)))),
    h("div", { class: "panel" }, h("h2", {}, "E-mail"),
      form({
        fields: field("E-mail address", email, "You may sign in with it."), verb: "Save",
        submit: async () => {
          await set("/api/auth/profile", { email: email.value.trim() });
          toast("Saved.");
        },
      })),
    h("div", { class: "panel" }, h("h2", {}, "Password"),
      form({
        fields: [field("Current password", old), field("New password", fresh, "At least 8 characters. All else that is signed in, mounts too, must sign in again.")],
        verb: "Change password",
        submit: async () => {
          leave(); // what waits there was let in by the session that ends with the old password
          try {
            const told = await set("/api/auth/profile", { current_password: old.value, new_password: fresh.value });
            session.csrf = told.csrf ?? session.csrf;
          } finally {
            await follow();
            tell("changed", null);
          }
          old.value = fresh.value = "";
          toast("The password is changed.");
        },
      }))));
}
