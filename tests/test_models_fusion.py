"""HVF's fusion against its formula, its parameters counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf

from models.fusion import FusionEncoder


@pytest.mark.parametrize("n_inner", [6, 9])
def test_formula(n_inner: int) -> None:
    torch.manual_seed(0)
    widths = {"rn50": 5, "vae": 8}
    net = FusionEncoder(widths, 6, n_inner).eval()
    torch.nn.init.uniform_(net.norm.weight, 0.5, 1.5)
    features = {"vae": torch.randn(3, 2, 2, 2), "rn50": torch.randn(3, 5)}
    p = {name: parameter.detach().double().numpy() for name, parameter in net.named_parameters()}
    z = sum(
        features[name].double().numpy().reshape(3, -1) @ p[f"align.{name}.weight"].T + p[f"align.{name}.bias"]
        for name in widths
    )
    hidden = z @ p["inner.weight"].T
    y = z + (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) @ p["outer.weight"].T
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6) * p["norm.weight"] + p["norm.bias"]
    np.testing.assert_allclose(net(features).detach(), y, atol=1e-5)


@pytest.mark.parametrize("n_inner", [1024, 4096])
def test_parameters_at_published_sizes(n_inner: int) -> None:
    with torch.device("meta"):
        net = FusionEncoder({"rn50": 1024, "vit_b32": 512, "vae": 1024}, n_inner=n_inner)
    align = (1024 + 512 + 1024) * 1024 + 3 * 1024
    norm = 2 * 1024
    assert sum(parameter.numel() for parameter in net.parameters()) == align + 2 * 1024 * n_inner + norm
    rows = {"rn50": (7, 1024), "vit_b32": (7, 512), "vae": (7, 4, 16, 16)}
    assert net({name: torch.empty(shape, device="meta") for name, shape in rows.items()}).shape == (7, 1024)


def test_every_encoder_counts_and_learns() -> None:
    torch.manual_seed(0)
    net = FusionEncoder({"a": 4, "b": 3}, 5).eval()
    features = {"a": torch.randn(2, 4), "b": torch.randn(2, 3)}
    whole = net(features)
    for name in features:
        assert not torch.allclose(net(features | {name: torch.zeros_like(features[name])}), whole)
    (whole * torch.randn(2, 5)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.align.parameters())
    with pytest.raises(KeyError, match="b"):
        net({"a": features["a"]})


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    net = FusionEncoder({"a": 4}, 8, dropout=0.5)
    x = {"a": torch.randn(16, 4)}
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x)[3:5], net({"a": x["a"][3:5]}))
