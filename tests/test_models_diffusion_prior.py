"""ATM's diffusion prior: its parameters counted, its time embedding as diffusers has it, its order by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from models.diffusion_prior import DiffusionPriorUNet, timestep_features


def test_parameters_at_published_sizes() -> None:
    """About 10 million, each layer counted."""
    with torch.device("meta"):
        net = DiffusionPriorUNet()
    widths = [1024, 512, 256, 128, 64]

    def linear(a: int, b: int) -> int:
        return a * b + b

    def given(h: int) -> int:
        return linear(512, h) + linear(h, h) + linear(1024, h)

    total = linear(1024, 1024) + 2 * 1024 + linear(1024, 1024)
    for a, b in pairwise(widths):
        total += given(a) + linear(a, b) + 2 * b  # down
        total += given(b) + linear(b, a) + 2 * a  # up
    assert sum(p.numel() for p in net.parameters()) == total
    assert 9.5e6 < total < 10.5e6


def test_time_features_are_those_of_diffusers() -> None:
    from diffusers.models.embeddings import Timesteps

    times = torch.tensor([0, 1, 500, 999])
    theirs = Timesteps(512, flip_sin_to_cos=True, downscale_freq_shift=0)(times)
    torch.testing.assert_close(timestep_features(times, 512), theirs)


def layer(x: torch.Tensor, module: nn.Sequential) -> torch.Tensor:
    linear, norm = module[0], module[1]
    y = x @ linear.weight.T + linear.bias
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + norm.eps).sqrt()
    y = y * norm.weight + norm.bias
    return y * torch.sigmoid(y)


@pytest.mark.parametrize("conditioned", [True, False])
def test_formula(conditioned: bool) -> None:
    torch.manual_seed(0)
    net = DiffusionPriorUNet(5, 3, (8, 6, 4), n_time=4, dropout=0.5).double().eval()
    x, times = torch.randn(2, 5, dtype=torch.float64), torch.tensor([7, 900])
    condition = torch.randn(2, 3, dtype=torch.float64) if conditioned else None

    def given(module: nn.Module) -> torch.Tensor:
        time = timestep_features(times, 4).double()
        hidden = time @ module.time[0].weight.T + module.time[0].bias
        added = (hidden * torch.sigmoid(hidden)) @ module.time[2].weight.T + module.time[2].bias
        if condition is not None:
            added = added + condition @ module.condition.weight.T + module.condition.bias
        return added

    first = layer(x, net.first)
    second = layer(first + given(net.down_given[0]), net.down[0])
    middle = layer(second + given(net.down_given[1]), net.down[1])
    up = layer(middle + given(net.up_given[0]), net.up[0]) + second
    up = layer(up + given(net.up_given[1]), net.up[1]) + first
    wanted = up @ net.last.weight.T + net.last.bias
    torch.testing.assert_close(net(x, times, condition), wanted)
