// uPlot in the page's colours, as large as its place.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { colour } from "./theme.js";

const FONT = "12px system-ui, sans-serif";

/** An axis in quiet colours. */
export function axis(label, more = {}) {
  return {
    label,
    font: FONT,
    labelFont: FONT,
    labelSize: 16,
    labelGap: 0,
    gap: 4,
    size: 40,
    stroke: () => colour("muted"),
    grid: { stroke: () => colour("line"), width: 1 },
    ticks: { show: false },
    ...more,
  };
}

/** A chart that fills `place`; it comes to be once the place has a size. */
export class Chart {
  constructor(place, options) {
    this.place = place;
    this.options = options;
    this.plot = null;
    this.data = null;
    new ResizeObserver(() => this.#fit()).observe(place);
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.place;
    if (width < 40 || height < 40) return;
    if (!this.plot) {
      const fixed = { legend: { show: false }, cursor: { show: false }, ...this.options, width, height };
      this.plot = new uPlot(fixed, this.data ?? [[]], this.place);
    } else if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
  }

  /** Draw other data, or the same in other colours. */
  draw(data) {
    this.data = data ?? this.data;
    if (this.plot && this.data) this.plot.setData(this.data);
  }

  /** Begin anew with other series. */
  restart(options) {
    this.options = options;
    this.plot?.destroy();
    this.plot = null;
    this.#fit();
  }

  get canvas() {
    return this.plot?.ctx.canvas ?? null;
  }
}

/** A vertical line with a word, for hooks that draw. */
export function mark(plot, x, name, text, row = 0) {
  const { ctx, bbox } = plot;
  const at = Math.round(plot.valToPos(x, "x", true));
  if (at < bbox.left || at > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = colour(name);
  ctx.fillStyle = colour(name);
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(at, bbox.top);
  ctx.lineTo(at, bbox.top + bbox.height);
  ctx.stroke();
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  const right = at < bbox.left + 0.75 * bbox.width;
  ctx.textAlign = right ? "left" : "right";
  ctx.fillText(text, at + (right ? 4 : -4) * devicePixelRatio, bbox.top + (11 + 13 * row) * devicePixelRatio);
  ctx.restore();
}
