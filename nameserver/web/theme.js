// Before anything is painted: the theme that was chosen here, else the system's.
// A script of its own, for it must not wait for the modules.
{
  let chosen = "";
  try {
    chosen = localStorage.getItem("everfold.theme") || "";
  } catch {
    // storage is switched off: the system's theme it is
  }
  if (chosen) document.documentElement.dataset.theme = chosen;
}
