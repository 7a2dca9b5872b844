"""What each process does in the test of shared batches; a spawned process imports it by name."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline import distributed, experiment
from offline.learner import Batch, Learner
from offline.methods.atm import AtmLearner, AtmSettings
from offline.methods.hvf import HvfLearner, HvfSettings
from offline.methods.mused import MusedLearner, MusedSettings
from offline.methods.network import Shapes
from offline.methods.neuroalign import NeuroAlignLearner, NeuroAlignSettings
from offline.methods.nice import NiceLearner, NiceSettings
from offline.methods.ubp import UbpLearner, UbpSettings
from offline.processes import Job
from offline.progress import Report
from streamdec.decode.manifest import Calibration

# 7 rows and 5 items: neither is a multiple of the number of processes.
PLACE = torch.tensor([0, 1, 2, 3, 4, 1, 0])
N_ITEMS, WIDTH = 5, 6
CASES = {
    "nice": (NiceLearner, NiceSettings(), ("image",)),
    "atm": (AtmLearner, AtmSettings(hidden=0.0), ("image", "text")),
    "ubp": (UbpLearner, UbpSettings(encoder="tsconv"), ("medium",)),
    "hvf": (HvfLearner, HvfSettings(backbone="eegnet", n_dims=12, n_inner=12), ("one", "two")),
    "neuroalign": (NeuroAlignLearner, NeuroAlignSettings(n_dims=8, adjustment="normalised"), ("image", "text")),
    "mused": (MusedLearner, MusedSettings(width=16, n_layers=1, n_hidden=16, n_heads=2), ("image", "low")),
}


def learner(name: str) -> Learner:
    """As it is born, without dropout."""
    torch.manual_seed(1)
    kind, settings, roles = CASES[name]
    shapes = Shapes(
        epochs=(4, 100),
        targets=dict.fromkeys(roles, (WIDTH,)),
        subjects=("a", "b"),
        n_concepts=N_ITEMS,
        kind="stimulus",
    )
    net = kind(settings, shapes)
    net.concept = torch.arange(N_ITEMS)
    for module in net.modules():
        if "Dropout" in type(module).__name__:
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return net.train()


def batch(name: str) -> Batch:
    torch.manual_seed(2)
    n = len(PLACE)
    return Batch(
        # Shares differ in mean and scale, so that moments of a share alone would be seen.
        epochs=torch.randn(n, 4, 100) * torch.linspace(0.5, 3, n)[:, None, None] + torch.arange(n)[:, None, None],
        targets={role: torch.randn(N_ITEMS, WIDTH) for role in CASES[name][2]},
        place=PLACE,
        items=torch.arange(N_ITEMS),
        subject=torch.tensor([0, 1, 1, 0, 1, 0, 0]),
        sample=torch.arange(n),
    )


def step(name: str) -> dict[str, Tensor]:
    """Loss and gradients of one batch, and the state it leaves."""
    net = learner(name)
    with distributed.shared_out(net):
        loss = net(batch(name))
        loss.backward()
    distributed.mean_gradients(torch.optim.SGD(net.parameters(), lr=1.0))
    grads = {f"gradient of {key}": p.grad for key, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | grads | net.state_dict()


class Steps:
    """The step of every case, in a file per case and process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, device: str, report: Report) -> None:
        for name in CASES:
            torch.save(step(name), self.folder / f"{name}-{torch.distributed.get_rank()}.pt")
            report(name)


class AloneAfterTraining(Job):
    """A fit that may not make the other process wait while the first one calibrates."""

    def __call__(self, device: str, report: Report) -> None:
        first, calibrate = distributed.is_first(), experiment._calibrate

        def alone(*args: Any) -> Calibration:
            assert first
            assert not distributed.several()
            report("calibrates alone")
            return calibrate(*args)

        experiment._calibrate = alone
        super().__call__(device, report)


class Slow:
    """The first process says what is wrong and dies of it once it was heard; the other one waits for it."""

    def __init__(self, heard: Path) -> None:
        self.heard = heard

    def __call__(self, device: str, report: Report) -> None:
        if not distributed.is_first():
            torch.distributed.barrier()
            return
        threading.Thread(target=self.wait).start()  # which the end of the process waits for
        refuse(device, report)

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self.heard.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def refuse(device: str, report: Report) -> None:
    from streamdec.errors import DataError

    raise DataError("this work", got="no data")
