// Every presentation as it goes by, newest on the right; a click looks at one.

import { html, render } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { picture } from "./focus.js";
import { decision, hit } from "./store.js";

const WIDTH = 76; // px of one
const MOST = 40;
const FEW = 10; // where there is room for no more, those that wait for their end stay out

export function drawStrip(place, store, stimuli, focused, select) {
  const n = Math.max(1, Math.min(MOST, Math.floor(place.clientWidth / WIDTH)));
  const shown = n < FEW ? stimuli.slice(-4 * FEW).filter((stimulus) => stimulus.outcome || decision(stimulus)) : stimuli;
  const cards = repeat(
    shown.slice(-n),
    ({ id }) => id,
    (stimulus) => card(store, stimulus, focused === stimulus, select),
  );
  render(stimuli.length ? cards : html`<li class="empty">nothing yet</li>`, place);
}

function card(store, stimulus, focused, select) {
  const made = decision(stimulus);
  const right = made && hit(made);
  const [mark, word] = outcome(stimulus, made, right);
  const label = store.labels.get(stimulus.key) ?? stimulus.key;
  return html`<li>
    <button type="button" class=${`card ${right ? "right" : ""} ${stimulus.outcome && stimulus.outcome !== "decided" ? "dropped" : ""}`}
      aria-pressed=${focused ? "true" : "false"} title=${`${label}: ${word}`} @click=${() => select(stimulus)}>
      ${picture(store, stimulus.key, "small")}
      <span aria-hidden="true">${mark}</span><span class="hidden">${word}</span>
    </button>
  </li>`;
}

function outcome(stimulus, made, right) {
  if (stimulus.outcome && stimulus.outcome !== "decided") return ["✕", stimulus.outcome];
  if (!made) return ["·", "open"];
  if (right === null) return ["–", "decided"];
  return right ? ["✓", "found"] : [`#${made.rank}`, `rank ${made.rank}`];
}
