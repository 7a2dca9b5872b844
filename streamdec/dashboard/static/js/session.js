// What the session says of itself: streams, account, clock, workers, drops and why.

import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { bytes, count, duration } from "./format.js";

const QUIET = 3; // s without a sign after which the page says so
const ENDS = ["decided", "rejected", "lost_data", "late", "cancelled", "open"];

/** The line at the top: what runs, and how it is. */
export function drawHeading(place, store) {
  const { started, ended, streams, feed } = store;
  const [mood, word] = state(store);
  render(
    html`<span class=${`chip ${mood}`}>${word}</span>
      ${started ? html`<span>${started.bundle.slice(0, 12)} <span class="muted">${started.method}</span></span>` : nothing}
      ${started?.simulated ? html`<span class="chip simulated">simulated EEG</span>` : nothing}
      ${["eeg", "markers"].map((name) => streams[name] && stream(name, streams[name]))}
      ${ended?.reason ? html`<span class="muted">${ended.reason}</span>` : nothing}
      ${feed.missed + store.lost ? html`<span class="late">⚠ ${count(feed.missed + store.lost)} messages missed</span>` : nothing}`,
    place,
  );
}

function state({ link, session, ended, feed }) {
  if (link === "token") return ["", "locked"];
  if (link !== "open") return ["bad", "no connection to the dashboard"];
  if (!session) return ["", "waiting for a session"];
  if (ended) return ["", "ended"];
  if (feed.silence > QUIET) return ["bad", `no sign of the session for ${Math.round(feed.silence)} s`];
  return ["good", "● running"];
}

function stream(name, { state: now, reason, info }) {
  const good = ["connected", "found", "resumed"].includes(now);
  const what = name === "eeg" && info ? `EEG ${info.n_chans} ch` : name === "eeg" ? "EEG" : name;
  return html`<span class=${good ? "chip" : "chip bad"} title=${reason || info?.name || ""}>${what} ${good ? "" : now}</span>`;
}

export function drawSession(place, store) {
  const { stats } = store;
  if (!stats) return render(html`<p class="empty">no statistics yet</p>`, place);
  const { counts } = stats;
  const workers = Object.entries(stats.workers);
  return render(
    html`<dl class="facts">
        <div><dt>onsets</dt><dd>${count(counts.onsets)}</dd></div>
        ${ENDS.filter((end) => counts[end] || end === "decided").map((end) => html`<div><dt>${end.replace("_", " ")}</dt><dd>${count(counts[end])}</dd></div>`)}
        ${["ignored", "duplicate", "garbage"].filter((why) => counts[why]).map((why) => html`<div><dt>${why} markers</dt><dd>${count(counts[why])}</dd></div>`)}
        ${counts.lost_markers ? html`<div><dt>lost markers</dt><dd class="late">${count(counts.lost_markers)}</dd></div>` : nothing}
        <div><dt>gaps</dt><dd>${count(counts.gaps)}${counts.missing_samples ? html` <span class="muted">${count(counts.missing_samples)} samples</span>` : nothing}</dd></div>
        ${counts.unrecorded ? html`<div><dt>unrecorded</dt><dd class="late">${count(counts.unrecorded)}</dd></div>` : nothing}
        <div><dt>EEG rate</dt><dd>${stats.sfreq_effective.toFixed(2)} Hz</dd></div>
        <div><dt>jitter</dt><dd>${duration(stats.clock_jitter)}</dd></div>
        <div><dt>drift</dt><dd>${stats.drift_ppm.toFixed(1)} ppm</dd></div>
        <div><dt>memory</dt><dd>${bytes(stats.memory)}</dd></div>
      </dl>
      ${workers.length ? html`<ul class="chips" aria-label="workers">${workers.map(([name, now]) => html`<li class=${`chip ${now === "ready" ? "good" : now === "starting" ? "" : "bad"}`}>${name} ${now}</li>`)}</ul>` : nothing}`,
    place,
  );
}

/** Why there is no result, most often first. */
export function drawDrops(place, store) {
  const reasons = [...store.reasons.entries()].sort(([, a], [, b]) => b - a).slice(0, 6);
  render(
    reasons.length ? html`<ul class="reasons">${reasons.map(([why, n]) => html`<li><span class="number">${count(n)}</span> ${why}</li>`)}</ul>` : html`<p class="empty">nothing since this page looks</p>`,
    place,
  );
}
