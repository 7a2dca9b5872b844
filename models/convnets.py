"""Convolutional encoders that HVF's table of backbones compares, each before the projection head of NICE.

Layers and widths as in main/models_brain.py of ssshamiii/Brain-HIVE@3317b53, where they come from UBP, which has them
from torcheeg and the EEG Conformer. Every published size is at 250 samples.
Shapes: B batch, C channels, T samples, F filters, K taps, W what the pooling leaves of the samples, D embedding.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .blocks import Projected, TSConv


class TSConvNet(Projected):
    """TSConv of UBP and Brain-HIVE, without the 1×1 convolution of NICE and with torch's initial weights.

    Theirs flattens filter by filter, ours window by window: the same function with the head's inputs in another order.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch; published 63 × 250 across subjects.
    n_features : int
        D; published 1024.
    dropout : float
        In both parts; published 0.5.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 1024, dropout: float = 0.5) -> None:
        super().__init__(TSConv(n_chans, n_times, dropout=dropout, project=False), n_features, dropout)


class JointConv(nn.Module):
    """Convolution over time, then over the channels, nothing between: made one convolution of (C, K) and then applied.

    Parameters and numbers are those of the two layers (1e-5). At 63 channels, 40 filters and 25 taps that is 14 million
    products per epoch instead of 37, and no C·F·T activations between the layers, which are 36 times the epoch.

    Parameters
    ----------
    n_chans, n_filters, n_taps : int
    """

    def __init__(self, n_chans: int, n_filters: int, n_taps: int) -> None:
        super().__init__()
        self.temporal = nn.Conv2d(1, n_filters, (1, n_taps))
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_chans, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, F, T - K + 1)."""
        return nnf.conv1d(x, *self._joint())

    def _joint(self) -> tuple[Tensor, Tensor]:
        """Weight (F, C, K) and bias (F,)."""
        spatial, taps = self.spatial.weight[..., 0], self.temporal.weight[:, 0, 0]
        bias = cast(Tensor, self.spatial.bias) + spatial.sum(2) @ cast(Tensor, self.temporal.bias)
        return torch.einsum("fgc,gk->fck", spatial, taps), bias

    @torch.no_grad()
    def folded(self) -> nn.Conv1d:
        """Make it one plain layer."""
        weight, bias = self._joint()
        layer = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2]).to(weight.device)
        layer.weight.copy_(weight)
        cast(Tensor, layer.bias).copy_(bias)
        return layer


class Layers(nn.Sequential):
    """Layers from an epoch to flat features.

    Parameters
    ----------
    n_features : int
        Of their output, (B, n_features).
    *layers : nn.Module
    """

    def __init__(self, n_features: int, *layers: nn.Module) -> None:
        super().__init__(*layers, nn.Flatten())
        self.n_features = n_features

    def folded(self) -> nn.Sequential:
        """Make the layers for inference: batch norms in the convolutions before them, no dropout."""
        plain: list[nn.Module] = []
        for layer in self:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                plain[-1] = fuse_conv_bn_eval(cast(nn.Conv1d, plain[-1]).eval(), copy.deepcopy(layer).eval())
            elif isinstance(layer, JointConv):
                plain.append(layer.folded())
            elif not isinstance(layer, nn.Dropout | nn.Dropout1d):
                plain.append(copy.deepcopy(layer))
        return nn.Sequential(*plain).eval()


class ShallowNet(Projected):
    """Shallow convolutional network, after Schirrmeister et al. 2017, doi:10.1002/hbm.23730, with ELU for its squares.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch.
    n_features : int
        D; published 1024.
    dropout : float
        In encoder and head; published 0.5.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 1024, dropout: float = 0.5) -> None:
        n_filters, n_taps, pool, stride = 40, 25, 51, 5
        _require(n_times, n_taps - 1 + pool)
        n_windows = (n_times - n_taps + 1 - pool) // stride + 1
        encoder = Layers(
            n_windows * n_filters,
            JointConv(n_chans, n_filters, n_taps),
            nn.BatchNorm1d(n_filters),
            nn.ELU(),
            nn.AvgPool1d(pool, stride),
            nn.Dropout(dropout),
        )
        super().__init__(encoder, n_features, dropout)


class DeepNet(Projected):
    """Deep convolutional network, after Schirrmeister et al. 2017, doi:10.1002/hbm.23730, pooling by 2 instead of 3.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch.
    n_features : int
        D; published 1024.
    dropout : float
        In encoder and head; published 0.5.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 1024, dropout: float = 0.5) -> None:
        n_taps, widths = 10, (25, 50, 100, 200)
        _require(n_times, 151)  # from the last layer back: 2 samples before a pooling for 1 after it, 9 more per filter
        layers: list[nn.Module] = []
        before, n_windows = 0, n_times
        for width in widths:
            convolution = nn.Conv1d(before, width, n_taps) if before else JointConv(n_chans, width, n_taps)
            layers += [convolution, nn.BatchNorm1d(width), nn.ELU(), nn.MaxPool1d(2), nn.Dropout(dropout)]
            before, n_windows = width, (n_windows - n_taps + 1) // 2
        super().__init__(Layers(n_windows * before, *layers), n_features, dropout)


class EEGNet(Projected):
    """EEGNet, after Lawhern et al. 2018, doi:10.1088/1741-2552/aace8c; no depthwise layers, as in the backbone tables.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch.
    n_features : int
        D; published 1024.
    dropout : float
        In encoder and head; published 0.5. The encoder's last drops whole feature maps.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 1024, dropout: float = 0.5) -> None:
        n_taps, n_late, n_maps = 64, 16, 16
        _require(n_times, n_taps - 1 + 2 * n_late)
        encoder = Layers(
            n_maps * ((n_times - n_taps + 1) // 2 - n_late + 1),
            nn.Unflatten(1, (1, n_chans)),
            nn.Conv2d(1, 8, (1, n_taps)),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, n_maps, (n_chans, 1)),
            nn.BatchNorm2d(n_maps),
            nn.ELU(),
            nn.AvgPool2d((1, 2)),
            nn.Dropout(dropout),
            nn.Flatten(2),
            nn.Conv1d(n_maps, n_maps, n_late),
            nn.BatchNorm1d(n_maps),
            nn.ELU(),
            nn.Dropout1d(dropout),
        )
        super().__init__(encoder, n_features, dropout)


def _require(n_times: int, least: int) -> None:
    if n_times < least:
        raise ValueError(f"n_times: got {n_times}; allowed: at least {least}, the reach of one output")
