// Coming in: sign in, or register where that is open (or by an invitation).
import { post, session, signIn } from "./api.js";
import { field, form } from "./dialog.js";
import { h, put } from "./dom.js";

/** Ask who somebody is; `enter()` once that is known. */
export function show(place, enter) {
  const invited = new URLSearchParams(location.hash.split("?")[1] ?? "").get("invite") ?? "";
  const mayRegister = session.registration === "open" || session.registration === "invite";
  const draw = (isNew) => {
    const card = isNew ? register(enter, invited) : enterForm(enter);
    const other = mayRegister
      ? h("p", { class: "switch" }, isNew ? "Already here? " : "New here? ",
          h("button", { type: "button", class: "link", onclick: () => draw(!isNew) }, isNew ? "Sign in" : "Create an account"))
      : null;
    put(place,
      h("main", { class: "door" },
        h("div", { class: "card" },
          h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: 48, height: 48 }),
          h("h1", {}, isNew ? "Create an account" : "Sign in to Everfold"),
          h("p", { class: "muted" }, "The folder that never forgets and never loses."),
          card, other)));
    place.querySelector("input")?.focus();
  };
  draw(Boolean(invited) && mayRegister);
}

function enterForm(enter) {
  const name = h("input", { name: "username", autocomplete: "username", required: true, autocapitalize: "none", spellcheck: "false" });
  const password = h("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const stay = h("input", { type: "checkbox", name: "remember" });
  return form({
    fields: [
      field("Name or e-mail", name), field("Password", password),
      h("label", { class: "check" }, stay, h("span", {}, "Stay signed in on this device")),
    ],
    verb: "Sign in",
    submit: async () => {
      await signIn(name.value.trim(), password.value, stay.checked);
      enter();
    },
  });
}

function register(enter, invited) {
  const name = h("input", { autocomplete: "username", required: true, maxlength: 64, autocapitalize: "none", spellcheck: "false" });
  const email = h("input", { type: "email", autocomplete: "email" });
  const password = h("input", { type: "password", autocomplete: "new-password", required: true, minlength: 8 });
  const code = session.registration === "invite" && h("input", { value: invited, required: true, autocomplete: "off", spellcheck: "false" });
  return form({
    fields: [
      field("Name", name, "Letters, digits, dots and dashes."), field("E-mail (optional)", email),
      field("Password", password, "At least 8 characters."), code && field("Invitation", code),
    ],
    verb: "Create account",
    submit: async () => {
      const body = { username: name.value.trim(), email: email.value.trim(), password: password.value };
      if (code) body.invitation = code.value.trim();
      await post("/api/auth/register", body, { quiet: true });
      await signIn(body.username, body.password, false);
      enter();
    },
  });
}
