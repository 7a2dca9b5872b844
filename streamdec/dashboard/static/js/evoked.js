// The mean response: every channel over time, and the scalp at one moment of it.

import { render, html } from "../vendor/lit-html/lit-html.js";
import { Chart, axis, mark } from "./chart.js";
import { count } from "./format.js";
import { outline } from "./signal.js";
import { colour } from "./theme.js";

export class Evoked {
  /**
   * @param place of the chart
   * @param map canvas of the scalp
   * @param head drawn over it
   * @param slider of the moment, ms
   * @param words how many epochs, which moment
   */
  constructor(place, map, head, slider, words) {
    Object.assign(this, { place, map, slider, words });
    this.chosen = false; // by hand; until then the moment is the largest response's
    this.shown = null;
    this.time = 0;
    slider.addEventListener("input", () => {
      this.chosen = true;
      this.time = slider.value / 1e3;
      this.stale = true;
    });
    render(html`<svg viewBox="-1.06 -1.06 2.12 2.12" aria-hidden="true">${outline()}</svg>`, head);
  }

  draw(store, force) {
    const { evoked, montage } = store;
    if (!evoked || !montage || evoked.rows.length !== montage.ch_names.length) return;
    if (evoked === this.shown && !this.stale && !force) return;
    const { rows, tmin, sfreq, n } = evoked;
    const times = Array.from(rows[0], (_, i) => tmin + i / sfreq);
    if (!this.chart || this.rows !== rows.length) this.#begin(rows.length);
    this.slider.min = Math.round(1e3 * times[0]);
    this.slider.max = Math.round(1e3 * times.at(-1));
    this.slider.step = Math.max(1, Math.round(1e3 / sfreq));
    if (!this.chosen) this.time = peak(times, rows);
    const at = Math.max(0, Math.min(times.length - 1, Math.round((this.time - tmin) * sfreq)));
    this.slider.value = 1e3 * times[at];
    this.slider.setAttribute("aria-valuetext", `${Math.round(1e3 * times[at])} milliseconds after the onset`);
    this.time = times[at];
    if (evoked !== this.shown || force) this.chart.draw([times.map((time) => 1e3 * time), ...rows.map((row) => Array.from(row, (value) => (Number.isFinite(value) ? value : null)))]);
    else this.chart.plot?.redraw(false);
    this.#scalp(store.signal?.map ?? montage, rows, at);
    render(html`${count(n)} clean epochs, the scalp at ${Math.round(1e3 * times[at])} ms`, this.words);
    this.shown = evoked;
    this.stale = false;
  }

  #begin(rows) {
    this.rows = rows;
    const options = {
      scales: { x: { time: false }, y: { range: (_, low, high) => { const most = Math.max(1, Math.abs(low ?? 0), Math.abs(high ?? 0)) * 1.1; return [-most, most]; } } },
      axes: [axis("ms after the onset"), axis("µV", { size: 36 })],
      series: [{}, ...Array.from({ length: rows }, (_, row) => ({ stroke: () => `hsl(${Math.round((300 * row) / rows)} 45% ${colour("lightness")})`, width: 1, points: { show: false } }))],
      hooks: { draw: [(plot) => { mark(plot, 0, "muted", "onset"); mark(plot, 1e3 * this.time, "accent", ""); }] },
    };
    if (this.chart) this.chart.restart(options);
    else this.chart = new Chart(this.place, options);
  }

  /** Spherical splines, as a matrix from the good electrodes to the points inside the circle. */
  #scalp({ sources, grid, inside, matrix }, rows, at) {
    this.map.width = this.map.height = grid;
    const context = this.map.getContext("2d");
    const image = context.createImageData(grid, grid);
    const values = Float32Array.from(sources, (row) => (Number.isFinite(rows[row][at]) ? rows[row][at] : 0));
    const points = Float32Array.from(inside, (_, point) => {
      let sum = 0;
      for (let source = 0; source < values.length; source++) sum += matrix[point * values.length + source] * values[source];
      return sum;
    });
    const most = points.reduce((top, value) => Math.max(top, Math.abs(value)), 1e-9);
    points.forEach((value, point) => {
      const [red, green, blue] = diverging(value / most);
      image.data.set([red, green, blue, 255], 4 * inside[point]);
    });
    context.putImageData(image, 0, 0);
  }
}

/** The moment of the largest global field power after the onset. */
function peak(times, rows) {
  let best = 0;
  let at = 0;
  times.forEach((time, i) => {
    if (time < 0.05) return;
    const values = rows.map((row) => row[i]).filter(Number.isFinite);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const power = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    if (power > best) [best, at] = [power, i];
  });
  return times[at];
}

/** Blue over white to red. */
function diverging(value) {
  const [low, middle, high] = [[33, 102, 172], [246, 246, 244], [178, 24, 43]];
  const end = value < 0 ? low : high;
  const part = Math.min(1, Math.abs(value)) ** 0.85;
  return middle.map((from, i) => from + (end[i] - from) * part);
}
