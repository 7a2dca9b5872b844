// Puts the page together: packets into the store, and at most once per animation frame what changed onto the screen.

import { drawEvents, Filter } from "./events.js";
import { Evidence } from "./evidence.js";
import { Evoked } from "./evoked.js";
import { saveCsv, saveJson, savePng } from "./export.js";
import { drawFocus, hold, origin } from "./focus.js";
import { duration, elapsed, percent, quantile } from "./format.js";
import { Latency } from "./latency.js";
import { Link } from "./link.js";
import { drawDrops, drawHeading, drawSession } from "./session.js";
import { Traces, drawHead } from "./signal.js";
import { Store, decision, hit } from "./store.js";
import { Strip } from "./strip.js";
import { calm, followTheme, switchTheme } from "./theme.js";

const SUMMARY = 15; // s between words for screen readers
const AFTER = 3; // s of EEG after a presentation that was chosen
const $ = (id) => document.getElementById(id);

const store = new Store();
const filter = new Filter();
const traces = new Traces($("traces"));
const strip = new Strip($("strip"), (one) => look(now(), one)); // it stays where it is
const evidence = new Evidence($("evidence"), $("evidence-legend"));
const evoked = new Evoked($("evoked"), $("map"), $("map-head"), $("moment"), $("evoked-words"));
const latency = new Latency($("latency"), $("latency-table"));
const link = new Link(
  (header, blobs) => store.take(header, blobs),
  (state) => {
    store.link = state;
    store.version += 1;
    if (state === "token") $("token").showModal();
  },
);

/** Where one looks: live, or at a time, or at one presentation. */
const view = { at: null, chosen: null, focused: null, since: -Infinity };
let repaint = true; // colours or sizes have changed
let drawn = -1; // version of the store
let changed = true; // what is looked at has
const due = {}; // when what need not be drawn at each frame is drawn next

const live = () => view.at === null;
const now = () => (live() ? store.now : view.at);

function look(at, chosen = null) {
  Object.assign(view, { at, chosen });
  changed = true;
}

/** The presentation in focus: the one that was chosen, or the newest decided one, which then stays for a while. */
function focused(stimuli, time) {
  if (view.chosen && store.byId.has(view.chosen.id)) return view.chosen;
  const newest = stimuli.findLast((stimulus) => decision(stimulus)?.final || (stimulus.outcome && stimulus.outcome !== "decided")) ?? null;
  const stays = live() && view.focused && store.byId.has(view.focused.id) && stimuli.includes(view.focused);
  if (!stays || time - view.since > 1e3 * hold(store, calm())) {
    if (newest !== view.focused) view.since = time;
    view.focused = newest;
  }
  return view.focused;
}

/** Every so many milliseconds, and at once when something else than the data changed. */
function often(name, time, interval) {
  if (!changed && !repaint && time < (due[name] ?? 0)) return false;
  due[name] = time + interval;
  return true;
}

function draw(time) {
  requestAnimationFrame(draw);
  if (document.hidden || (drawn === store.version && !changed && !repaint)) return;
  drawn = store.version;
  const slow = calm() ? 1000 : 0;
  const until = view.chosen ? Math.min(store.now, view.chosen.time + AFTER) : now();
  if (store.signal) traces.draw(store.signal, until, Number($("scale").value), store.stimuli.items.map((stimulus) => stimulus.time));
  if (often("focus", time, Math.max(100, slow))) {
    const stimuli = filter.stimuli(store, now());
    const stimulus = focused(stimuli, time);
    drawFocus($("focus"), store, stimulus);
    strip.draw(store, stimuli, stimulus);
    evidence.draw(store, stimulus?.key);
  }
  if (often("second", time, Math.max(500, slow))) {
    drawHeading($("heading"), store);
    drawTransport();
    if (store.signal) drawHead($("head"), $("quality"), store.signal);
    $("no-signal").hidden = Boolean(store.signal);
    drawEvents($("events"), $("events-words"), store, filter.events(store, live() ? Infinity : now()), (one) => look(one.time, one));
  }
  if (often("figures", time, 1000)) {
    drawSession($("session"), store);
    drawDrops($("drops"), store);
    latency.draw(store);
  }
  evoked.draw(store, repaint);
  if (live() && time > (due.summary ?? 0)) {
    due.summary = time + 1e3 * SUMMARY;
    $("summary").textContent = summary();
  }
  changed = repaint = false;
}

function drawTransport() {
  const oldest = store.stimuli.items[0]?.time ?? store.now;
  const slider = $("time");
  [slider.min, slider.max] = [(oldest - origin(store)).toFixed(1), (store.now - origin(store)).toFixed(1)];
  slider.value = now() - origin(store);
  const text = elapsed(now() - origin(store));
  slider.setAttribute("aria-valuetext", live() ? `live, ${text}` : text);
  $("clock").value = live() ? text : `${text} of ${elapsed(store.now - origin(store))}`;
  $("pause").setAttribute("aria-pressed", String(!live()));
  $("pause").children[0].textContent = live() ? "❚❚" : "▶";
  $("pause").children[1].textContent = live() ? "Pause" : "Live";
  document.body.classList.toggle("paused", !live());
  $("focus-title").textContent = live() ? "Now" : "Then";
}

/** The last seconds in a sentence. */
function summary() {
  const recent = store.stimuli.items.filter(({ time }) => time > store.now - SUMMARY);
  const made = recent.map(decision).filter(Boolean);
  if (!made.length) return store.session ? "No decision in the last seconds." : "No session yet.";
  const first = made.filter(hit).length;
  const late = made.filter(({ timing }) => !timing.deadline_met).length;
  const middle = quantile(made.map(({ timing }) => timing.latency).sort((a, b) => a - b), 0.5);
  const dropped = recent.filter(({ outcome }) => outcome && outcome !== "decided").length;
  return `Last ${SUMMARY} seconds: ${made.length} decisions, the seen image first in ${percent(first / made.length)}; median latency ${duration(middle)}; ${late} late, ${dropped} without a decision.`;
}

/** Go to the presentation before or after the one in focus. */
function step(by) {
  const stimuli = filter.stimuli(store, Infinity).filter(decision);
  const at = stimuli.indexOf(view.chosen ?? view.focused);
  const next = stimuli[at < 0 ? stimuli.length - 1 : Math.max(0, Math.min(stimuli.length - 1, at + by))];
  if (next) look(next.time, next);
}

const pause = () => (live() ? look(store.now, view.focused) : look(null));
const shown = () => filter.events(store, now() + (live() ? Infinity : 0));
const dark = () => switchTheme(() => (repaint = true));
const json = () => saveJson(store, shown());
const csv = () => saveCsv(shown());

const actions = { " ": pause, ArrowLeft: () => step(-1), ArrowRight: () => step(1), l: () => look(null), f: () => $("text").focus(), t: dark, j: json, c: csv, "?": () => $("help").showModal() };

/** Whether what has the keyboard needs this key itself. */
function uses(element, key) {
  if (element.closest("dialog, select, [type=search], [type=password]")) return true;
  if (element.type === "range") return key.startsWith("Arrow");
  return key === " " && Boolean(element.closest("button, input"));
}

function listen() {
  $("pause").onclick = pause;
  $("back").onclick = () => step(-1);
  $("forward").onclick = () => step(1);
  $("time").oninput = ({ target }) => look(Number(target.value) + origin(store));
  $("theme").onclick = dark;
  $("help-open").onclick = actions["?"];
  $("scale").onchange = () => (changed = true);
  $("json").onclick = json;
  $("csv").onclick = csv;
  $("filter").onsubmit = (event) => event.preventDefault();
  $("filter").oninput = () => {
    filter.text = $("text").value.trim().toLowerCase();
    filter.outcome = $("outcome").value;
    filter.kinds = new Set([...document.querySelectorAll("[name=kind]:checked")].map(({ value }) => value));
    changed = true;
  };
  $("token-form").onsubmit = () => {
    link.token = $("token-text").value.trim();
    $("token-text").value = "";
    link.connect();
  };
  const charts = { traces: () => $("traces"), evidence: () => evidence.chart.canvas, evoked: () => evoked.chart?.canvas, latency: () => latency.chart.canvas };
  for (const button of document.querySelectorAll("[data-png]"))
    button.onclick = (event) => {
      event.preventDefault();
      const canvas = charts[button.dataset.png]();
      if (canvas) savePng(canvas, button.dataset.png);
    };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || uses(event.target, event.key)) return;
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  addEventListener("resize", () => (repaint = true));
}

followTheme(() => (repaint = true));
listen();
link.connect();
requestAnimationFrame(draw);
