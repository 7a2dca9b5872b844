"""Training throughput of NICE against its layers as published: same batch, threads, loss, optimiser; alternating.

    python tools/bench_training.py [--epochs 4000] [--batch 1000] [--threads 2]

A pass over the 16 540 epochs of THINGS-EEG2 is the default; a slice gives the same ratio in less time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from models.blocks import ResProj
from models.nice import Nice
from offline.losses import symmetric_info_nce

N_CHANS, N_TIMES, N_FEATURES = 63, 250, 768
BAR = 5.0


class Textbook(nn.Module):
    """The layers in the order of the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 40, (1, 25)),
            nn.AvgPool2d((1, 51), (1, 5)),
            nn.BatchNorm2d(40),
            nn.ELU(),
            nn.Conv2d(40, 40, (N_CHANS, 1)),
            nn.BatchNorm2d(40),
            nn.ELU(),
            nn.Dropout(0.5),
            nn.Conv2d(40, 40, 1),
        )
        self.head = ResProj(1440, N_FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, D)."""
        y: Tensor = self.head(self.layers(x[:, None]).squeeze(2).transpose(1, 2).flatten(1))
        return y


def step(network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One step of training; return its seconds."""
    start = time.perf_counter()
    loss = symmetric_info_nce(network(x), y, 1 / 0.07)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return time.perf_counter() - start


def main() -> int:
    """Print both throughputs and their ratio; fail below the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=16540)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.batch, N_CHANS, N_TIMES)
    y = torch.randn(args.batch, N_FEATURES)
    networks = {"as published": Textbook(), "ours": Nice(N_CHANS, N_TIMES, N_FEATURES)}
    optimisers = {name: torch.optim.Adam(net.parameters(), lr=2e-4) for name, net in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(-1, max(args.epochs // args.batch, 1)):
        for name, network in networks.items():
            taken = step(network, optimisers[name], x, y)
            if turn >= 0:  # the first step of each only warms up
                seconds[name].append(taken)
    print(f"{args.epochs} epochs of {N_CHANS} x {N_TIMES}, batch {args.batch}, {args.threads} threads")
    for name, each in seconds.items():
        throughput = args.batch * len(each) / sum(each)
        print(f"{name:>14}: {throughput:8.0f} epochs/s, median {statistics.median(each):.3f} s a step")
    ratio = sum(seconds["as published"]) / sum(seconds["ours"])
    print(f"{'ratio':>14}: {ratio:8.1f} x, bar {BAR:g} x")
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
