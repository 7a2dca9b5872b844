// How the probability of the best candidates grows over repetitions of one stimulus.

import { html, render } from "../vendor/lit-html/lit-html.js";
import { Chart, axis } from "./chart.js";
import { percent } from "./format.js";
import { colour } from "./theme.js";

const LINES = 5;
const COLOURS = ["second", "third", "fourth", "fifth"];

const name = (row) => (row === 0 ? "accent" : COLOURS[row - 1]);

export class Evidence {
  constructor(place, legend) {
    this.legend = legend;
    const line = (_, row) => ({ stroke: () => colour(name(row)), width: row === 0 ? 3 : 1.5, spanGaps: true, points: { show: true, size: row === 0 ? 6 : 4 } });
    this.chart = new Chart(place, {
      scales: { x: { time: false, range: (_, low, high) => [Math.min(low, 0.5), Math.max(high, 4) + 0.5] }, y: { range: (_, low, high) => [0, Math.min(1.02, Math.max(0.1, 1.25 * high))] } },
      axes: [axis("repetitions", { incrs: [1, 2, 5, 10, 20, 50, 100], space: 30 }), axis("", { values: (_, ticks) => ticks.map((tick) => percent(tick)), size: 44 })],
      series: [{}, ...Array.from({ length: LINES }, line)],
    });
  }

  draw(store, key) {
    const history = (key && store.evidence.get(key)) ?? [];
    const probability = (made, id) => made?.probabilities[made.ids.indexOf(id)];
    const ids = history.at(-1)?.ids.slice(0, LINES) ?? [];
    if (ids.includes(key)) ids.splice(0, ids.length, key, ...ids.filter((id) => id !== key));
    const series = Array.from({ length: LINES }, (_, row) => history.map((made) => probability(made, ids[row]) ?? null));
    this.chart.draw([history.map(({ repetitions }) => repetitions), ...series]);
    render(
      ids.map((id, row) => html`<li><span class=${`key ${name(row)}`}></span>${store.labels.get(id) ?? id}${id === key ? " (seen)" : ""} <span class="number">${percent(probability(history.at(-1), id))}</span></li>`),
      this.legend,
    );
  }
}
