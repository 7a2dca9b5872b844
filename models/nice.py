"""NICE: Song et al., "Decoding Natural Images from EEG for Object Recognition", ICLR 2024, arXiv 2308.13234."""

from __future__ import annotations

from torch import nn

from .blocks import Projected, TSConv


class Nice(Projected):
    """TSConv and ResProj: an epoch to a query embedding in the space of the image features.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch; published 63 × 250 (0 to 1 s at 250 Hz, whitened).
    n_features : int
        Width of the embedding; published 768 (CLIP ViT-L/14).
    dropout : float
        In both parts; published 0.5.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int = 768, dropout: float = 0.5) -> None:
        super().__init__(TSConv(n_chans, n_times, dropout=dropout), n_features, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
