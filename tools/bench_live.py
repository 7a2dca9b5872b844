"""The live figures, ours against the peers, alternating in one run.

    python tools/bench_live.py full --runs 3        event to result, against a script on today's libraries
    python tools/bench_live.py epochs --runs 3      the same without the encoder, against a bare loop (CPU: the peer)
    python tools/bench_live.py late                 markers up to (ring - window) late
    python tools/bench_live.py load --minutes 10    256 channels at 4 kHz, a stimulus every 50 ms
    python tools/bench_live.py generate --runs 3    event to result with captions and pictures made beside it, against
                                                    without, on the same two cores
    python tools/bench_live.py dashboard --runs 3   event to result with a dashboard beside it, which asks for the EEG,
                                                    against without

The peers are programs outside this repository (environment variable STREAMDEC_PEERS, default ../shared/peers); `full`
and `epochs` need what they need: mne-lsl, torch, psutil.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from streamdec import child
from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.lsl.library import local_clock, loopback
from streamdec.acquire.query import StreamQuery
from streamdec.bench import Plan, measure, read_log, start_feeder
from streamdec.decode import bundle as bundles
from streamdec.intake import Intake, IntakeSettings
from streamdec.signal.quality import QualitySettings
from streamdec.signal.spec import Signal
from streamdec.types import Epoch

ROOT = Path(__file__).parents[1]
SIMULATE = ROOT / "streamdec" / "simulate"
PEERS = Path(os.environ.get("STREAMDEC_PEERS", ROOT.parent / "shared" / "peers"))
PEER_SCRIPTS = {"floor": "floor.py", "peer": "mne_lsl_epochs.py"}
E63 = tuple(f"E{i}" for i in range(63))


def tag() -> str:
    """A stream name of its own."""
    return f"bench{uuid.uuid4().hex[:8]}"


def quantiles(seconds: np.ndarray) -> dict[str, float]:
    """Milliseconds."""
    return {
        name: round(1e3 * float(np.percentile(seconds, q)), 3) for name, q in (("p50", 50), ("p99", 99), ("max", 100))
    }


def show(row: str, **figures: object) -> None:
    """One line of JSON."""
    print(json.dumps({"row": row, **figures, "load": round(os.getloadavg()[0], 2)}), flush=True)


# --- event to result -------------------------------------------------------------------------------------------------


def full(runs: int, n_events: int) -> None:
    """Peer and `streamdec serve` in turn, on the same feeder."""
    from bench_bundle import nice_bundle

    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = nice_bundle(Path(folder) / "nice.zip", E63)
        for _ in range(runs):
            plan = Plan(tag(), E63, 1000.0, n_events, counter=True)
            latency, off, cpu = peer_full(plan, Path(folder))
            theirs.append(latency)
            show("full", who="peer", n=len(latency), **quantiles(latency), off=off, cpu=cpu)
            plan = Plan(tag(), E63, 1000.0, n_events, tmax=0.799)
            run = measure(bundle, plan)
            ours.append(run.latency)
            stages = {name: round(1e3 * stage.p50, 3) for name, stage in run.stages.items()}
            show(
                "full",
                who="streamdec",
                n=run.decided,
                **quantiles(run.latency),
                off=run.misplaced,
                cpu=round(run.cpu, 4),
                stages=stages,
            )
    ratio("full", ours, theirs, {"p50": 1 / 6, "p99": 1 / 4})


def peer_full(plan: Plan, folder: Path) -> tuple[np.ndarray, int, float]:
    """One run of the peer script: latencies from push to receipt, onsets off their sample, CPU per stream second."""
    import zmq

    feeder, log_path = start_feeder(plan, folder)
    endpoint = f"tcp://127.0.0.1:{20000 + os.getpid() % 20000}"
    command = [sys.executable, str(PEERS / "mne_lsl_peer.py"), "--eeg", plan.name, "--markers", f"{plan.name}-markers"]
    command += [
        "--n-events",
        str(plan.n_events),
        "--endpoint",
        endpoint,
        "--timeout",
        str(plan.n_samples / plan.sfreq + 30),
    ]
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(endpoint)
    peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    got: list[tuple[float, dict[str, float]]] = []
    while len(got) < plan.n_events and peer.poll() is None:
        if subscriber.poll(500):
            _, body = subscriber.recv_multipart()
            got.append((local_clock(), json.loads(body)))
    out = peer.communicate(timeout=30)[0]
    feeder.wait(30)
    context.destroy(linger=0)
    log = read_log(log_path)
    events = np.array([int(m["code"]) - 1 for _, m in got])
    first = np.array([int(m["first_sample"]) for _, m in got])
    off = first - (plan.onsets[events] + round(plan.tmin * plan.sfreq))
    latency = np.array([now for now, _ in got]) - log.push_of(plan.last_needed[events] - 1 + off)  # it leaves tmax out
    cpu = json.loads(out.strip().splitlines()[-1])["process_cpu_s"] / (plan.n_samples / plan.sfreq)
    return latency, int(np.sum(off != 0)), round(cpu, 4)


def ratio(row: str, ours: list[np.ndarray], theirs: list[np.ndarray], bars: dict[str, float]) -> None:
    """Median over the runs of ours / theirs, beside the bar."""
    percentile = {"p50": 50, "p99": 99}
    for name, bar in bars.items():
        a = np.median([np.percentile(x, percentile[name]) for x in ours])
        b = np.median([np.percentile(x, percentile[name]) for x in theirs])
        show(
            row,
            figure=name,
            ours_ms=round(1e3 * a, 3),
            theirs_ms=round(1e3 * b, 3),
            ratio=round(a / b, 4),
            bar=round(bar, 4),
            met=bool(a / b <= bar),
        )


# --- without the encoder ---------------------------------------------------------------------------------------------


def epochs(runs: int, n_events: int) -> None:
    """The bare loop, the peer's epochs, and our intake, in turn."""
    collected: dict[str, list[dict[str, float]]] = {"floor": [], "streamdec": [], "peer": []}
    for _ in range(runs):
        for who in collected:
            one = our_epochs(n_events) if who == "streamdec" else peer_json(PEER_SCRIPTS[who], n_events)
            collected[who].append(one)
            show("epochs", who=who, **one)
    middle = {
        who: {k: float(np.median([run[k] for run in each])) for k in ("p50", "p99", "cpu")}
        for who, each in collected.items()
    }
    us, floor, peer = middle["streamdec"], middle["floor"], middle["peer"]
    for name, bar in (("p50", 1.3), ("p99", 2.0)):
        r = us[name] / floor[name]
        show("epochs", figure=f"{name} against the floor", ratio=round(r, 3), bar=bar, met=r <= bar)
    r = us["cpu"] / peer["cpu"]
    show("epochs", figure="CPU against the peer", ratio=round(r, 4), bar=0.1, met=r <= 0.1)


def peer_json(script: str, n_events: int) -> dict[str, float]:
    """Run one of the epoch peers with its own feeder; milliseconds after the push, CPU per stream second."""
    command = [sys.executable, str(PEERS / script)]
    command += (["run"] if script != "floor.py" else []) + ["--n-events", str(n_events)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(out.strip().splitlines()[-1])
    push = result.get("after_push") or result["avail_after_push"]
    off = result.get("off") or result.get("start_offset_samples")
    cpu = result.get("cpu_pct", result.get("consumer_cpu_pct")) / 100
    return {
        "p50": push["p50"],
        "p99": push["p99"],
        "cpu": cpu,
        "n": push["n"],
        "off": sum(n for k, n in off.items() if int(k)),
    }


def our_epochs(n_events: int, late: float = 0.0, ring_seconds: float = 30.0) -> dict[str, float]:
    """Our inlet and intake in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(tag(), E63, 1000.0, n_events, tmax=0.799, counter=True, late=late)
        feeder, log_path = start_feeder(plan, Path(folder))
        out = Path(folder) / "seen.npz"
        command = [sys.executable, __file__, "intake", msgspec.json.encode(plan).decode(), str(out), str(ring_seconds)]
        subprocess.run(command, check=True)
        feeder.wait(30)
        log = read_log(log_path)
        with np.load(out) as file:
            seen, cpu = file["seen"], float(file["cpu"])
    events = seen[:, 1].astype(int) - 1
    off = seen[:, 2].astype(int) - (plan.onsets[events] + round(plan.tmin * plan.sfreq))
    after = 1e3 * (seen[:, 0] - log.push_of(plan.last_needed[events] + off))
    p50, p99 = np.percentile(after, (50, 99))
    return {
        "p50": round(float(p50), 3),
        "p99": round(float(p99), 3),
        "cpu": round(cpu, 4),
        "n": len(seen),
        "off": int(np.sum(off != 0)),
    }


def intake(plan: Plan, out: Path, ring_seconds: float) -> None:
    """The program of that process: events -> epochs, nothing else."""
    signal = Signal(plan.ch_names, plan.sfreq, plan.tmin, plan.tmax)
    settings = IntakeSettings(
        ring_seconds=ring_seconds, quality=QualitySettings.off(), max_interpolated_channels=len(plan.ch_names)
    )
    inlet = LslInlet(StreamQuery(name=plan.name), StreamQuery(name=f"{plan.name}-markers"))
    inlet.open(20.0)
    taken = Intake(signal, inlet.eeg, settings)
    seen: list[tuple[float, int, float]] = []
    cpu, wall = time.process_time(), time.perf_counter()
    end = wall + plan.n_samples / plan.sfreq + 15
    while len(seen) < plan.n_events and time.perf_counter() < end:
        event = inlet.pull(0.05)
        if event is None:
            continue
        for output in taken(event):
            if isinstance(output, Epoch):
                seen.append((local_clock(), int(output.onset.key), float(output.data[0, 0])))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    np.savez(out, seen=np.array(seen), cpu=cpu / wall)
    inlet.close()


def late(n_events: int) -> None:
    """Markers as late as the ring allows: every one must be served, at its own sample."""
    for seconds in (1.9, 10.0, 29.0):
        result = our_epochs(n_events, late=seconds)
        show(
            "late",
            late_s=seconds,
            ring_s=30.0,
            served=result["n"],
            of=n_events,
            off=result["off"],
            met=result["n"] == n_events and not result["off"],
        )


# --- load ------------------------------------------------------------------------------------------------------------


def load(minutes: float) -> None:
    """256 channels at 4 kHz, a stimulus every 50 ms, through serve with an encoder; nothing may be lost."""
    from bench_bundle import nice_bundle

    names = tuple(f"E{i}" for i in range(256))
    with tempfile.TemporaryDirectory() as folder:
        bundle = nice_bundle(Path(folder) / "nice256.zip", names, sfreq=4000.0)
        n_events = int(minutes * 60 / 0.05)
        plan = Plan(tag(), names, 4000.0, n_events, soa=0.05, chunk=40, tmax=0.799)
        run = measure(bundle, plan)
    show(
        "load",
        minutes=minutes,
        events=n_events,
        decided=run.decided,
        off=run.misplaced,
        **quantiles(run.latency),
        cpu=round(run.cpu, 3),
        memory_mb=run.memory // 10**6,
        met=run.decided == n_events,
    )


# --- generation beside it --------------------------------------------------------------------------------------------


def generate(runs: int, n_events: int, bundle: Path, generator: Path) -> None:
    """`streamdec serve` without and with a generator in turn; a request of each kind for every decision."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # and all that is started from here
    signal = bundles.read(bundle).manifest.signal
    latency: dict[str, list[np.ndarray]] = {"without": [], "with": []}
    for _ in range(runs):
        for who, each in latency.items():
            plan = Plan(tag(), signal.ch_names, signal.sfreq, n_events, tmin=signal.tmin, tmax=signal.tmax)
            run = measure(bundle, plan, *(("--generator", str(generator)) if who == "with" else ()))
            each.append(run.latency)
            made = {kind: msgspec.to_builtins(account) for kind, account in run.generation.items()}
            show("generate", who=who, n=run.decided, **quantiles(run.latency), cpu=round(run.cpu, 4), **made)
    ratio("generate", latency["with"], latency["without"], {"p50": 1.2, "p99": 2.0})


# --- a dashboard beside it --------------------------------------------------------------------------------------------


@contextmanager
def looking(server: object, endpoint: str) -> Iterator[None]:
    """A dashboard on the feed, subscribed to the EEG too."""
    with ExitStack() as stack:
        child.start(stack, "dashboard", endpoint)
        yield


def dashboard(runs: int, n_events: int) -> None:
    """`streamdec serve` without and with a dashboard in turn."""
    from bench_bundle import nice_bundle

    latency: dict[str, list[np.ndarray]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        bundle = nice_bundle(Path(folder) / "nice.zip", E63)
        for _ in range(runs):
            for who, each in latency.items():
                plan = Plan(tag(), E63, 1000.0, n_events, tmax=0.799)
                run = measure(bundle, plan, beside=looking if who == "with" else None)
                each.append(run.latency)
                show("dashboard", who=who, n=run.decided, **quantiles(run.latency), cpu=round(run.cpu, 4))
    ratio("dashboard", latency["with"], latency["without"], {"p50": 1.1, "p99": 1.5})


def main() -> None:
    """Parse and run."""
    if sys.argv[1:2] == ["intake"]:
        intake(msgspec.json.decode(sys.argv[2], type=Plan), Path(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=["full", "epochs", "late", "load", "generate", "dashboard"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bundle", type=Path, default=SIMULATE / "demo_full.zip", help="of the row generate")
    parser.add_argument("--generator", type=Path, default=SIMULATE / "demo_generator", help="of the row generate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "lsl_api.cfg"
        config.write_text(loopback(tag()), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(config)
        for row in options.rows:
            if row == "full":
                full(options.runs, options.events)
            elif row == "epochs":
                epochs(options.runs, options.events)
            elif row == "late":
                late(options.events)
            elif row == "dashboard":
                dashboard(options.runs, options.events)
            elif row == "generate":
                generate(options.runs, options.events, options.bundle, options.generator)
            else:
                load(options.minutes)


if __name__ == "__main__":
    main()
