"""ChannelNet of Thought2Text (arXiv 2410.07507), at abhijitmishra/Thought2Text@475eb89, folder channelnet.

It is EEG-ChannelNet of Palazzo et al. 2020, doi:10.1109/TPAMI.2020.2995909, with a projector and a classifier.
Shapes: B batch, C channels, T samples, M maps, D embedding.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

_DROPOUT = 0.2
_DILATIONS = (1, 2, 4, 8)
_SMALLEST = 3  # rows and columns that the last convolution needs


class _Layer(nn.Sequential):
    """Batch norm, ReLU, convolution, dropout of whole maps. Padding keeps ``ceil(n / stride)`` of n along each axis."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        dilation: int = 1,
        pad: bool = True,
    ) -> None:
        reach = [(size - 1) * (dilation if size > 1 else 1) for size in kernel]
        # At the published sizes the right and lower half of an uneven padding is never read.
        before = [n // 2 if pad else 0 for n in reach]
        after = [n - n // 2 if pad else 0 for n in reach]
        super().__init__(
            nn.BatchNorm2d(n_in),
            nn.ReLU(),
            nn.ZeroPad2d((before[1], after[1], before[0], after[0])),
            nn.Conv2d(n_in, n_out, kernel, stride, dilation=(1, dilation)),
            nn.Dropout2d(_DROPOUT),
        )


class _Parallel(nn.Module):
    """Layers side by side, their maps one after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=1)


class _Residual(nn.Module):
    """3×3, norm, ReLU, 3×3, norm, the input added, ReLU; convolutions without bias, as in EEG-ChannelNet."""

    def __init__(self, n_maps: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(n_maps, n_maps, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_maps),
            nn.ReLU(),
            nn.Conv2d(n_maps, n_maps, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_maps),
        )

    def forward(self, x: Tensor) -> Tensor:
        return nnf.relu(x + self.branch(x))


class ChannelNet(nn.Module):
    """Parallel dilated temporal layers, parallel spatial layers, residual blocks that halve both, a projector.

    Temporal: 4 layers of 10 maps with the same taps, dilated by 1, 2, 4 and 8, every second sample. Spatial: 4 layers
    of 50 maps over all, 1/2, 1/3 and 1/4 of the channels, every second row. Then up to 4 residual blocks, each with a
    3×3 layer of stride 2, and a 3×3 layer to 50 maps. Published, of 128 × 440: 40×128×220, 200×64×220, 200×3×12,
    50×1×10.

    Other shapes keep the proportions [inf]: the taps are the odd number nearest to 33/440 of ``n_times``, so that each
    dilation sees the same share of the epoch; the spatial kernels are shares of ``n_chans`` anyway; and there are as
    many residual blocks, at most 4, as leave the last layer its 3 rows and columns. 63 × 250 has 19 taps and 3 blocks.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch, at least 5 × 5; published 128 × 440 (0.02 to 0.46 s at 1 kHz).
    n_features : int
        D; published 512 (CLIP ViT-B/32).
    n_classes : int
        Of ``classifier``, which maps embeddings (B, D) to logits (B, n_classes); published 40.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 512, n_classes: int = 40) -> None:
        super().__init__()
        if min(n_chans, n_times) < 2 * _SMALLEST - 1:
            least = 2 * _SMALLEST - 1
            raise ValueError(f"n_chans × n_times: got {n_chans} × {n_times}; allowed: at least {least} × {least}")
        n_taps = round((33 / 440 * n_times - 1) / 2) * 2 + 1
        temporal = _Parallel(*(_Layer(1, 10, (1, n_taps), (1, 2), dilation) for dilation in _DILATIONS))
        spatial = _Parallel(*(_Layer(40, 50, (n_chans // share, 1), (2, 1)) for share in (1, 2, 3, 4)))
        rows, columns = (n_chans + 1) // 2, (n_times + 1) // 2
        blocks: list[nn.Module] = []
        while len(blocks) < 8 and min(rows, columns) > 2 * _SMALLEST:
            blocks += [_Residual(200), _Layer(200, 200, (3, 3), (2, 2), pad=False)]
            rows, columns = (rows - 1) // 2, (columns - 1) // 2
        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, n_chans)),
            temporal,
            spatial,
            *blocks,
            _Layer(200, 50, (3, 3), pad=False),
            nn.Flatten(),
        )
        self.projector = nn.Linear(50 * (rows - 2) * (columns - 2), n_features)
        self.classifier = nn.Linear(n_features, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, D), not normalised."""
        y: Tensor = self.projector(self.encoder(x))
        return y

    def folded(self) -> nn.Module:
        """Copy what makes the embedding for inference; it is made of plain layers."""
        return nn.Sequential(copy.deepcopy(self.encoder), copy.deepcopy(self.projector)).eval()
