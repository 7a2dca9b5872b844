"""Losses of more than one kind of term, ATM's and Thought2Text's, and the terms of CLIP-MUSED's own.

Shapes: B batch, D embedding, L labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .contrastive import inner_products, symmetric_info_nce


def atm_retrieval(
    queries: Tensor,
    images: Tensor,
    texts: Tensor,
    logit_scale: float | Tensor,
    *,
    image_share: float = 0.99,
    item: Tensor | None = None,
) -> Tensor:
    """Retrieval loss of ATM (Li et al. 2024, arXiv 2403.07721): 0.99 of the contrastive loss to images, 0.01 to texts.

    (B, D) each; queries are not normalised, ``logit_scale`` is theta itself. Equal items as in
    :func:`symmetric_info_nce`.
    """
    to_images = symmetric_info_nce(queries, images, logit_scale, item=item, normalise_queries=False)
    to_texts = symmetric_info_nce(queries, texts, logit_scale, item=item, normalise_queries=False)
    return image_share * to_images + (1 - image_share) * to_texts


def atm_reconstruction(
    queries: Tensor, images: Tensor, logit_scale: float | Tensor, *, mse_share: float = 0.9, item: Tensor | None = None
) -> Tensor:
    """Loss of ATM for generation: 10 (0.9 MSE + 0.1 contrastive loss).

    (B, D) both. The MSE takes ``images`` as they are, so their scale is what a generator will be given; the contrastive
    part as in :func:`atm_retrieval`.
    """
    contrast = symmetric_info_nce(queries, images, logit_scale, item=item, normalise_queries=False)
    return 10 * (mse_share * nnf.mse_loss(queries, images) + (1 - mse_share) * contrast)


def representational_similarity(tokens: Tensor, targets: Tensor) -> Tensor:
    """RSA loss of CLIP-MUSED (Zhou et al. 2024, arXiv 2402.08994).

    Mean squared difference of the two matrices of cosines within the batch, off the diagonal, where both are 1.
    (B, D), (B, D') -> (); widths may differ; 0 for a batch of one.
    """
    difference = _cosines(tokens) - _cosines(targets)
    n = len(difference)
    return difference.fill_diagonal_(0).square().sum() / max(n * (n - 1), 1)


def orthogonality(high: Tensor, low: Tensor) -> Tensor:
    """Frobenius norm of ``high @ low.T`` (CLIP-MUSED): both tokens of an epoch should say different things. -> ()."""
    norm: Tensor = torch.linalg.matrix_norm(inner_products(high, low))
    return norm


def thought2text(embeddings: Tensor, targets: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Loss of Thought2Text, stage 1 (Mishra et al. 2024, arXiv 2410.07507): MSE to CLIP plus object cross-entropy, 1:1.

    ``embeddings``, ``targets`` (B, D); ``logits`` (B, L); ``label`` (B,) integer, -1 where there is none: such rows
    count in the first term only.
    """
    error, labelled = nnf.mse_loss(embeddings, targets), label >= 0
    return error + nnf.cross_entropy(logits[labelled], label[labelled]) if labelled.any() else error


def _cosines(rows: Tensor) -> Tensor:
    rows = nnf.normalize(rows, dim=1)
    return inner_products(rows, rows)
