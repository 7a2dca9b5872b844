"""Losses between EEG and target embeddings.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor


def symmetric_info_nce(queries: Tensor, targets: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020): mean of both directions' cross-entropies.

    Parameters
    ----------
    queries : Tensor of shape (B, D)
        EEG embeddings; normalised here.
    targets : Tensor of shape (B, D)
        Row i belongs to query i, every other row is a negative; normalised here.
    logit_scale : float or Tensor
        What the cosines are multiplied by (not its logarithm).

    Returns
    -------
    Tensor of shape ()
    """
    logits = logit_scale * nnf.normalize(queries, dim=1) @ nnf.normalize(targets, dim=1).T
    own = torch.arange(len(logits), device=logits.device)
    return (nnf.cross_entropy(logits, own) + nnf.cross_entropy(logits.T, own)) / 2
