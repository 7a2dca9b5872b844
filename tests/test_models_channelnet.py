"""ChannelNet: published sizes, padding as published, other shapes."""

from __future__ import annotations

import math

import pytest
import torch
from textbook import random_norms
from torch import Tensor, nn

from models.channelnet import ChannelNet


def test_counts_of_parameters_and_shapes_at_the_published_size() -> None:
    with torch.device("meta"):
        net = ChannelNet(128, 440)
        shapes, y = [], torch.zeros(2, 128, 440)
        for layer in net.encoder:
            y = layer(y)
            shapes.append(tuple(y.shape[1:]))
    assert shapes[1:3] == [(40, 128, 220), (200, 64, 220)]
    assert shapes[-2:] == [(50, 1, 10), (500,)]
    assert (200, 3, 12) in shapes
    temporal = 4 * (2 + 10 * 33 + 10)
    spatial = sum(2 * 40 + 40 * 50 * taps + 50 for taps in (128, 64, 42, 32))
    residual = 2 * (200 * 200 * 9) + 2 * 2 * 200
    halving = 2 * 200 + 200 * 200 * 9 + 200
    last = 2 * 200 + 200 * 50 * 9 + 50
    heads = (500 * 512 + 512) + (512 * 40 + 40)
    total = temporal + spatial + 4 * (residual + halving) + last + heads
    assert sum(p.numel() for p in net.parameters()) == total == 5_226_970


def reference_padding(taps: int, dilation: int) -> int:
    """Of a temporal layer, as EEG-ChannelNet computes it."""
    return math.floor((taps * dilation - 2) / 2) - (dilation // 2 - 1)


def test_padding_is_the_published_one_at_even_sizes() -> None:
    torch.manual_seed(0)
    net = ChannelNet(16, 440, 8, 3).eval()
    random_norms(net)
    x = torch.randn(2, 16, 440)
    temporal, spatial = net.encoder[1], net.encoder[2]
    maps = torch.cat(
        [
            plain(layer, x[:, None], (0, reference_padding(33, dilation)), (1, 2), (1, dilation))
            for layer, dilation in zip(temporal.layers, (1, 2, 4, 8), strict=True)
        ],
        1,
    )
    torch.testing.assert_close(temporal(x[:, None]), maps, atol=1e-5, rtol=1e-5)
    expected = torch.cat(
        [
            plain(layer, maps, ((16 // share - 1) // 2, 0), (2, 1), (1, 1))
            for layer, share in zip(spatial.layers, (1, 2, 3, 4), strict=True)
        ],
        1,
    )
    assert expected.shape == (2, 200, 8, 220)
    torch.testing.assert_close(spatial(maps), expected, atol=1e-5, rtol=1e-5)


def plain(
    layer: nn.Sequential, x: Tensor, padding: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Norm, ReLU and a convolution that pads both sides alike."""
    norm, convolution = layer[0], layer[3]
    return nn.functional.conv2d(torch.relu(norm(x)), convolution.weight, convolution.bias, stride, padding, dilation)


def test_residual_block_is_its_formula() -> None:
    torch.manual_seed(0)
    net = ChannelNet(14, 14, 8, 3).eval()
    random_norms(net)
    block = net.encoder[3]
    x = torch.randn(2, 200, 7, 7)
    first, norm, _, second, last = block.branch
    y = last(nn.functional.conv2d(torch.relu(norm(first(x))), second.weight, padding=1))
    torch.testing.assert_close(block(x), torch.relu(x + y))
    assert first.bias is None


@pytest.mark.parametrize(
    ("n_chans", "n_times", "n_taps", "n_blocks"), [(128, 440, 33, 4), (63, 250, 19, 3), (17, 250, 19, 1), (5, 5, 1, 0)]
)
def test_other_shapes(n_chans: int, n_times: int, n_taps: int, n_blocks: int) -> None:
    with torch.device("meta"):
        net = ChannelNet(n_chans, n_times, 8, 3).eval()
        embedding = net(torch.zeros(2, n_chans, n_times))
        assert embedding.shape == (2, 8)
        assert net.classifier(embedding).shape == (2, 3)
    assert {layer[3].kernel_size for layer in net.encoder[1].layers} == {(1, n_taps)}
    assert [layer[3].kernel_size[0] for layer in net.encoder[2].layers] == [n_chans // i for i in (1, 2, 3, 4)]
    assert (len(net.encoder) - 5) // 2 == n_blocks


@pytest.mark.parametrize("shape", [(4, 100), (100, 4)])
def test_too_small_an_epoch(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 5 × 5"):
        ChannelNet(*shape)
