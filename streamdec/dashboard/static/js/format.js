// Numbers as people read them.

/** Milliseconds below a second, else seconds. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (Math.abs(seconds) < 0.01) return `${(1e3 * seconds).toFixed(1)} ms`;
  return Math.abs(seconds) < 1 ? `${(1e3 * seconds).toFixed(0)} ms` : `${seconds.toFixed(2)} s`;
}

/** Time since the session's start: m:ss.s, with hours where there are any. */
export function elapsed(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const sign = seconds < 0 ? "−" : "";
  const all = Math.abs(seconds);
  const hours = Math.floor(all / 3600);
  const minutes = Math.floor(all / 60) % 60;
  const rest = (all % 60).toFixed(1).padStart(4, "0");
  return `${sign}${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${rest}`;
}

export function percent(fraction) {
  if (fraction === null || fraction === undefined) return "–";
  return fraction > 0 && fraction < 0.01 ? "< 1 %" : `${Math.round(100 * fraction)} %`;
}

export function count(n) {
  return n.toLocaleString("en").replaceAll(",", " ");
}

export function bytes(n) {
  return n < 1e9 ? `${Math.round(n / 1e6)} MB` : `${(n / 1e9).toFixed(1)} GB`;
}

export function quantile(sorted, q) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : null;
}
