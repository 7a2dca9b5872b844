// What the page knows: a fold over the packets, with a bounded memory of the last minutes.

import { floats } from "./link.js";

const STIMULI = 2000; // of which everything is kept
const EVENTS = 6000; // rows of the table
const PICTURES = 4096; // of the gallery; the server takes a page to have the last 1024
const SIGNAL = 120; // s
const REPETITIONS = 60; // decisions on one stimulus,
const STIMULUS_KEYS = 1000; // and stimuli that have any
const LATENCIES = 5000; // of each kind

/** The newest entries of a list that goes on for ever. */
class Ring {
  constructor(most, dropped = () => {}) {
    this.most = most;
    this.dropped = dropped;
    this.items = [];
  }

  push(item) {
    this.items.push(item);
    if (this.items.length > 1.1 * this.most) this.items.splice(0, this.items.length - this.most).forEach(this.dropped);
  }
}

/** The EEG as it came: rows of samples at a fixed rate, holes are NaN. */
class Signal {
  constructor({ ch_names, xy, sources, grid, inside }, matrix, sfreq) {
    Object.assign(this, { ch_names, xy, sfreq });
    this.map = { sources, grid, inside, matrix };
    this.length = Math.ceil(SIGNAL * sfreq);
    this.rows = ch_names.map(() => new Float32Array(this.length).fill(NaN));
    this.start = null; // LSL clock of sample 0
    this.end = 0; // samples so far
    this.bad = {};
  }

  get time() {
    return this.start + this.end / this.sfreq;
  }

  push(time, data, bad) {
    this.start ??= time;
    const n = data.length / this.rows.length;
    const off = Math.round((time - this.time) * this.sfreq);
    if (off <= -n) return; // came before, on the connection before this one
    if (off > 1) this.#skip(off);
    else this.start += time - this.time; // the clocks drift
    this.rows.forEach((row, r) => {
      for (let i = 0; i < n; i++) row[(this.end + i) % this.length] = data[r * n + i];
    });
    this.end += n;
    this.bad = bad;
  }

  #skip(n) {
    for (const row of this.rows) for (let i = 0; i < Math.min(n, this.length); i++) row[(this.end + i) % this.length] = NaN;
    this.end += n;
  }
}

export class Store {
  constructor() {
    this.version = 0; // rises with every change
    this.link = "connecting";
    this.lost = 0;
    this.urls = new Map(); // of the gallery's pictures, by id
    this.labels = new Map();
    this.begin("");
  }

  /** Forget the session before. */
  begin(session) {
    this.session = session;
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.urls.clear();
    this.labels.clear();
    this.stimuli?.items.forEach(forget);
    this.seqs = {};
    this.started = null;
    this.ended = null;
    this.streams = {};
    this.stats = null;
    this.feed = { silence: 0, missed: 0, garbage: 0 };
    this.stimuli = new Ring(STIMULI, (stimulus) => {
      this.byId.delete(stimulus.id);
      forget(stimulus);
    });
    this.byId = new Map();
    this.evidence = new Map(); // decisions by stimulus key
    this.events = new Ring(EVENTS);
    this.latencies = { retrieval: new Ring(LATENCIES), caption: new Ring(LATENCIES), reconstruction: new Ring(LATENCIES) };
    this.reasons = new Map(); // of what was dropped: how often
    this.montage = null;
    this.signal = null;
    this.evoked = null;
    this.now = 0; // LSL clock, s: the newest time seen
    this.shown = null; // newest onset
  }

  take(header, blobs) {
    this.version += 1;
    if (header.seq !== undefined) {
      if (header.seq <= (this.seqs[header.topic] ?? 0)) return; // seen before the connection was lost
      this.seqs[header.topic] = header.seq;
    }
    this[`_${header.topic}`]?.(header, blobs);
  }

  _begin({ session }) {
    if (session !== this.session) this.begin(session);
  }

  _link({ silence, missed, garbage }) {
    this.feed = { silence, missed, garbage };
  }

  _lost({ n }) {
    this.lost = n;
  }

  _picture({ id, label, media }, [blob]) {
    this.labels.set(id, label);
    // One that comes again is the newest again, as the server counts them.
    const known = this.urls.get(id);
    this.urls.delete(id);
    this.urls.set(id, known ?? url(blob, media));
    if (this.urls.size > PICTURES) {
      const [oldest, old] = this.urls.entries().next().value;
      URL.revokeObjectURL(old);
      this.urls.delete(oldest);
    }
  }

  _onset(message) {
    this.shown = this.#stimulus(message);
    this.shown.text = message.text;
    this.#passed(message.onset_time);
  }

  _retrieval(message) {
    const stimulus = this.#stimulus(message);
    const { candidates } = message;
    stimulus.decisions.push(message);
    for (const { id, label } of candidates) if (label) this.labels.set(id, label);
    if (message.final) {
      const history = this.evidence.get(message.key) ?? [];
      history.push({ repetitions: message.repetitions, ids: candidates.map(({ id }) => id), probabilities: candidates.map(({ probability }) => probability) });
      if (history.length > REPETITIONS) history.shift();
      this.evidence.delete(message.key); // so that the newest stands last
      this.evidence.set(message.key, history);
      if (this.evidence.size > STIMULUS_KEYS) this.evidence.delete(this.evidence.keys().next().value);
    }
    this.#result("retrieval", message, stimulus, {
      result: candidates.length ? candidates[0].label || candidates[0].id : "",
      rank: message.rank,
      probability: candidates.length ? candidates[0].probability : null,
      tier: message.final ? "" : `after ${message.horizon} s`,
      flags: message.flags.join(" "),
    });
  }

  _caption(message) {
    const stimulus = this.#stimulus(message);
    stimulus.caption = message;
    if (message.partial) return;
    const { text, tier, probability } = message;
    this.#result("caption", message, stimulus, { result: text, tier, probability, rank: null, flags: "" });
  }

  _reconstruction(message, blobs) {
    const stimulus = this.#stimulus(message);
    if (stimulus.picture?.own) URL.revokeObjectURL(stimulus.picture.own);
    stimulus.picture = { ...message, own: blobs.length ? url(blobs[0], message.media[0]) : null };
    if (message.partial) return;
    const { source, tier, probability } = message;
    const result = source ? this.labels.get(source) ?? source : "a picture";
    this.#result("reconstruction", message, stimulus, { result, tier, probability, rank: null, flags: "" });
  }

  _epoch(message) {
    const stimulus = this.#stimulus(message);
    stimulus.outcome = message.outcome;
    stimulus.reason = message.reason;
    if (message.outcome !== "decided") this.#drop("epoch", message.key, message.outcome, message.reason, stimulus);
  }

  _dropped({ what, key, onset_time, text, reason }) {
    const stimulus = onset_time === null ? null : this.#stimulus({ key, onset_time });
    if (stimulus) stimulus.dropped[what] = reason;
    this.#drop(what, key || text, "dropped", reason, stimulus);
  }

  _session(message) {
    const { state, stream, worker, reason, time } = message;
    this.#passed(time);
    if (state === "started") this.started = message;
    if (state === "ended") this.ended = message;
    if (stream) this.streams[stream] = { ...this.streams[stream], state, reason, info: message[stream] ?? this.streams[stream]?.info };
    if (state === "started") for (const name of ["eeg", "markers"]) if (message[name]) this.streams[name] = { state: "connected", reason: "", info: message[name] };
    this.events.push({ kind: "session", time, key: "", result: `${stream || worker || "session"} ${state}`, reason, outcome: state });
  }

  _stats(message) {
    this.stats = message;
    this.#passed(message.time);
  }

  _montage(header, [matrix]) {
    const fresh = { ...header, matrix: floats(matrix) };
    const same = this.signal && header.ch_names.join() === this.signal.ch_names.join();
    if (same) this.signal.map = { sources: header.sources, grid: header.grid, inside: header.inside, matrix: fresh.matrix };
    else this.signal = null;
    this.montage = fresh;
  }

  _signal({ time, sfreq, bad }, [blob]) {
    if (!this.montage) return;
    if (this.signal?.sfreq !== sfreq) this.signal = new Signal(this.montage, this.montage.matrix, sfreq);
    this.signal.push(time, floats(blob), bad);
    this.#passed(this.signal.time);
  }

  _evoked({ n, tmin, sfreq, rows }, [blob]) {
    const data = floats(blob);
    const width = data.length / rows;
    this.evoked = { n, tmin, sfreq, rows: Array.from({ length: rows }, (_, r) => data.subarray(r * width, (r + 1) * width)) };
  }

  /** The presentation that a message is about. */
  #stimulus({ key, onset_time }) {
    const id = `${key}@${onset_time}`;
    let stimulus = this.byId.get(id);
    if (!stimulus) {
      stimulus = { id, key, time: onset_time, text: "", decisions: [], caption: null, picture: null, dropped: {}, outcome: "", reason: "" };
      this.byId.set(id, stimulus);
      this.stimuli.push(stimulus);
    }
    return stimulus;
  }

  #result(kind, message, stimulus, more) {
    const { latency, budget, deadline_met, published } = message.timing;
    this.latencies[kind].push(latency);
    this.#passed(published);
    const about = { key: message.key, repetitions: message.repetitions, latency, budget, deadline_met };
    this.events.push({ kind, time: published, stimulus, outcome: deadline_met ? "in time" : "late", reason: "", ...about, ...more });
  }

  #drop(what, key, outcome, reason, stimulus) {
    const why = `${outcome === "dropped" ? what : outcome}: ${reason || "no reason given"}`;
    this.reasons.set(why, (this.reasons.get(why) ?? 0) + 1);
    if (this.reasons.size > 200) this.reasons.delete(this.reasons.keys().next().value);
    this.events.push({ kind: "drop", time: this.now, key, stimulus, result: what, outcome, reason });
  }

  #passed(time) {
    this.now = Math.max(this.now, time);
  }
}

/** The final decision on a stimulus, or the newest early one. */
export function decision(stimulus) {
  return stimulus.decisions.at(-1) ?? null;
}

/** Right, wrong, or not to be known: is the best candidate what was shown? */
export function hit(made) {
  return made.rank === null ? null : made.rank === 1;
}

function url(blob, media) {
  return URL.createObjectURL(new Blob([blob], { type: media }));
}

function forget(stimulus) {
  if (stimulus.picture?.own) URL.revokeObjectURL(stimulus.picture.own);
}
