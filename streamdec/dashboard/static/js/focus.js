// One presentation at a pace people can read: what was seen, what was found, said and drawn, and when.

import { html, nothing, render, svg } from "../vendor/lit-html/lit-html.js";
import { duration, elapsed, percent } from "./format.js";
import { decision, hit } from "./store.js";

const TOP = 5;

/** How long a presentation stays in focus, s: until the last of its results is due, and can be read. */
export function hold(store, calm) {
  const budgets = Object.values(store.started?.budgets ?? {});
  return Math.max(calm ? 3 : 0, Math.max(0, ...budgets) * 1.3 + 0.5);
}

export function drawFocus(place, store, stimulus) {
  render(stimulus ? focus(store, stimulus, Math.max(300, place.clientWidth)) : waiting(store), place);
}

function waiting(store) {
  const text = store.session ? "The first decision comes when the first epoch is complete." : "Waiting for a session on the feed.";
  return html`<p class="empty">${text}</p>`;
}

function focus(store, stimulus, width) {
  const made = decision(stimulus);
  const generated = ["caption", "reconstruction"].filter((kind) => store.started?.budgets[kind] !== undefined);
  return html`
    <div class=${generated.length ? "focus" : "focus plain"}>
      <figure class="seen">
        <h3>Seen</h3>
        ${picture(store, stimulus.key, "large")}
        <figcaption>
          <strong>${store.labels.get(stimulus.key) ?? stimulus.key}</strong>
          <span class="muted">${elapsed(stimulus.time - origin(store))}${made ? `, repetition ${made.repetitions}` : ""}</span>
        </figcaption>
      </figure>
      <div class="found">
        <h3>Found ${made ? verdict(made) : nothing}</h3>
        ${made ? candidates(store, stimulus, made) : html`<p class="empty">${stimulus.outcome ? `${stimulus.outcome}: ${stimulus.reason}` : "not yet"}</p>`}
      </div>
      ${generated.includes("caption") ? said(stimulus) : nothing}
      ${generated.includes("reconstruction") ? drawn(store, stimulus) : nothing}
    </div>
    ${timeline(store, stimulus, made, generated, width)}
  `;
}

function verdict(made) {
  const right = hit(made);
  if (right === null) return html`<span class="chip">not in the gallery</span>`;
  return html`<span class=${right ? "chip good" : "chip"}>${right ? "✓ first" : `rank ${made.rank}`} of ${made.gallery_size}</span>`;
}

function candidates(store, stimulus, made) {
  return html`<ol class="candidates">
    ${made.candidates.slice(0, TOP).map(
      ({ id, label, probability }) => html`<li class=${id === stimulus.key ? "right" : ""}>
        ${picture(store, id, "small")}
        <span class="label">${label || id}${id === stimulus.key ? html`<span aria-label="this was seen"> ✓</span>` : nothing}</span>
        <svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect width="100" height="6" class="rest" /><rect width=${100 * probability} height="6" class="part" /></svg>
        <span class="number">${percent(probability)}</span>
      </li>`,
    )}
  </ol>`;
}

function said({ caption, dropped }) {
  return html`<div class="said">
    <h3>Said ${caption ? tier(caption) : nothing}</h3>
    ${caption
      ? html`<blockquote class=${caption.partial ? "partial" : ""}>${caption.text}${caption.partial ? " …" : ""}</blockquote>
          ${deadline(caption)}`
      : html`<p class="empty">${dropped.caption ? `dropped: ${dropped.caption}` : "…"}</p>`}
  </div>`;
}

function drawn(store, { picture: made, dropped }) {
  const source = made && (made.own ?? store.urls.get(made.source));
  return html`<div class="drawn">
    <h3>Drawn ${made ? tier(made) : nothing}</h3>
    ${made
      ? html`${source ? html`<img class=${made.partial ? "large partial" : "large"} src=${source} alt=${`reconstruction by ${made.tier}`} />` : html`<p class="empty">no picture</p>`}
          ${deadline(made)}`
      : html`<p class="empty">${dropped.reconstruction ? `dropped: ${dropped.reconstruction}` : "…"}</p>`}
  </div>`;
}

function tier({ tier: name, units, wanted }) {
  return html`<span class="chip">${name}${wanted > 1 ? ` ${units}/${wanted}` : ""}</span>`;
}

function deadline({ timing, partial }) {
  if (partial) return html`<p class="muted">${duration(timing.latency)} so far</p>`;
  return html`<p class=${timing.deadline_met ? "muted" : "late"}>
    ${timing.deadline_met ? "" : "⚠ late: "}${duration(timing.latency)} of ${duration(timing.budget)}
  </p>`;
}

/** A picture of the gallery, or its place. */
export function picture(store, id, size) {
  const source = store.urls.get(id);
  const label = store.labels.get(id) ?? id;
  return source ? html`<img class=${size} src=${source} alt=${label} />` : html`<span class=${`none ${size}`} role="img" aria-label=${`${label}, no picture`}></span>`;
}

/** When the session began, LSL clock. */
export function origin(store) {
  return store.started?.time ?? store.stimuli.items[0]?.time ?? 0;
}

/** From the onset over the epoch to each result, and what each had as a budget. */
function timeline(store, stimulus, made, generated, width) {
  if (!made) return nothing;
  const { due } = made.timing;
  const lanes = [
    { kind: "retrieval", from: due, timing: made.timing },
    { kind: "caption", timing: stimulus.caption?.timing },
    { kind: "reconstruction", timing: stimulus.picture?.timing },
  ].filter(({ kind }) => kind === "retrieval" || generated.includes(kind));
  const budgets = store.started?.budgets ?? { retrieval: made.timing.budget };
  const end = due - stimulus.time + Math.max(0.1, ...lanes.map(({ kind }) => budgets[kind] ?? 0)) * 1.15;
  const x = (time) => 96 + ((width - 112) * Math.max(0, time - stimulus.time)) / end;
  const step = [0.1, 0.2, 0.5, 1, 2, 5].find((one) => x(stimulus.time + one) - 96 > 60) ?? 10;
  const ticks = Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, i) => i * step);
  const height = 38 + 17 * lanes.length;
  const text = lanes
    .filter(({ timing }) => timing)
    .map(({ kind, timing }) => `${kind} ${duration(timing.latency)} after the epoch's end, ${timing.deadline_met ? "in time" : "late"}`)
    .join("; ");
  return html`<svg class="when" viewBox=${`0 0 ${width} ${height}`} height=${height} role="img" aria-label=${`Time line: ${text}`}>
    ${ticks.map((tick) => svg`<line class="tick" x1=${x(stimulus.time + tick)} x2=${x(stimulus.time + tick)} y1="4" y2=${height - 16} />
      <text class="axis" x=${x(stimulus.time + tick)} y=${height - 4} text-anchor="middle">${tick === 0 ? "onset" : `${Number(tick.toFixed(1))} s`}</text>`)}
    <text x="88" y="15" text-anchor="end">epoch</text>
    <rect class="epoch" x=${x(stimulus.time)} width=${x(due) - x(stimulus.time)} y="6" height="10" rx="3" />
    ${lanes.map(({ kind, from, timing }, i) => lane(kind, from ?? timing?.requested, timing, due + (budgets[kind] ?? 0), 23 + 17 * i, x))}
  </svg>`;
}

function lane(kind, from, timing, until, y, x) {
  return svg`<text x="88" y=${y + 9} text-anchor="end">${kind}</text>
    <line class="budget" x1=${x(until)} x2=${x(until)} y1=${y - 2} y2=${y + 12} />
    ${timing ? svg`<rect class=${`${kind} ${timing.deadline_met ? "" : "late"}`} x=${x(from)} y=${y} height="10" rx="3" width=${Math.max(3, x(timing.published) - x(from))} />` : nothing}`;
}
