"""TSConv against its layers as published, forward and gradient, training and inference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import assert_same_gradients, random_norms, tsconv
from torch import nn

from models.blocks import Projected, ResProj, TSConv


def pair(n_chans: int, n_times: int, **options: int) -> tuple[TSConv, nn.Sequential]:
    torch.manual_seed(1)
    layer = TSConv(n_chans, n_times, dropout=0.0, **options)
    random_norms(layer)
    return layer, tsconv(layer)


@pytest.mark.parametrize(("n_batch", "n_chans", "n_times"), [(19, 5, 250), (8, 17, 201), (9, 3, 75), (3, 2, 100)])
@pytest.mark.parametrize("training", [True, False])
def test_same_as_published(n_batch: int, n_chans: int, n_times: int, training: bool) -> None:
    layer, textbook = pair(n_chans, n_times)
    layer.train(training)
    textbook.train(training).double()  # its own gradient of the first bias, 0 in truth, is 6e-5 in float32
    x = torch.randn(n_batch, n_chans, n_times) + 0.3
    before = x.clone()
    ours, theirs = layer(x), textbook(x.double())
    assert ours.shape == (n_batch, layer.n_features)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours) / n_batch
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert_same_gradients(layer, textbook)
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=12, deadline=None)
@given(
    n_batch=st.integers(2, 40),
    n_chans=st.integers(1, 4),
    n_taps=st.integers(1, 9),
    pool=st.integers(1, 7),
    stride=st.integers(1, 6),
    spare=st.integers(0, 20),
)
def test_gradient_of_a_computed_input(
    training: bool, n_batch: int, n_chans: int, n_taps: int, pool: int, stride: int, spare: int
) -> None:
    """Any stride and number of taps; in training the gradient also goes through the moments of the batch."""
    n_times = n_taps - 1 + pool + spare
    layer, textbook = pair(n_chans, n_times, n_filters=3, n_taps=n_taps, pool=pool, stride=stride)
    layer.train(training).double()
    textbook.train(training).double()
    x = torch.randn(n_batch, n_chans, n_times, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, reference = layer(ours), textbook(theirs)
    torch.testing.assert_close(y, reference)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-8, rtol=1e-6)
    assert_same_gradients(layer, textbook)


def test_data_gets_no_gradient_and_a_second_derivative_is_refused() -> None:
    layer, _ = pair(3, 80)
    layer(torch.randn(4, 3, 80)).sum().backward()
    x = torch.randn(4, 3, 80, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_one_step_of_training_is_the_same() -> None:
    layer, textbook = pair(5, 250)
    x, weights = torch.randn(16, 5, 250), torch.randn(16, layer.n_features) / 16
    start = layer.temporal.weight.detach().clone()
    for net in (layer, textbook):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        (net(x) * weights).sum().backward()
        optimiser.step()
    torch.testing.assert_close(layer.temporal.weight, textbook[1].weight, atol=1e-5, rtol=1e-5)
    assert not torch.equal(layer.temporal.weight, start)


@pytest.mark.parametrize("project", [True, False])
def test_folded_is_the_same_encoder(project: bool) -> None:
    layer, textbook = pair(7, 250, project=project)
    x = torch.randn(4, 7, 250)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer.folded()(x), textbook.eval()(x), atol=1e-5, rtol=1e-5)


def test_folding_leaves_the_network_in_training() -> None:
    net = Projected(TSConv(3, 80), 11)
    net.folded()
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_tsconv_in_float32(dtype: torch.dtype) -> None:
    layer, _ = pair(4, 100)
    x = torch.randn(6, 4, 100, requires_grad=True)
    expected = layer(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        inside = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], gradient)
    torch.testing.assert_close(inside, gradient, atol=0.02, rtol=0.02)  # torch's own products are then reduced


def test_counts_of_parameters() -> None:
    norms = 2 * (40 + 40)
    convolutions = 40 * 25 + 40 + 40 * 40 * 63 + 40
    assert count(TSConv(63, 250)) == convolutions + norms + 40 * 40 + 40
    assert count(TSConv(63, 250, project=False)) == convolutions + norms
    assert count(ResProj(1440, 1024)) == 1440 * 1024 + 1024 + 1024 * 1024 + 1024 + 2 * 1024
    assert count(ResProj(1440, 2)) == 1440 * 2 + 2 + 2 * 2 + 2, "without norm"


@pytest.mark.parametrize(("n_times", "n_features"), [(250, 1440), (201, 1040), (200, 1040), (100, 240), (75, 40)])
def test_width_does_not_depend_on_the_channels(n_times: int, n_features: int) -> None:
    assert TSConv(3, n_times).n_features == TSConv(9, n_times).n_features == n_features


def test_too_short_an_epoch_says_how_long_it_must_be() -> None:
    with pytest.raises(ValueError, match="at least 75"):
        TSConv(3, 74)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
