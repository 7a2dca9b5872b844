"""ShallowNet, DeepNet, EEGNet and UBP's TSConv against their layers one by one."""

from __future__ import annotations

import pytest
import torch
from textbook import assert_same_gradients, random_norms, shallownet, take, without_dropout
from torch import nn

from models.convnets import DeepNet, EEGNet, JointConv, Layers, ShallowNet, TSConvNet

HEAD = 1024 * 1024 + 1024 + 2 * 1024


def deepnet(ours: Layers, n_chans: int) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Unflatten(1, (1, n_chans)),
        nn.Conv2d(1, 25, (1, 10)),
        nn.Conv2d(25, 25, (n_chans, 1)),
        *after(25),
    ]
    for before, width in ((25, 50), (50, 100), (100, 200)):
        layers += [nn.Conv2d(before, width, (1, 10)), *after(width)]
    return take(ours, nn.Sequential(*layers, nn.Flatten()))


def after(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ELU(), nn.MaxPool2d((1, 2), (1, 2))]


def eegnet(ours: Layers, n_chans: int) -> nn.Sequential:
    net = nn.Sequential(
        nn.Unflatten(1, (1, n_chans)),
        nn.Conv2d(1, 8, (1, 64)),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, (n_chans, 1)),
        nn.BatchNorm2d(16),
        nn.ELU(),
        nn.AvgPool2d((1, 2), (1, 2)),
        nn.Conv2d(16, 16, (1, 16)),
        nn.BatchNorm2d(16),
        nn.ELU(),
        nn.Flatten(),
    )
    return take(ours, net)


@pytest.mark.parametrize("n_chans", [1, 6])
def test_joint_convolution_is_the_two_in_turn(n_chans: int) -> None:
    torch.manual_seed(0)
    ours = JointConv(n_chans, 5, 4)
    theirs = nn.Sequential(nn.Unflatten(1, (1, n_chans)), nn.Conv2d(1, 5, (1, 4)), nn.Conv2d(5, 5, (n_chans, 1)))
    take(ours, theirs)
    x = torch.randn(3, n_chans, 30)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(mine), theirs(reference).squeeze(2)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.folded()(x), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, reference.grad, atol=1e-5, rtol=1e-5)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["shallownet", "deepnet", "eegnet"])
def test_same_as_published(name: str, training: bool) -> None:
    torch.manual_seed(0)
    n_batch, n_chans, n_times = 6, 4, 160
    net = {"shallownet": ShallowNet, "deepnet": DeepNet, "eegnet": EEGNet}[name](n_chans, n_times, 9)
    without_dropout(net)
    random_norms(net)
    net.train(training)
    encoder = net.encoder
    assert isinstance(encoder, Layers)
    theirs = {"shallownet": shallownet, "deepnet": deepnet, "eegnet": eegnet}[name]
    textbook = (theirs(encoder) if name == "shallownet" else theirs(encoder, n_chans)).double()
    x = torch.randn(n_batch, n_chans, n_times) + 0.3
    y, expected = encoder(x), textbook(x.double())
    assert y.shape == (n_batch, encoder.n_features)
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(y) / n_batch
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_same_gradients(encoder, textbook)
    with torch.no_grad():
        net.eval()
        torch.testing.assert_close(encoder.folded()(x), textbook.eval()(x.double()).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "n_times", "n_features"),
    [
        (ShallowNet, 250, 1440),
        (ShallowNet, 201, 1040),
        (DeepNet, 250, 1400),
        (DeepNet, 201, 800),
        (EEGNet, 250, 1248),
        (EEGNet, 201, 864),
        (TSConvNet, 250, 1440),
        (TSConvNet, 201, 1040),
    ],
)
def test_published_widths(network: type[nn.Module], n_times: int, n_features: int) -> None:
    encoder = network(2, n_times, 4).eval().encoder
    assert encoder.n_features == n_features
    assert encoder(torch.zeros(1, 2, n_times)).shape == (1, n_features)


def test_counts_of_parameters() -> None:
    with torch.device("meta"):
        counts = {
            network: sum(p.numel() for p in network(17, 250).parameters())
            for network in (ShallowNet, DeepNet, EEGNet, TSConvNet)
        }
    temporal, spatial = 40 * 25 + 40, 40 * 40 * 17 + 40
    assert counts[ShallowNet] == temporal + spatial + 2 * 40 + (1440 * 1024 + 1024) + HEAD
    assert counts[TSConvNet] == temporal + spatial + 2 * 40 + 2 * 40 + (1440 * 1024 + 1024) + HEAD
    first = (25 * 10 + 25) + (25 * 25 * 17 + 25) + 2 * 25
    second, third, fourth = (n * 2 * n * 10 + 2 * n + 2 * 2 * n for n in (25, 50, 100))
    assert counts[DeepNet] == first + second + third + fourth + (1400 * 1024 + 1024) + HEAD
    early = (8 * 64 + 8) + 2 * 8 + (8 * 16 * 17 + 16) + 2 * 16
    late = (16 * 16 * 16 + 16) + 2 * 16
    assert counts[EEGNet] == early + late + (1248 * 1024 + 1024) + HEAD


@pytest.mark.parametrize(("network", "least"), [(ShallowNet, 75), (DeepNet, 151), (EEGNet, 95), (TSConvNet, 75)])
def test_least_length_of_an_epoch(network: type[nn.Module], least: int) -> None:
    assert network(2, least, 4).eval()(torch.zeros(1, 2, least)).shape == (1, 4)
    with pytest.raises(ValueError, match=f"got {least - 1}; allowed: at least {least}"):
        network(2, least - 1, 4)


def test_last_dropout_of_eegnet_drops_whole_maps() -> None:
    torch.manual_seed(0)
    encoder = EEGNet(2, 130, 4).encoder
    maps = encoder(torch.randn(3, 2, 130)).view(3, 16, -1)
    dropped = (maps == 0).all(2)
    assert dropped.any()
    assert (maps[~dropped] != 0).all()
