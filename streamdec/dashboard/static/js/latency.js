// Latencies against their budgets: a histogram on a logarithmic axis, and the figures.

import { html, render } from "../vendor/lit-html/lit-html.js";
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { Chart, axis, mark } from "./chart.js";
import { count, duration, percent, quantile } from "./format.js";
import { colour } from "./theme.js";

export const KINDS = ["retrieval", "caption", "reconstruction"];
const PER_DECADE = 12;
const FROM = -3.5; // 0.3 ms
const BINS = Math.ceil(4.5 * PER_DECADE); // to 10 s
const CENTRES = Array.from({ length: BINS }, (_, i) => FROM + (i + 0.5) / PER_DECADE);

export class Latency {
  constructor(place, table) {
    this.table = table;
    this.budgets = {};
    this.chart = new Chart(place, {
      scales: { x: { time: false, range: [FROM, FROM + BINS / PER_DECADE] }, y: { range: (_, low, high) => [0, Math.max(4, high * 1.15)] } },
      axes: [
        axis("latency after the epoch's end, and budgets", { splits: () => [-3, -2, -1, 0, 1], values: (_, ticks) => ticks.map((tick) => duration(10 ** tick)) }),
        axis("", { size: 36 }),
      ],
      series: [{}, ...KINDS.map((kind) => ({ fill: () => colour(kind), stroke: () => colour(kind), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.9] }) }))],
      hooks: { draw: [(plot) => KINDS.forEach((kind, row) => this.budgets[kind] && mark(plot, Math.log10(this.budgets[kind]), kind, duration(this.budgets[kind]), row))] },
    });
  }

  draw(store) {
    this.budgets = store.started?.budgets ?? {};
    const kinds = KINDS.filter((kind) => kind === "retrieval" || this.budgets[kind] !== undefined);
    this.chart.draw([CENTRES, ...KINDS.map((kind) => histogram(store.latencies[kind].items))]);
    render(kinds.map((kind) => row(kind, store.latencies[kind].items, this.budgets[kind])), this.table);
  }
}

function histogram(latencies) {
  const bins = new Array(BINS).fill(0);
  for (const latency of latencies) {
    const bin = Math.floor((Math.log10(Math.max(latency, 1e-6)) - FROM) * PER_DECADE);
    bins[Math.max(0, Math.min(BINS - 1, bin))] += 1;
  }
  return bins.map((n) => n || null);
}

function row(kind, latencies, budget) {
  const sorted = Float64Array.from(latencies).sort();
  const met = sorted.length ? sorted.filter((latency) => latency <= budget).length / sorted.length : null;
  return html`<tr>
    <th scope="row"><span class=${`key ${kind}`}></span>${kind}</th>
    <td>${count(sorted.length)}</td>
    <td>${duration(quantile(sorted, 0.5))}</td>
    <td>${duration(quantile(sorted, 0.99))}</td>
    <td>${duration(budget)}</td>
    <td class=${met !== null && met < 1 ? "late" : ""}>${met === null ? "–" : met < 1 && met > 0.99 ? "> 99 %" : percent(met)}</td>
  </tr>`;
}
