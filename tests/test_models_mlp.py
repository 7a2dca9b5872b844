"""The flat encoders: formula and sizes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from models.mlp import BrainMLP, EEGProject


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy().astype(np.float64)


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + (0.0 if layer.bias is None else array(layer.bias))


def norm(layer: nn.LayerNorm, x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + epsilon)
    return scaled * array(layer.weight) + array(layer.bias)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_brain_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    net = BrainMLP(3, 20, 8).eval()
    nn.init.normal_(net.norm.weight)
    nn.init.normal_(net.first.weight, std=1e-3)  # so that the epsilon of the norm, 1e-6, is seen
    nn.init.zeros_(net.first.bias)
    x = torch.randn(5, 3, 20)
    hidden = linear(net.first, x.numpy().reshape(5, 60).astype(np.float64))
    expected = norm(net.norm, hidden + linear(net.outer, gelu(linear(net.inner, hidden))), 1e-6)
    np.testing.assert_allclose(array(net(x)), expected, atol=1e-5)
    assert not np.allclose(norm(net.norm, hidden, 1e-5), norm(net.norm, hidden, 1e-6), atol=1e-3)


def test_eeg_project_is_its_formula() -> None:
    torch.manual_seed(0)
    net = EEGProject(3, 20, 8).eval()
    x = torch.randn(5, 3, 20)
    hidden = linear(net.head.first, x.numpy().reshape(5, 60).astype(np.float64))
    expected = norm(net.head.norm, hidden + linear(net.head.block[1], gelu(hidden)), 1e-5)
    np.testing.assert_allclose(array(net(x)), expected, atol=1e-5)


def test_counts_of_parameters() -> None:
    with torch.device("meta"):
        project, mlp, meg = EEGProject(17, 250), BrainMLP(17, 250), EEGProject(271, 201)
    first, square, layer_norm = 4250 * 1024 + 1024, 1024 * 1024, 2 * 1024
    assert sum(p.numel() for p in project.parameters()) == first + square + 1024 + layer_norm
    assert sum(p.numel() for p in mlp.parameters()) == first + 2 * square + layer_norm
    assert sum(p.numel() for p in meg.parameters()) == (271 * 201 + 1) * 1024 + square + 1024 + layer_norm


def test_published_dropout() -> None:
    assert [m.p for m in EEGProject(2, 9, 4).modules() if isinstance(m, nn.Dropout)] == [0.3]
    assert [m.p for m in BrainMLP(2, 9, 4).modules() if isinstance(m, nn.Dropout)] == [0.1]
