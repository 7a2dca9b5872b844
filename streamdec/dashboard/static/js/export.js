// What is shown, as files: rows as JSON or CSV, charts as PNG.

import { colour } from "./theme.js";

const COLUMNS = ["time", "kind", "key", "result", "tier", "rank", "probability", "repetitions", "latency", "budget", "deadline_met", "outcome", "reason", "flags"];

/** The rows as plain objects; times are seconds of the LSL clock, latencies seconds. */
function plain(events) {
  return events.map((event) => Object.fromEntries(COLUMNS.map((column) => [column, event[column] ?? null])));
}

export function saveJson(store, events) {
  const about = { session: store.session, simulated: store.started?.simulated ?? null, clock: "LSL, s", bundle: store.started?.bundle ?? null };
  save(new Blob([JSON.stringify({ ...about, events: plain(events) }, null, 1)], { type: "application/json" }), "json");
}

export function saveCsv(events) {
  const lines = plain(events).map((row) => COLUMNS.map((column) => cell(row[column])).join(","));
  save(new Blob([`${COLUMNS.join(",")}\n${lines.join("\n")}\n`], { type: "text/csv" }), "csv");
}

/** Quoted where it must be; a text that a spreadsheet would take for a formula begins with an apostrophe. */
function cell(value) {
  if (value === null) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** A chart on the panel's colour. */
export function savePng(canvas, name) {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d");
  context.fillStyle = colour("panel");
  context.fillRect(0, 0, copy.width, copy.height);
  context.drawImage(canvas, 0, 0);
  copy.toBlob((blob) => save(blob, "png", name));
}

function save(blob, ending, name = "events") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `streamdec-${name}-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
