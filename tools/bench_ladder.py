"""The quality ladder on real processes: deadlines under a stream of requests, and a worker's memory.

    python tools/bench_ladder.py deadlines --runs 2 --seconds 60
        ours against always starting the best tier with the most units, alternating; normal load and 3 x overload
    python tools/bench_ladder.py soak --requests 2000
        resident memory of each worker, request after request

Both by the models of `streamdec demo --full`, or by --bundle and --generator. Requests are made up from the gallery,
one of each kind every --soa seconds, or faster under overload; times are those at which the client, in place of the hot
loop, has the answer in hand. There is no amplifier and no encoder beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import psutil

from streamdec.acquire.lsl.library import local_clock
from streamdec.decode import bundle as bundles
from streamdec.decode.generate.client import Client, GenerateSettings, plan
from streamdec.decode.generate.job import KINDS, LADDER, Answer, Drop, Kind, Request
from streamdec.decode.generate.ladder import LadderSettings
from streamdec.decode.generate.link import Notice
from streamdec.errors import EngineError, StreamdecError
from streamdec.types import Candidate, Float32

SIMULATE = Path(__file__).parents[1] / "streamdec" / "simulate"
BUDGETS: dict[Kind, float] = {"caption": 0.3, "reconstruction": 0.8}
POLICIES = ("ladder", "always-best")
_ALL = 1_000_000  # requests that may wait where nothing is turned away
_PATIENCE = 5.0  # seconds after the last request for the last answers


class Asked(msgspec.Struct):
    """One request, and what came of it."""

    kind: Kind
    due: float
    deadline: float
    end: Answer | Drop | None = None
    ended: float = 0.0


class Asker:
    """Asks a client for results on images of a bundle's gallery, and keeps the account.

    Parameters
    ----------
    client : Client
    bundle : Bundle
    seed : int
    """

    def __init__(self, client: Client, bundle: bundles.Bundle, seed: int = 0) -> None:
        self.client = client
        self.asked: dict[int, Asked] = {}
        self._gallery, self._shape = bundle.gallery, bundle.manifest.heads[-1].shape
        self._random = np.random.default_rng(seed)

    def ask(self, kind: Kind, image: int, due: float, budget: float) -> int:
        """Ask for one result on an image of the gallery, seen through noise."""
        gallery = self._gallery
        noise = self._random.standard_normal(gallery.dim) / np.sqrt(gallery.dim)
        embedding: Float32 = (gallery.features[image] + 0.5 * noise).astype(np.float32)
        found, scores = gallery.search(embedding, 5)
        candidates = tuple(
            Candidate(gallery.ids[i], gallery.labels[i], float(score), 0.2)
            for i, score in zip(found, scores, strict=True)
        )
        epoch = self._random.standard_normal(self._shape, dtype=np.float32)
        id_ = len(self.asked) + 1
        self.asked[id_] = Asked(kind, due, due + budget)
        self.client.ask(Request(id_, kind, gallery.ids[image], 1, due, due + budget, candidates, embedding, epoch))
        return id_

    def image(self) -> int:
        """Any image of the gallery."""
        return int(self._random.integers(len(self._gallery)))

    def take(self) -> None:
        """Note what has come."""
        for event in self.client.poll(64):
            if isinstance(event, Notice):
                if event.state in ("lost", "failed"):
                    print(f"# {event.worker}: {event.state}: {event.reason}", flush=True)
            elif isinstance(event, Drop) or not event.partial:
                asked = self.asked[event.id]
                assert asked.end is None, "two ends of one request"
                asked.end, asked.ended = event, local_clock()

    def wait(self, due: float) -> None:
        """Take what comes until a time."""
        while (left := due - local_clock()) > 0:
            self.take()
            time.sleep(min(left, 0.001))
        self.take()


def show(row: str, **figures: object) -> None:
    """One line of JSON."""
    print(json.dumps({"row": row, **figures}), flush=True)


@contextmanager
def opened(options: argparse.Namespace, policy: str = "ladder") -> Iterator[Client]:
    """A client with warm workers; costs are measured anew."""
    # Always-best turns nothing away: its queue is as long as it gets.
    settings = GenerateSettings(
        str(options.generator), ladder=LadderSettings() if policy == "ladder" else LadderSettings(queue=_ALL)
    )
    told = msgspec.structs.replace(plan(settings, options.bundle), punctual=policy == "ladder")
    client = Client(told, local_clock)
    try:
        client.open(300.0, lambda line: print(f"# {line}", flush=True))
        states = {name: notice.state for name, notice in client.workers.items()}
        if set(states.values()) != {"ready"}:
            raise EngineError("the workers are not warm", got=states, do="wait until the machine is idle")
        yield client
    finally:
        client.close()


# --- deadlines -------------------------------------------------------------------------------------------------------


def stream(options: argparse.Namespace, policy: str, soa: float, seed: int) -> list[Asked]:
    """One stream of requests of both kinds."""
    with opened(options, policy) as client:
        asker = Asker(client, bundles.read(options.bundle), seed)
        begin = local_clock() + 0.5
        for n in range(round(options.seconds / soa)):
            due = begin + n * soa
            asker.wait(due)
            image = asker.image()
            for kind in client.kinds:
                asker.ask(kind, image, due, BUDGETS[kind])
        end = local_clock() + _PATIENCE
        while any(asked.end is None for asked in asker.asked.values()) and local_clock() < end:
            asker.wait(local_clock() + 0.01)
        return list(asker.asked.values())


def figures(asked: list[Asked]) -> dict[str, object]:
    """What came of the requests of one kind.

    ``in_time`` share that ended by the deadline, by an answer or because a newer one of the same image took its place;
    ``unanswered`` share that ended in another way, or not at all; ``latency`` of answers, from when they were due.
    """
    ends = [each.end for each in asked]
    answers = [(each, each.end) for each in asked if isinstance(each.end, Answer)]
    superseded = [isinstance(end, Drop) and end.reason == "superseded" for end in ends]
    n, tiers = len(asked), Counter(answer.tier for _, answer in answers)
    in_time = sum(
        each.ended <= each.deadline and (isinstance(each.end, Answer) or gone)
        for each, gone in zip(asked, superseded, strict=True)
    )
    latency = 1e3 * np.array([each.ended - each.due for each, _ in answers])
    units = {
        tier: round(float(np.mean([answer.result.units for _, answer in answers if answer.tier == tier])), 2)
        for tier in tiers
    }
    p50, p99 = (round(float(ms), 1) for ms in np.percentile(latency, (50, 99))) if len(latency) else (None, None)
    return {
        "n": n,
        "share": {tier: round(tiers[tier] / n, 4) for tier in LADDER[asked[0].kind] if tier in tiers},
        "superseded": round(sum(superseded) / n, 4),
        "in_time": round(in_time / n, 4),
        "unanswered": sum(not isinstance(end, Answer) for end in ends) - sum(superseded),
        "p50_ms": p50,
        "p99_ms": p99,
        "units": units,
    }


def deadlines(options: argparse.Namespace) -> None:
    """Both policies in turn, at both loads; then all runs together."""
    together: dict[tuple[float, str, Kind], list[Asked]] = {}
    for run in range(options.runs):
        for load in (1.0, options.overload):
            for policy in POLICIES:
                asked = stream(options, policy, options.soa / load, run)
                for kind in KINDS:
                    of_kind = [each for each in asked if each.kind == kind]
                    if of_kind:
                        together.setdefault((load, policy, kind), []).extend(of_kind)
                        about = {"run": run, "load": load, "policy": policy, "kind": kind}
                        show("deadlines", **about, **figures(of_kind), machine=round(os.getloadavg()[0], 2))
    for (load, policy, kind), asked in together.items():
        show("deadlines, all runs", load=load, policy=policy, kind=kind, **figures(asked))


# --- memory ----------------------------------------------------------------------------------------------------------


def soak(options: argparse.Namespace) -> None:
    """One request of each kind at a time, with all the time it wants; resident memory after each."""
    with opened(options) as client:
        workers = {
            child.cmdline()[-1].split('"name":"')[1].split('"')[0]: child
            for child in psutil.Process().children(recursive=True)
            if "streamdec.decode.generate.worker" in child.cmdline()
        }
        asker = Asker(client, bundles.read(options.bundle))
        memory: dict[str, list[int]] = {name: [] for name in workers}
        for n in range(options.requests):
            if n and n % 100 == 0:
                print(
                    f"# {n} requests: {', '.join(f'{k} {v[-1] / 1e6:.1f} MB' for k, v in memory.items())}", flush=True
                )
            image = asker.image()
            ids = [asker.ask(kind, image, local_clock(), 60.0) for kind in client.kinds]
            while any(asker.asked[id_].end is None for id_ in ids):
                asker.wait(local_clock() + 0.002)
            for name, process in workers.items():
                try:
                    memory[name].append(process.memory_info().rss)
                except psutil.NoSuchProcess:
                    raise EngineError(f"worker {name} was lost after {n} requests") from None
        tiers = Counter(each.end.tier if isinstance(each.end, Answer) else "none" for each in asker.asked.values())
    for name, each in memory.items():
        quarter = max(1, len(each) // 4)
        first, last = np.mean(each[:quarter]) / 1e6, np.mean(each[-quarter:]) / 1e6
        show(
            "soak",
            worker=name,
            requests=len(each),
            first_quarter_mb=round(float(first), 2),
            last_quarter_mb=round(float(last), 2),
            growth=round(float(last / first) - 1, 4),
            max_mb=round(max(each) / 1e6, 2),
            tiers=dict(tiers),
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=["deadlines", "soak"])
    parser.add_argument("--bundle", type=Path, default=SIMULATE / "demo_full.zip")
    parser.add_argument("--generator", type=Path, default=SIMULATE / "demo_generator")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--soa", type=float, default=0.2)
    parser.add_argument("--overload", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    try:
        deadlines(options) if options.row == "deadlines" else soak(options)
    except StreamdecError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
