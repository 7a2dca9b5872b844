"""An hour of feed through the dashboard, in a real browser: its memory, its frames, and what the server costs.

    python tools/bench_dashboard.py --minutes 60              one hour at real rate, a stimulus every 200 ms
    python tools/bench_dashboard.py --minutes 10 --speed 6    the same messages, six times as many a second

A publisher in a process of its own says what a session with captions and pictures says (63 channels, 200 images; all of
it made up, the gallery is the demo's), `streamdec dashboard` shows it, Chromium looks at it (psutil, pillow of the
extra `test`). One line of JSON every so many seconds, and a last one with the verdict:

    heap_mb     JavaScript heap of the page after a collection; renderer_mb private memory of its process
    frames      animation frames a second, over the whole interval; longest: the longest wait for one, ms
    server_cpu  share of a core that the dashboard's server took; server_mb its resident memory
    lost        messages the page was too slow for; missed: that never reached the server
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import numpy as np
import psutil

from streamdec.decode import bundle as bundles
from streamdec.demo import DEMO_BUNDLE
from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.types import Candidate, StreamInfo

Said = tuple[float, Any, tuple[Any, ...]]
"""(seconds, message, payloads)."""
GENERATED: tuple[Literal["caption", "reconstruction"], ...] = ("caption", "reconstruction")
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
FULL = 12_000  # stimuli after which the page forgets as many as come: 60 decisions on each of 200 images
FLAT = 1.1  # growth of a median from then on


# --- the session -----------------------------------------------------------------------------------------------------


def script(rng: np.random.Generator, ids: tuple[str, ...], labels: tuple[str, ...]) -> Iterator[Said]:
    """What a session says and when, in order: (seconds, message, payloads), for ever."""
    pictures = [picture(rng) for _ in range(N_PICTURES)]
    ch_names = bundles.read(DEMO_BUNDLE).manifest.signal.ch_names
    waiting: list[Said] = []
    counts = dict.fromkeys(("onsets", "decided", "rejected"), 0)
    seen: dict[str, int] = {}
    stimulus = tick = second = 0
    while True:
        onset = stimulus * SOA
        while tick * 0.1 <= onset:
            data = rng.normal(0, 12, (N_CHANS, 10)).astype(np.float32)
            bad = {"T7": "flat"} if tick // 600 % 5 == 4 else {}
            entry = schema.Payload(0, "signal", dtype="<f4", shape=data.shape)
            signal = schema.Signal(time=tick * 0.1, payloads=(entry,), sfreq=100.0, ch_names=ch_names, bad=bad)
            waiting.append((tick * 0.1, signal, (data,)))
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
        if decided:
            end = schema.Epoch(key=key, onset_time=onset, outcome="decided", reason="")
        else:
            end = schema.Epoch(key=key, onset_time=onset, outcome="rejected", reason="9 channels bad")
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
) -> list[Said]:
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
    found: list[Said] = [(at, decision, (query,))]
    for kind, after in zip(GENERATED, (0.15, 0.5), strict=True):
        if rng.random() < 0.05:
            dropped = schema.Dropped(what=kind, text="", reason="superseded", key=key, onset_time=onset)
            found.append((at + after, dropped, ()))
            continue
        latency = after * (3 if rng.random() < 0.01 else 1 + 0.3 * rng.random())
        times = schema.GenerationTiming(
            due, at, at, due + latency, due + latency, latency, BUDGETS[kind], latency <= BUDGETS[kind]
        )
        about: dict[str, Any] = {
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


class Page:
    """A page in Chromium, asked over the DevTools protocol.

    Not through playwright: it has the browser keep every body that came over the network (the protocol's domain
    `Network`), which grows the page's process by each picture, up to 100 MB.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._n = 0
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Answer of a method of the protocol."""
        self._n += 1
        await self._socket.send_json({"id": self._n, "method": method, "params": parameters})
        while True:
            told = await self._socket.receive_json()
            if told.get("id") == self._n:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                answer: dict[str, Any] = told["result"]
                return answer
            self._heard(told)

    async def evaluate(self, expression: str) -> Any:
        """Value of an expression, as JSON would have it."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def listen(self, seconds: float) -> None:
        """Take up what the page complains of, for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self._heard(await self._socket.receive_json())

    def _heard(self, told: dict[str, Any]) -> None:
        said = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif told.get("method") == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.complaints.append(str(said["args"]))
        elif told.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(said["entry"]["text"])


@contextlib.asynccontextmanager
async def opened(url: str, headed: bool) -> AsyncIterator[tuple[Page, psutil.Process]]:
    """The page of ``url`` in a Chromium of its own."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no chromium, no google-chrome: install one")
    with tempfile.TemporaryDirectory(prefix="streamdec-bench-", ignore_cleanup_errors=True) as profile:
        flags = [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--window-size=1920,1080"]
        flags += ["--no-sandbox", "--no-first-run", *([] if headed else ["--headless=new"])]
        browser = await asyncio.create_subprocess_exec(path, *flags, "about:blank", stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            while not told.exists() or len(told.read_text().split()) < 2:
                await asyncio.sleep(0.1)
            port = told.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    pages = [one for one in await answer.json() if one["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Runtime", "Log", "Performance", "Page"):
                        await page.call(f"{domain}.enable")
                    await page.call("Page.navigate", url=url)
                    yield page, psutil.Process(browser.pid)
        finally:
            browser.kill()
            await browser.wait()


async def look(minutes: float, speed: float, every: float, headed: bool) -> bool:
    """Start everything, look for so long; True where all bars are met."""
    source = subprocess.Popen([sys.executable, __file__, "publish", str(speed)], stdout=subprocess.PIPE, text=True)
    assert source.stdout is not None
    endpoint = source.stdout.readline().strip()
    command = [sys.executable, "-m", "streamdec", "dashboard", "--endpoint", endpoint, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().removeprefix("dashboard at ").strip()
        async with opened(url, headed) as (page, browser):
            while not await page.evaluate("Boolean(document.querySelector('.candidates'))"):
                await page.listen(0.1)
            rows = [row async for row in sample(page, browser, psutil.Process(server.pid), url, minutes, every)]
    finally:
        for process in (source, server):
            process.kill()
            process.wait()
    return verdict(rows, minutes, speed, page.complaints)


async def sample(
    page: Page, browser: psutil.Process, server: psutil.Process, url: str, minutes: float, every: float
) -> AsyncIterator[dict[str, float]]:
    """Measure the page and the server once per interval."""
    await page.evaluate(f"({COUNTER})()")
    start = last = time.monotonic()
    cpu = sum(server.cpu_times()[:2])
    while time.monotonic() - start < 60 * minutes:
        await page.listen(every)
        now = time.monotonic()
        bench = await page.evaluate("({...window.bench})")
        await page.call("HeapProfiler.collectGarbage")
        metrics = {entry["name"]: entry["value"] for entry in (await page.call("Performance.getMetrics"))["metrics"]}
        await page.evaluate("Object.assign(window.bench, {frames: 0, longest: 0, last: performance.now()}) && null")
        used = sum(server.cpu_times()[:2])
        async with aiohttp.ClientSession() as session, session.get(f"{url}metrics") as answer:
            told = await answer.text()
        figures = {line.split()[0]: float(line.split()[1]) for line in told.splitlines() if not line.startswith("#")}
        row = {
            "minute": round((now - start) / 60, 2),
            "heap_mb": round(metrics["JSHeapUsedSize"] / 1e6, 2),
            "renderer_mb": round(renderer(browser) / 1e6, 1),
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


def renderer(browser: psutil.Process) -> int:
    """Private bytes of the browser's largest renderer: the page's."""
    found = [0]
    for process in browser.children(recursive=True):
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

    growths = {f"{name}_growth": growth(f"{name}_mb") for name in ("heap", "renderer", "server")}
    frames = [row["frames"] for row in rows]
    flat = max(growths.values()) <= FLAT
    last = {
        "minutes": minutes,
        "speed": speed,
        **growths,
        "frames_median": float(np.median(frames)),
        "frames_least": min(frames),
        "server_cpu": round(float(np.mean([row["server_cpu"] for row in rows])), 4),
        "lost": rows[-1]["lost"],
        "complaints": complaints[:5],
        "met": bool(flat and np.median(frames) > 30 and not complaints),
    }
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
    return 0 if asyncio.run(look(options.minutes, options.speed, options.every, options.headed)) else 1


if __name__ == "__main__":
    sys.exit(main())
