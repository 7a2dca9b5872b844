"""An hour of feed through the dashboard, in a real browser: its memory, its frames, and what the server costs.

    python tools/bench_dashboard.py --minutes 60              one hour at real rate, a stimulus every 200 ms
    python tools/bench_dashboard.py --minutes 10 --speed 6    the same messages, six times as many a second

A publisher in a process of its own says what a session with captions and pictures says (63 channels, 200 images; all of
it made up, the gallery is the demo's), `streamdec dashboard` shows it, Chromium looks at it (playwright, psutil, pillow
of the extra `test`). One line of JSON every so many seconds, and a last one with the verdict:

    heap_mb     JavaScript heap of the page after a collection; renderer_mb private memory of its process
    frames      animation frames a second, over the whole interval; longest: the longest wait for one, ms
    server_cpu  share of a core that the dashboard's server took; server_mb its resident memory
    lost        messages the page was too slow for; missed: that never reached the server
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from streamdec.decode import bundle as bundles
from streamdec.demo import DEMO_BUNDLE
from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.types import Candidate, StreamInfo

SOA, EPOCH = 0.2, 1.0  # s
BUDGETS = {"retrieval": 0.05, "caption": 0.3, "reconstruction": 0.8}
N_CHANS, N_PICTURES = 63, 64
COUNTER = """() => {
  window.bench = {frames: 0, longest: 0, last: performance.now()};
  const frame = (now) => {
    const {bench} = window;
    bench.frames += 1;
    bench.longest = Math.max(bench.longest, now - bench.last);
    bench.last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""
FULL = 2500  # stimuli after which the page forgets as many as come
FLAT = 1.1  # growth of a median from then on


# --- the session -----------------------------------------------------------------------------------------------------


def script(
    rng: np.random.Generator, ids: tuple[str, ...], labels: tuple[str, ...]
) -> Iterator[tuple[float, Any, tuple]]:
    """What a session says and when, in order: (seconds, message, payloads), for ever."""
    pictures = [picture(rng) for _ in range(N_PICTURES)]
    ch_names = bundles.read(DEMO_BUNDLE).manifest.signal.ch_names
    waiting: list[tuple[float, Any, tuple]] = []
    counts = dict.fromkeys(("onsets", "decided", "rejected"), 0)
    seen: dict[str, int] = {}
    stimulus = tick = second = 0
    while True:
        onset = stimulus * SOA
        while tick * 0.1 <= onset:
            data = rng.normal(0, 12, (N_CHANS, 10)).astype(np.float32)
            about = {"sfreq": 100.0, "ch_names": ch_names, "bad": {"T7": "flat"} if tick // 600 % 5 == 4 else {}}
            entry = schema.Payload(0, "signal", dtype="<f4", shape=data.shape)
            waiting.append((tick * 0.1, schema.Signal(time=tick * 0.1, payloads=(entry,), **about), (data,)))
            tick += 1
        while second <= onset:
            quantiles = {
                name: schema.Quantiles(stimulus, 3e-3, 6e-3, 9e-3, 2e-2) for name in ("wait", "encode", "total")
            }
            account = schema.Counts(markers=stimulus, samples=1000 * second, **counts)
            stats = schema.Stats(
                time=float(second), counts=account, latency=quantiles, sfreq_effective=1000.0, memory=10**8
            )
            waiting.append((float(second), stats, ()))
            second += 1
        key = ids[int(rng.integers(len(ids)))]
        seen[key] = seen.get(key, 0) + 1
        counts["onsets"] += 1
        decided = rng.random() > 0.02
        counts["decided" if decided else "rejected"] += 1
        waiting.append((onset, schema.Onset(key=key, text=key, onset_time=onset), ()))
        due = onset + EPOCH
        outcome = "decided" if decided else "rejected"
        end = schema.Epoch(key=key, onset_time=onset, outcome=outcome, reason="" if decided else "9 channels bad")
        waiting.append((due + 0.006, end, ()))
        if decided:
            waiting += results(rng, key, onset, seen[key], ids, labels, pictures)
        stimulus += 1
        waiting.sort(key=lambda entry: entry[0])
        while waiting and waiting[0][0] <= onset:
            yield waiting.pop(0)


def results(
    rng: np.random.Generator,
    key: str,
    onset: float,
    n: int,
    ids: tuple[str, ...],
    labels: tuple[str, ...],
    made: list[bytes],
) -> list[tuple[float, Any, tuple]]:
    """A decision, a caption in two pieces, a picture; one in a hundred late, one in twenty dropped."""
    due = onset + EPOCH
    best = [ids.index(key), *rng.integers(len(ids), size=4)]
    p = np.sort(rng.dirichlet(np.full(5, 0.8)))[::-1]
    candidates = tuple(Candidate(ids[i], labels[i], float(q), float(q)) for i, q in zip(best, p, strict=True))
    at = due + 0.003 + 0.002 * rng.random()
    timing = schema.Timing(due, due, due, due, due, at, at - due, 0.05, deadline_met=True)
    query = rng.normal(size=512).astype(np.float32)
    decision = schema.Retrieval(
        key=key, onset_time=onset, residual=0.0, horizon=EPOCH, final=True, repetitions=n, candidates=candidates,
        gallery_size=len(ids), rank=1, stop=False, timing=timing, payloads=(schema.embedding(0, query, key),),
    )  # fmt: skip
    found: list[tuple[float, Any, tuple]] = [(at, decision, (query,))]
    for kind, after in (("caption", 0.15), ("reconstruction", 0.5)):
        if rng.random() < 0.05:
            dropped = schema.Dropped(what=kind, text="", reason="superseded", key=key, onset_time=onset)
            found.append((at + after, dropped, ()))
            continue
        latency = after * (3 if rng.random() < 0.01 else 1 + 0.3 * rng.random())
        times = schema.GenerationTiming(
            due, at, at, due + latency, due + latency, latency, BUDGETS[kind], latency <= BUDGETS[kind]
        )
        about = {
            "key": key,
            "onset_time": onset,
            "repetitions": n,
            "probability": None,
            "timing": times,
            "worker": "w-1",
        }
        if kind == "caption":
            text = f"a picture of {labels[best[0]]}, made up for a benchmark"
            said = schema.Caption(tier="llm", units=6, wanted=12, partial=True, text=text[:20], **about)
            found.append((due + latency / 2, said, ()))
            found.append(
                (due + latency, schema.Caption(tier="llm", units=12, wanted=12, partial=False, text=text, **about), ())
            )
        else:
            image = made[int(rng.integers(len(made)))]
            drawn = schema.Reconstruction(
                tier="latent",
                units=1,
                wanted=1,
                partial=False,
                source="",
                payloads=(schema.image(0, image, key),),
                **about,
            )
            found.append((due + latency, drawn, (image,)))
    return found


def picture(rng: np.random.Generator) -> bytes:
    """A blurred one, 128 x 128, some 10 kB."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).resize((128, 128), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    coarse.save(file, "PNG")
    return file.getvalue()


def publish(speed: float) -> None:
    """The program of the publishing process: play the script, never early, until killed."""
    bundle = bundles.read(DEMO_BUNDLE)
    ids, labels = tuple(bundle.gallery.ids), tuple(bundle.gallery.labels)
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "bench") as feed:
        print(feed.endpoint, flush=True)
        eeg = StreamInfo("made up", "EEG", N_CHANS, 1000.0, "float32")
        feed.publish(
            schema.Session(
                state="started", time=0.0, bundle="bench", method="none", simulated=True, eeg=eeg, budgets=BUDGETS
            )
        )
        thumbnails = [bundle.thumbnail(id_) or b"" for id_ in ids]
        entries = tuple(
            schema.GalleryEntry(id_, label, i) for i, (id_, label) in enumerate(zip(ids, labels, strict=True))
        )
        described = tuple(
            schema.image(i, thumbnail, id_) for i, (thumbnail, id_) in enumerate(zip(thumbnails, ids, strict=True))
        )
        feed.publish(schema.Gallery(kind="stimulus", entries=entries, payloads=described), thumbnails)
        start = time.monotonic()
        for at, message, payloads in script(np.random.default_rng(0), ids, labels):
            while (wait := start + at / speed - time.monotonic()) > 0:
                feed.serve()
                time.sleep(min(wait, 0.01))
            feed.serve()
            feed.publish(message, payloads)


# --- the page --------------------------------------------------------------------------------------------------------


def look(minutes: float, speed: float, every: float, headed: bool) -> bool:
    """Start everything, look for so long; True where all bars are met."""
    from playwright.sync_api import sync_playwright

    source = subprocess.Popen([sys.executable, __file__, "publish", str(speed)], stdout=subprocess.PIPE, text=True)
    assert source.stdout is not None
    endpoint = source.stdout.readline().strip()
    command = [sys.executable, "-m", "streamdec", "dashboard", "--endpoint", endpoint, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().removeprefix("dashboard at ").strip()
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, headless=not headed, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            complaints: list[str] = []
            page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            page.wait_for_selector(".candidates")
            rows = list(sample(page, psutil.Process(server.pid), url, minutes, every))
            browser.close()
    finally:
        for process in (source, server):
            process.kill()
            process.wait()
    return verdict(rows, minutes, speed, complaints)


def sample(page: Any, server: psutil.Process, url: str, minutes: float, every: float) -> Iterator[dict[str, float]]:
    """Measure the page and the server once per interval."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")
    page.evaluate(COUNTER)
    start = last = time.monotonic()
    cpu = sum(server.cpu_times()[:2])
    while time.monotonic() - start < 60 * minutes:
        page.wait_for_timeout(1e3 * every)
        now = time.monotonic()
        bench = page.evaluate("({...window.bench})")
        devtools.send("HeapProfiler.collectGarbage")
        metrics = {entry["name"]: entry["value"] for entry in devtools.send("Performance.getMetrics")["metrics"]}
        page.evaluate("Object.assign(window.bench, {frames: 0, longest: 0, last: performance.now()})")
        used = sum(server.cpu_times()[:2])
        told = page.request.get(f"{url}metrics").text()
        figures = {line.split()[0]: float(line.split()[1]) for line in told.splitlines() if not line.startswith("#")}
        row = {
            "minute": round((now - start) / 60, 2),
            "heap_mb": round(metrics["JSHeapUsedSize"] / 1e6, 2),
            "renderer_mb": round(renderer() / 1e6, 1),
            "nodes": int(metrics["Nodes"]),
            "frames": round(bench["frames"] / (now - last), 1),
            "longest": round(bench["longest"]),
            "server_cpu": round((used - cpu) / (time.monotonic() - last), 4),
            "server_mb": round(server.memory_info().rss / 1e6, 1),
            "lost": int(figures["streamdec_dashboard_lost_messages_total"]),
            "missed": int(figures["streamdec_dashboard_missed_messages_total"]),
            "onsets": int(figures["streamdec_onsets_total"]),
            "load": round(os.getloadavg()[0], 2),
        }
        last, cpu = time.monotonic(), used
        print(json.dumps(row), flush=True)
        yield row


def renderer() -> int:
    """Private bytes of the largest renderer among our children: the page's."""
    found = [0]
    for process in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                found.append(process.memory_full_info().uss)
        except psutil.Error:
            pass
    return max(found)


def verdict(rows: list[dict[str, float]], minutes: float, speed: float, complaints: list[str]) -> bool:
    """Memory of the last third against the first, once the page's history is full; frames; complaints."""
    full = [row for row in rows if row["onsets"] >= FULL]
    third = max(1, len(full) // 3)

    def growth(name: str) -> float:
        early, late = (
            float(np.median([row[name] for row in part])) for part in (full[:third] or rows, full[-third:] or rows)
        )
        return round(late / early, 3)

    last = {
        "minutes": minutes,
        "speed": speed,
        "heap_growth": growth("heap_mb"),
        "renderer_growth": growth("renderer_mb"),
        "server_growth": growth("server_mb"),
        "frames_median": float(np.median([row["frames"] for row in rows])),
        "frames_least": min(row["frames"] for row in rows),
        "server_cpu": round(float(np.mean([row["server_cpu"] for row in rows])), 4),
        "lost": rows[-1]["lost"],
        "complaints": complaints[:5],
    }
    flat = max(last["heap_growth"], last["renderer_growth"], last["server_growth"]) <= FLAT
    last["met"] = bool(flat and last["frames_median"] > 30 and not complaints)
    print(json.dumps(last), flush=True)
    return bool(last["met"])


def main() -> int:
    """Parse and run."""
    if sys.argv[1:2] == ["publish"]:
        publish(float(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--speed", type=float, default=1.0, help="times as many messages a second")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two lines")
    parser.add_argument("--headed", action="store_true", help="show the browser")
    options = parser.parse_args()
    return 0 if look(options.minutes, options.speed, options.every, options.headed) else 1


if __name__ == "__main__":
    sys.exit(main())
