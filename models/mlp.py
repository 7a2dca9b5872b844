"""Encoders without convolutions: the flat epoch through one hidden layer.

On 17 posterior channels they beat TSConv within a subject; across subjects TSConv on all channels is ahead (UBP).
Shapes: B batch, C channels, T samples, D embedding.
"""

from __future__ import annotations

import copy

import torch.nn.functional as nnf
from torch import Tensor, nn

from .blocks import ResProj


class EEGProject(nn.Module):
    """EEGProjectLayer of UBP, at HaitaoWuTJU/Uncertainty-aware-Blur-Prior@89d8b83: the flat epoch through ResProj.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch; published 17 × 250.
    n_features : int
        D; published 1024 (CLIP RN50).
    dropout : float
        Published 0.3.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 1024, dropout: float = 0.3) -> None:
        super().__init__()
        self.head = ResProj(n_chans * n_times, n_features, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, D), not normalised."""
        y: Tensor = self.head(x.flatten(1))
        return y

    def folded(self) -> nn.Module:
        """Copy it for inference; it is made of plain layers."""
        return copy.deepcopy(self).eval()


class BrainMLP(nn.Module):
    """BrainMLP of HVF, at ssshamiii/Brain-HIVE@f06db69: ``y = LN(h + W2 dropout(GELU(W1 h)))``, ``h = W x + b``.

    W1 and W2 have no bias, the layer norm an epsilon of 1e-6.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch; published 17 × 250.
    n_features : int
        D, inner width too; published 1024.
    dropout : float
        Published 0.1.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 1024, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(n_chans * n_times, n_features)
        self.inner = nn.Linear(n_features, n_features, bias=False)
        self.outer = nn.Linear(n_features, n_features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(n_features, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, D), not normalised."""
        hidden = self.first(x.flatten(1))
        y: Tensor = self.norm(hidden + self.outer(self.dropout(nnf.gelu(self.inner(hidden)))))
        return y

    def folded(self) -> nn.Module:
        """Copy it for inference; it is made of plain layers."""
        return copy.deepcopy(self).eval()
