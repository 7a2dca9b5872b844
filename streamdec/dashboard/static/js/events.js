// The table of all that came, newest first, and which of it is wanted.

import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { count, duration, elapsed, percent } from "./format.js";
import { origin } from "./focus.js";
import { decision } from "./store.js";

const ROWS = 40;

export class Filter {
  constructor() {
    this.text = "";
    this.outcome = "";
    this.kinds = new Set(["retrieval", "caption", "reconstruction", "drop", "session"]);
  }

  get active() {
    return Boolean(this.text || this.outcome || this.kinds.size < 5);
  }

  /** Rows of the table up to a time. */
  events(store, until) {
    return store.events.items.filter(
      (event) => event.time <= until && this.kinds.has(event.kind) && (!this.outcome || event.outcome === this.outcome) && this.#names(store, event.key, event.result),
    );
  }

  /** Presentations up to a time. */
  stimuli(store, until) {
    const { items } = store.stimuli;
    if (!this.text && !this.outcome && items.at(-1)?.time <= until) return items;
    return items.filter((stimulus) => stimulus.time <= until && this.#names(store, stimulus.key, "") && (!this.outcome || ends(stimulus).includes(this.outcome)));
  }

  #names(store, key, result) {
    if (!this.text) return true;
    return [key, store.labels.get(key) ?? "", result ?? ""].some((name) => name.toLowerCase().includes(this.text));
  }
}

/** What an outcome filter may ask of a presentation. */
function ends(stimulus) {
  const made = decision(stimulus);
  return [stimulus.outcome, made && (made.timing.deadline_met ? "in time" : "late"), ...Object.keys(stimulus.dropped).map(() => "dropped")];
}

export function drawEvents(place, words, store, events, select) {
  render(html`${count(events.length)} ${events.length > ROWS ? html`rows, the newest ${ROWS} are shown; an export has them all` : "rows"}`, words);
  render(
    events
      .slice(-ROWS)
      .reverse()
      .map((event) => row(store, event, select)),
    place,
  );
}

function row(store, event, select) {
  const { kind, stimulus, key, outcome } = event;
  const name = store.labels.get(key) ?? key;
  const bad = outcome === "late" || kind === "drop" || ["lost", "stalled", "refused", "gap", "unrecorded", "warning"].includes(outcome);
  return html`<tr>
    <td>${elapsed(event.time - origin(store))}</td>
    <td><span class=${`key ${kind}`}></span>${kind}</td>
    <td>${stimulus ? html`<button type="button" class="plain" @click=${() => select(stimulus)}>${name}</button>` : name}</td>
    <td class="wide">${event.result}${event.tier ? html` <span class="chip">${event.tier}</span>` : nothing}${event.flags ? html` <span class="chip">${event.flags}</span>` : nothing}</td>
    <td>${event.rank ?? ""}</td>
    <td>${event.probability === undefined || event.probability === null ? "" : percent(event.probability)}</td>
    <td>${event.repetitions ?? ""}</td>
    <td>${event.latency === undefined ? "" : duration(event.latency)}</td>
    <td class=${bad ? "late" : ""}>${bad ? "⚠ " : ""}${outcome}${event.reason ? html` <span class="muted">${event.reason}</span>` : nothing}</td>
  </tr>`;
}
