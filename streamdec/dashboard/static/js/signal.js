// The rolling EEG, and where on the head channels are good or bad.

import { html, nothing, render, svg } from "../vendor/lit-html/lit-html.js";
import { colour } from "./theme.js";

const SECONDS = 8; // across
const LABELS = 52; // px on the left

/** All channels one above the other. Live, what is there moves left and only the new piece is drawn. */
export class Traces {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.drawn = null; // what the canvas shows: signal, newest sample, scale, colours
    new ResizeObserver(() => (this.drawn = null)).observe(canvas);
  }

  /**
   * @param signal the store's
   * @param until LSL clock; the right edge
   * @param scale microvolts from one channel to the next
   * @param marks onsets, LSL clock
   */
  draw(signal, until, scale, marks) {
    const { canvas } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
      this.drawn = null;
    }
    const end = Math.min(signal.end, Math.floor((until - signal.start) * signal.sfreq));
    const look = `${scale} ${colour("trace")} ${Object.keys(signal.bad).join()}`;
    const old = this.drawn;
    if (old?.signal === signal && old.end === end && old.look === look) return;
    const left = Math.round(LABELS * ratio);
    const perSample = (width - left) / (SECONDS * signal.sfreq);
    const x = (sample) => Math.round(width - (end - sample) * perSample);
    const first = end - Math.floor(SECONDS * signal.sfreq);
    const moved = old?.signal === signal && old.look === look && old.end < end ? Math.round(end * perSample) - Math.round(old.end * perSample) : width;
    const context = this.context;
    let from = first;
    context.fillStyle = colour("panel");
    if (moved < width - left && old.end - 2 > first) {
      context.drawImage(canvas, left + moved, 0, width - left - moved, height, left, 0, width - left - moved, height);
      from = old.end - 2;
      context.fillRect(x(from), 0, width - x(from), height);
    } else context.fillRect(0, 0, width, height);
    const inside = new Path2D();
    inside.rect(Math.max(left, x(from)), 0, width, height);
    context.save();
    context.clip(inside);
    this.#onsets(marks, signal, x, height, ratio);
    this.#rows(signal, Math.max(from, signal.end - signal.length, 0), end, x, height, scale, ratio);
    context.restore();
    if (from === first) this.#labels(signal, height, left, ratio);
    this.drawn = { signal, end, look };
  }

  #onsets(marks, signal, x, height, ratio) {
    const { context } = this;
    context.fillStyle = colour("line");
    for (const time of marks) {
      const at = x((time - signal.start) * signal.sfreq);
      if (at >= 0 && at < this.canvas.width) context.fillRect(at, 0, ratio, height);
    }
  }

  #rows(signal, from, end, x, height, scale, ratio) {
    const { context } = this;
    const apart = height / (signal.rows.length + 1);
    context.lineWidth = ratio;
    context.lineJoin = "round";
    signal.rows.forEach((row, r) => {
      const middle = apart * (r + 1);
      context.strokeStyle = colour(signal.ch_names[r] in signal.bad ? "bad" : "trace");
      context.beginPath();
      let pen = false;
      for (let sample = from; sample < end; sample++) {
        const value = row[sample % signal.length];
        if (Number.isFinite(value)) {
          const y = middle - (Math.max(-3, Math.min(3, value / scale)) * apart);
          if (pen) context.lineTo(x(sample), y);
          else context.moveTo(x(sample), y);
        }
        pen = Number.isFinite(value);
      }
      context.stroke();
    });
  }

  #labels(signal, height, left, ratio) {
    const { context } = this;
    const apart = height / (signal.rows.length + 1);
    const every = Math.max(1, Math.ceil((11 * ratio) / apart));
    context.fillStyle = colour("panel");
    context.fillRect(0, 0, left, height);
    context.font = `${10 * ratio}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    signal.ch_names.forEach((name, r) => {
      if (r % every && !(name in signal.bad)) return;
      context.fillStyle = colour(name in signal.bad ? "bad" : "muted");
      context.fillText(name, left - 6 * ratio, apart * (r + 1));
    });
  }
}

/** The head from above, nose up; in the montage's circle of radius 1 the equator is at 0.8. */
export function outline() {
  return svg`<circle class="head" r="0.8" /><path class="head" d="M-0.1,-0.795 L0,-0.92 L0.1,-0.795 M-0.8,-0.13 Q-0.9,0 -0.8,0.13 M0.8,-0.13 Q0.9,0 0.8,0.13" />`;
}

/** Electrodes by what is wrong with them, and the same in words. */
export function drawHead(place, words, signal) {
  const wrong = Object.entries(signal.bad);
  const dots = signal.xy.map((xy, i) => {
    const name = signal.ch_names[i];
    const why = signal.bad[name];
    return xy && svg`<circle cx=${xy[0]} cy=${-xy[1]} r=${why ? 0.055 : 0.035} class=${why ? "electrode bad" : "electrode"}><title>${name}${why ? `: ${why}` : ""}</title></circle>`;
  });
  render(html`<svg viewBox="-1.06 -1.06 2.12 2.12" role="img" aria-label="Electrodes on the head">${outline()}${dots}</svg>`, place);
  render(
    wrong.length
      ? html`<span class="late">⚠ ${wrong.length} bad:</span> ${wrong.slice(0, 8).map(([name, why], i) => html`${i ? ", " : ""}${name} <span class="muted">${why}</span>`)}${wrong.length > 8 ? " …" : nothing}`
      : html`<span class="chip good">✓ all ${signal.ch_names.length} good</span>`,
    words,
  );
}
