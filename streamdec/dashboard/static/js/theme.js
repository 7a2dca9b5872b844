// Light and dark: the system's choice, until the switch says otherwise.

const KEY = "streamdec-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let colours = null;

/** Whether things should move as little as possible. */
export const calm = () => still.matches;

export function theme() {
  return localStorage.getItem(KEY) ?? (dark.matches ? "dark" : "light");
}

function apply(changed) {
  document.documentElement.dataset.theme = theme();
  colours = null;
  changed();
}

/** Follow the system and the switch; call `changed` whenever colours do. */
export function followTheme(changed) {
  dark.addEventListener("change", () => apply(changed));
  apply(changed);
}

export function switchTheme(changed) {
  localStorage.setItem(KEY, theme() === "dark" ? "light" : "dark");
  apply(changed);
}

/** The value of a colour of the style sheet, for what is drawn on a canvas. */
export function colour(name) {
  colours ??= new Map();
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colours.get(name);
}
