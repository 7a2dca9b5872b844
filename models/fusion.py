"""Visual side of HVF, and the projector that leads from it into a diffusion model.

"Learning Brain Representation with Hierarchical Visual Embeddings", ICLR 2026. As in ssshamiii/Brain-HIVE@f06db69,
main/models_clip.py and main/models_adapter.py.
Shapes: B batch, D embedding, E encoders, w_e width of the features of one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as nnf
from torch import Tensor, nn


class FusionEncoder(nn.Module):
    """Features of several frozen image encoders, each through a linear layer, added up, refined by a residual block.

    ``z = sum over e of (W_e z_e + b_e)``, ``y = LN(z + W2 dropout(GELU(W1 z)))``. As in the brain's encoder, W1 and W2
    have no bias [inferred] and the layer norm an epsilon of 1e-6. Features come as their encoders give them, not
    normalised.

    Parameters
    ----------
    widths : mapping of str to int
        Width of the features of each encoder, by name; published: CLIP RN50 1024, CLIP ViT-B/32 512 and the SDXL VAE
        latent of a 128-pixel image, 16·16·4 = 1024.
    n_features : int
        D; published 1024.
    n_inner : int
        Between W1 and W2; published 1024 for retrieval, 4096 for the prior.
    dropout : float
        Published 0.1 in the brain's encoder; the same here [inferred].
    """

    def __init__(
        self, widths: Mapping[str, int], n_features: int = 1024, n_inner: int = 1024, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.align = nn.ModuleDict({name: nn.Linear(width, n_features) for name, width in widths.items()})
        self.inner = nn.Linear(n_features, n_inner, bias=False)
        self.outer = nn.Linear(n_inner, n_features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(n_features, eps=1e-6)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features of each encoder, (B, ...) with w_e numbers per row, by name -> (B, D), not normalised."""
        z = sum(layer(features[name].flatten(1)) for name, layer in self.align.items())
        y: Tensor = self.norm(z + self.outer(self.dropout(nnf.gelu(self.inner(z)))))
        return y


class PriorProjector(nn.Module):
    """phi_c of the Fusion Prior with its shortcut: ``z_c = z_f + W2 GELU(W1 z_f + b1) + b2``.

    The reference calls its layer a ResNet1D without a norm; that the activation is a GELU is inferred.

    Parameters
    ----------
    n_features : int
        D; published 1024.
    n_inner : int
        Published 4096.
    """

    def __init__(self, n_features: int = 1024, n_inner: int = 4096) -> None:
        super().__init__()
        self.inner = nn.Linear(n_features, n_inner)
        self.outer = nn.Linear(n_inner, n_features)

    def forward(self, fused: Tensor) -> Tensor:
        """Fused features (B, D) -> what the adapter of the diffusion model is given (B, D)."""
        y: Tensor = fused + self.outer(nnf.gelu(self.inner(fused)))
        return y
