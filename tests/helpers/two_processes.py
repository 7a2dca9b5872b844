"""What each of two processes does in the test of gathered losses; a spawned process imports it by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offline.losses import DynamicLossAdjustment, LogitScale, gathered, semantic_guidance, symmetric_info_nce

N_PROCESSES = 2


class Aligner(nn.Module):
    """A linear encoder, a linear target head and a learnt scale, under three losses with adjusted weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.scale = nn.Linear(6, 4), nn.Linear(5, 4), LogitScale()
        self.adjust = DynamicLossAdjustment(2, "normalised", temperature=0.5)

    def forward(self, epochs: Tensor, targets: Tensor, item: Tensor) -> Tensor:
        queries, images = gathered(self.encoder(epochs)), gathered(self.head(targets))
        losses = [
            symmetric_info_nce(queries, images, self.scale(), item=gathered(item)),
            semantic_guidance(queries, images, images.roll(1, 0), self.scale()),
        ]
        weights = [self.encoder.weight, self.head.weight]
        return self.adjust(losses, [weights, weights])


def made_up() -> tuple[Aligner, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    net = Aligner()
    return net, torch.randn(8, 6), torch.randn(8, 5), torch.tensor([0, 1, 2, 3, 4, 1, 5, 6])


def step(net: nn.Module, aligner: Aligner, epochs: Tensor, targets: Tensor, item: Tensor) -> dict[str, Tensor]:
    """Two steps, so that the rate of change of the gradients counts too."""
    for _ in range(2):
        loss = net(epochs, targets, item)
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in aligner.parameters():
                parameter -= 0.5 * parameter.grad
    found = {name: parameter.detach() for name, parameter in aligner.named_parameters()}
    return found | {"loss": loss.detach(), "weights": aligner.adjust.weights}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=N_PROCESSES)
    aligner, *data = made_up()
    mine = [tensor.chunk(N_PROCESSES)[rank] for tensor in data]
    torch.save(step(DistributedDataParallel(aligner), aligner, *mine), folder / f"{rank}.pt")
    dist.destroy_process_group()
