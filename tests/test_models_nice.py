"""NICE against its layers as published, forward and gradient, training and inference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.blocks import TSConv
from models.nice import Nice
from models.registry import NETWORKS


def as_published(layer: TSConv) -> nn.Sequential:
    """The layers in the order of the paper, with the parameters of ``layer``."""
    n_filters, n_chans = layer.temporal.out_channels, layer.spatial.kernel_size[0]
    net = nn.Sequential(
        nn.Conv2d(1, n_filters, (1, 25)),
        nn.AvgPool2d((1, 51), (1, 5)),
        nn.BatchNorm2d(n_filters),
        nn.ELU(),
        nn.Conv2d(n_filters, n_filters, (n_chans, 1)),
        nn.BatchNorm2d(n_filters),
        nn.ELU(),
        nn.Conv2d(n_filters, n_filters, 1),
    )
    for theirs, ours in zip(
        (0, 2, 4, 5), (layer.temporal, layer.temporal_norm, layer.spatial, layer.spatial_norm), strict=True
    ):
        net[theirs].load_state_dict(ours.state_dict())
    net[7].load_state_dict({"weight": layer.project.weight[..., None, None], "bias": layer.project.bias})
    return net.train(layer.training)


def flat(y: Tensor) -> Tensor:
    return y.squeeze(2).transpose(1, 2).flatten(1)  # token-major: index = window * 40 + filter


def pair(n_chans: int, n_times: int) -> tuple[TSConv, nn.Sequential]:
    torch.manual_seed(1)
    layer = TSConv(n_chans, n_times, dropout=0.0)
    for norm in (layer.temporal_norm, layer.spatial_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return layer, as_published(layer)


@pytest.mark.parametrize(("n_batch", "n_chans", "n_times"), [(19, 5, 250), (8, 17, 201), (9, 3, 75), (3, 2, 100)])
@pytest.mark.parametrize("training", [True, False])
def test_same_as_published(n_batch: int, n_chans: int, n_times: int, training: bool) -> None:
    layer, textbook = pair(n_chans, n_times)
    layer.train(training)
    textbook.train(training).double()  # its own gradient of the first bias, 0 in truth, is 6e-5 in float32
    x = torch.randn(n_batch, n_chans, n_times) + 0.3
    before = x.clone()
    ours, theirs = layer(x), flat(textbook(x[:, None].double()))
    assert ours.shape == (n_batch, layer.n_features)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours) / n_batch
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for mine, module, reference in (
        ("temporal", layer.temporal, textbook[0]),
        ("temporal_norm", layer.temporal_norm, textbook[2]),
        ("spatial", layer.spatial, textbook[4]),
        ("spatial_norm", layer.spatial_norm, textbook[5]),
        ("project", layer.project, textbook[7]),
    ):
        for name, parameter in module.named_parameters():
            expected = getattr(reference, name).grad.view_as(parameter).float()
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(
                parameter.grad, expected, atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=mine + name: n + m
            )
    for module, reference in ((layer.temporal_norm, textbook[2]), (layer.spatial_norm, textbook[5])):
        torch.testing.assert_close(module.running_mean, reference.running_mean.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(module.running_var, reference.running_var.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


def test_folded_is_the_same_encoder() -> None:
    layer, textbook = pair(7, 250)
    x = torch.randn(4, 7, 250)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer.folded()(x), flat(textbook.eval()(x[:, None])), atol=1e-5, rtol=1e-5)
    net = Nice(7, 250, 12).eval()
    with torch.no_grad():
        torch.testing.assert_close(net.folded()(x), net(x), atol=1e-5, rtol=1e-5)


def test_one_step_of_training_is_the_same() -> None:
    layer, textbook = pair(5, 250)
    x, weights = torch.randn(16, 5, 250), torch.randn(16, layer.n_features) / 16
    start = copy.deepcopy(layer.temporal.weight)
    for net, output in ((layer, lambda: layer(x)), (textbook, lambda: flat(textbook(x[:, None])))):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        (output() * weights).sum().backward()
        optimiser.step()
    torch.testing.assert_close(layer.temporal.weight, textbook[0].weight, atol=1e-5, rtol=1e-5)
    assert not torch.equal(layer.temporal.weight, start)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_maps_epochs_to_embeddings(name: str) -> None:
    net = NETWORKS[name](5, 250, 11)
    assert net(torch.randn(3, 5, 250)).shape == (3, 11)
    assert "published" in (NETWORKS[name].__doc__ or "")


def test_too_short_an_epoch_says_how_long_it_must_be() -> None:
    with pytest.raises(ValueError, match="at least 75"):
        TSConv(3, 74)
    assert TSConv(3, 250).n_features == 1440
    assert TSConv(9, 201).n_features == 1040
