// Every presentation as it goes by, newest on the right; a click looks at one.

import { html, render } from "../vendor/lit-html/lit-html.js";
import { picture } from "./focus.js";
import { decision, hit } from "./store.js";

const WIDTH = 76; // px of one
const MOST = 40;
const FEW = 10; // where there is room for no more, those that wait for their end stay out

export class Strip {
  /** @param select called with the presentation that was clicked */
  constructor(place, select) {
    Object.assign(this, { place, select });
    // Items move on as they are: lit-html's own keyed `repeat` (3.3.3) leaves a comment behind for each that goes.
    this.items = new Map();
  }

  draw(store, stimuli, focused) {
    const room = Math.max(1, Math.min(MOST, Math.floor(this.place.clientWidth / WIDTH)));
    const ended = room < FEW ? stimuli.slice(-4 * FEW).filter((stimulus) => stimulus.outcome || decision(stimulus)) : stimuli;
    const shown = ended.slice(-room);
    const ids = new Set(shown.map(({ id }) => id));
    for (const [id, item] of this.items)
      if (!ids.has(id)) {
        item.remove();
        this.items.delete(id);
      }
    shown.forEach((stimulus, i) => {
      const item = this.items.get(stimulus.id) ?? document.createElement("li");
      this.items.set(stimulus.id, item);
      if (this.place.children[i] !== item) this.place.insertBefore(item, this.place.children[i] ?? null);
      render(card(store, stimulus, focused === stimulus, this.select), item);
    });
  }
}

function card(store, stimulus, focused, select) {
  const made = decision(stimulus);
  const right = made && hit(made);
  const [mark, word] = outcome(stimulus, made, right);
  const label = store.labels.get(stimulus.key) ?? stimulus.key;
  return html`<button type="button" class=${`card ${right ? "right" : ""} ${stimulus.outcome && stimulus.outcome !== "decided" ? "dropped" : ""}`}
    aria-pressed=${focused ? "true" : "false"} title=${`${label}: ${word}`} @click=${() => select(stimulus)}>
    ${picture(store, stimulus.key, "small")}
    <span aria-hidden="true">${mark}</span><span class="hidden">${word}</span>
  </button>`;
}

function outcome(stimulus, made, right) {
  if (stimulus.outcome && stimulus.outcome !== "decided") return ["✕", stimulus.outcome];
  if (!made) return ["·", "open"];
  if (right === null) return ["–", "decided"];
  return right ? ["✓", "found"] : [`#${made.rank}`, `rank ${made.rank}`];
}
