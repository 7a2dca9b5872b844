"""Training throughput and memory of the networks with a fast layer, against the same layers as published.

    python tools/bench_training.py [--cases nice atm] [--epochs 4000] [--batch 1000] [--threads 2]

Forward and backward of the encoder with its head, in training, on the same data; the two take turns. The layers as
published are those that the tests compare numbers with. Memory is what one step adds to the peak of a process of its
own. In ATM-S the transformer before TSConv is most of the work and the same in both; a second line is TSConv alone,
with the gradient of its input. One thread is measured in CPU time, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import textbook  # noqa: E402

from models.atm import ATMS  # noqa: E402
from models.blocks import TSConv  # noqa: E402
from models.convnets import ShallowNet, TSConvNet  # noqa: E402
from models.nice import Nice  # noqa: E402

N_CHANS, N_TIMES = 63, 250
BAR = 5.0
_KIB = 1024 if sys.platform == "linux" else 1  # of ru_maxrss


class Case(NamedTuple):
    """Two networks of the same numbers, ``batch`` as published, and whether the input wants a gradient."""

    ours: nn.Module
    theirs: nn.Module
    batch: int
    computed: bool = False

    @property
    def pair(self) -> tuple[nn.Module, nn.Module]:
        """Ours and theirs."""
        return self.ours, self.theirs


def nice() -> Case:
    """NICE."""
    net = Nice(N_CHANS, N_TIMES)
    return Case(net, nn.Sequential(textbook.tsconv(net.encoder), copy.deepcopy(net.head)), 1000)


def ubp() -> Case:
    """TSConv as UBP and HVF have it."""
    net = TSConvNet(N_CHANS, N_TIMES)
    return Case(net, nn.Sequential(textbook.tsconv(net.encoder), copy.deepcopy(net.head)), 1024)


def shallownet() -> Case:
    """ShallowNet."""
    net = ShallowNet(N_CHANS, N_TIMES)
    return Case(net, nn.Sequential(textbook.shallownet(net.encoder), copy.deepcopy(net.head)), 1024)


def atm() -> Case:
    """ATM-S."""
    net = ATMS(N_CHANS, N_TIMES)
    return Case(net, textbook.Atms(net), 64)


def atm_tsconv() -> Case:
    """TSConv in ATM-S."""
    layer = TSConv(N_CHANS, N_TIMES)
    return Case(layer, textbook.tsconv(layer), 64, computed=True)


CASES = {"nice": nice, "ubp": ubp, "shallownet": shallownet, "atm": atm, "atm-tsconv": atm_tsconv}


def step(network: nn.Module, x: Tensor, gradient: Tensor) -> float:
    """Go forward and backward; return the seconds."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    network.zero_grad(set_to_none=True)
    x.grad = None
    network(x).backward(gradient)
    return clock() - start


def data(case: Case, batch: int | None) -> tuple[Tensor, Tensor]:
    """Epochs and the gradient of what comes out, random."""
    batch = batch or case.batch
    x = torch.randn(batch, N_CHANS, N_TIMES, requires_grad=case.computed)
    with torch.no_grad():
        width = case.ours(x[:2]).shape[1]
    return x, torch.randn(batch, width)


def added(name: str, which: int, batch: int | None, threads: int) -> float:
    """MiB that a step adds to the peak of this process, after a step on a few epochs."""
    torch.set_num_threads(threads)
    case = CASES[name]()
    x, gradient = data(case, batch)
    few = x[:4].detach().requires_grad_(case.computed)
    step(case.pair[which], few, gradient[:4])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(case.pair[which], x, gradient)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _KIB / 2**20


def memory(name: str, batch: int | None, threads: int) -> list[float]:
    """Do that in a process each; they take over the peak of this one, which has held no batch yet."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(added, (name, which, batch, threads)) for which in (0, 1)]


def throughput(name: str, n_epochs: int, batch: int | None) -> list[float]:
    """Epochs per second of ours and theirs."""
    torch.manual_seed(0)
    case = CASES[name]()
    x, gradient = data(case, batch)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, max(n_epochs // len(x), 1)):
        for which, each in enumerate(seconds):
            taken = step(case.pair[which], x, gradient)
            if turn >= 0:  # the first step of each only warms up
                each.append(taken)
    return [len(x) / statistics.median(each) for each in seconds]


def main() -> int:
    """Print a table; fail where a ratio of throughputs is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--epochs", type=int, default=4000, help="that each of the two takes")
    parser.add_argument("--batch", type=int, help="instead of the published one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.epochs} epochs of {N_CHANS} x {N_TIMES}, {args.threads} threads, medians; bar {BAR:g} x")
    print(f"{'':>12} {'ours':>7} {'textbook':>9} {'ratio':>7}   {'ours':>7} {'textbook':>9} {'ratio':>7}")
    spaces = {name: memory(name, args.batch, args.threads) for name in args.cases}
    ratios = []
    for name, (space, their_space) in spaces.items():
        speed, their_speed = throughput(name, args.epochs, args.batch)
        ratios.append(speed / their_speed)
        print(
            f"{name:>12} {speed:5.0f}/s {their_speed:7.0f}/s {ratios[-1]:6.1f}x"
            f"   {space:3.0f} MiB {their_space:5.0f} MiB {their_space / space:6.1f}x",
            flush=True,
        )
    return 0 if min(ratios) >= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
