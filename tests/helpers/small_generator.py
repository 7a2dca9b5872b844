"""A generator for the small bundle whose tiers are the sick ones; and a session's end of it, made to be watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import safetensors.numpy
from small_bundle import DIM, N_IMAGES, write_bundle

from streamdec.acquire.lsl.library import local_clock
from streamdec.decode.generate.client import Client, Event, GenerateSettings, plan
from streamdec.decode.generate.dispatcher import DispatcherPlan
from streamdec.decode.generate.generator import write_generator
from streamdec.decode.generate.job import Answer, Drop, Kind, Request
from streamdec.decode.generate.ladder import LadderSettings
from streamdec.decode.generate.link import Notice
from streamdec.decode.generate.spec import Bank, Generator, Latent, Llm
from streamdec.types import Candidate

SENTENCES = [f"sentence {i}" for i in range(N_IMAGES)]
PICTURE = b"\x89PNG\r\n\x1a\n a thumbnail"
OPENS = "sick_tiers:open_tiers"
LADDER = LadderSettings(grace=0.5)


def write_parts(folder: Path, *, bank: bool = True, latent: Latent = Latent("network.onnx")) -> tuple[Path, Path]:  # noqa: B008 - frozen
    """The small bundle, and a generator for it."""
    bundle = write_bundle(folder / "bundle", space="small", thumbnails={"img03": PICTURE})
    made = folder / "generator"
    made.mkdir()
    features = np.random.default_rng(5).standard_normal((N_IMAGES, DIM), dtype=np.float32)
    (made / "bank.safetensors").write_bytes(safetensors.numpy.save({"features": features}))
    (made / "bank.json").write_bytes(msgspec.json.encode(SENTENCES))
    (made / "network.onnx").write_bytes(b"the sick tiers need none")
    manifest = Generator(
        space="small",
        dim=DIM,
        citation="made for tests",
        created="2026-01-01T00:00:00Z",
        commit="",
        config={},
        seeds=(1,),
        data="none",
        simulated=True,
        bank=Bank("bank.safetensors", "bank.json", 10.0) if bank else None,
        llm=Llm("model", "network.onnx"),
        latent=latent,
    )
    write_generator(made, manifest)
    return bundle, made


class Watched:
    """A client, what came of what it asked, and the account of it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._ids = 0
        self.events: list[Event] = []

    def ask(self, key: str, kind: Kind = "caption", budget: float = 5.0, **changes: Any) -> int:
        """Ask for one result within ``budget`` seconds from now."""
        now = local_clock()
        fields: dict[str, Any] = {
            "repetitions": 1,
            "due": now,
            "deadline": now + budget,
            "candidates": (Candidate("img03", "image 3", 0.9, 0.8),),
            "embedding": np.ones(DIM, np.float32),
            "epoch": np.zeros((3, 4), np.float32),
        }
        self._ids += 1
        self.client.ask(Request(self._ids, kind, key, **(fields | changes)))
        return self._ids

    def until(self, found: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Poll until something is found."""
        end = time.monotonic() + seconds
        while not (result := found()):
            assert time.monotonic() < end, f"not within {seconds} s: {self.events[-10:]}"
            self.events += self.client.poll(4)
            time.sleep(0.002)
        return result

    def ends(self, id_: int) -> list[Answer | Drop]:
        """All that ended a request so far."""
        return [
            event
            for event in self.events
            if not isinstance(event, Notice) and event.id == id_ and not getattr(event, "partial", False)
        ]

    def end(self, id_: int, seconds: float = 30.0) -> Answer | Drop:
        """Wait for the end of a request."""
        self.until(lambda: self.ends(id_), seconds)
        (end,) = self.ends(id_)
        return end

    def answer(self, id_: int) -> Answer:
        """Wait for the answer to a request."""
        end = self.end(id_)
        assert isinstance(end, Answer), end
        return end

    def notices(self, worker: str) -> list[str]:
        """The states that a worker went through."""
        return [event.state for event in self.events if isinstance(event, Notice) and event.worker == worker]

    def state(self, worker: str, state: str) -> Notice:
        """Wait until a worker has a state; the notice that says so."""

        def there() -> Notice | None:
            notice = self.client.workers.get(worker)
            return notice if notice is not None and notice.state == state else None

        return self.until(there)  # type: ignore[no-any-return]

    def dispatcher(self) -> psutil.Process:
        """Its process."""
        return next(process for process in own_processes() if "generate.dispatcher" in " ".join(process.cmdline()))

    def worker(self, name: str) -> psutil.Process:
        """A worker's process."""
        return next(child for child in own_processes() if f'"name":"{name}"' in " ".join(child.cmdline()))


def own_processes() -> list[psutil.Process]:
    """Dispatchers and workers below this process; not what other tests have left to be collected."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one
            if "streamdec.decode.generate" in " ".join(process.cmdline()):
                found.append(process)
    return found


def plan_for(bundle: Path, generator: Path, **changes: Any) -> DispatcherPlan:
    """What the dispatcher is told, the sick tiers in place of the real ones."""
    settings = GenerateSettings(str(generator), ladder=LADDER)
    return msgspec.structs.replace(plan(settings, bundle), **({"opens": OPENS} | changes))


@contextmanager
def watched(
    plan: DispatcherPlan, wait: float = 60.0, say: Callable[[str], None] = lambda line: None
) -> Iterator[Watched]:
    """A client with all its processes, ready; none of them is left behind."""
    client = Client(plan, local_clock)
    try:
        client.open(wait, say)
        yield Watched(client)
    finally:
        client.close()
