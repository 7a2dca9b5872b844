"""Contrastive losses, in the conventions of the published systems.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

ScaleKind = Literal["exp", "softplus", "raw"]
Diagonal = Literal["softmax", "masked"]

_MAX_SCALE = 100.0  # CLIP's bound


class LogitScale(nn.Module):
    """What cosines are multiplied by, as published systems keep it: a number theta, by default ln(1 / 0.07) = 2.659.

    ``"exp"``: exp(theta) = 14.3 (CLIP, NICE, HVF). ``"softplus"``: 2.73 (UBP) and ``"raw"``: theta itself (ATM) go with
    queries that are not normalised: their norm, near 32 after a layer norm of 1024 features, does the rest.

    Parameters
    ----------
    kind : {"exp", "softplus", "raw"}
    theta : float
        Where it starts.
    learned : bool
        False: it stays (NICE leaves it out of the optimiser).
    """

    def __init__(self, kind: ScaleKind = "exp", theta: float = math.log(1 / 0.07), learned: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.theta = nn.Parameter(torch.tensor(theta), requires_grad=learned)

    def forward(self) -> Tensor:
        """Multiplier, shape (), at most 100."""
        scale: Tensor = self.theta
        if self.kind != "raw":
            scale = scale.exp() if self.kind == "exp" else nnf.softplus(scale)
        return scale.clamp(max=_MAX_SCALE)


def symmetric_info_nce(
    queries: Tensor,
    targets: Tensor,
    logit_scale: float | Tensor,
    *,
    item: Tensor | None = None,
    normalise_queries: bool = True,
) -> Tensor:
    """Contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020): mean of both directions' cross-entropies.

    Parameters
    ----------
    queries : Tensor of shape (B, D)
        EEG embeddings; normalised here unless ``normalise_queries`` is False.
    targets : Tensor of shape (B, D)
        Row i belongs to query i; normalised here.
    logit_scale : float or Tensor of shape ()
        What the cosines are multiplied by (not its logarithm).
    item : Tensor of shape (B,), integer, optional
        Which item each row shows. Rows of equal items are positives of each other with equal shares, as nothing tells
        their targets apart; without it every other row is a negative.
    normalise_queries : bool
        False as in ATM and UBP: the norm of a query is then its own temperature.

    Returns
    -------
    Tensor of shape ()
    """
    logits = _logits(queries, targets, logit_scale, normalise_queries)
    if item is not None:
        return _both_ways(logits, _positives(logits, item))
    own = torch.arange(len(logits), device=logits.device)
    return (nnf.cross_entropy(logits, own) + nnf.cross_entropy(logits.T, own)) / 2


def paired_logits(
    queries: Tensor, targets: Tensor, logit_scale: float | Tensor, *, normalise_queries: bool = True
) -> Tensor:
    """(B, D), (B, D) -> (B,): each query's logit with its own target, the diagonal of the contrastive loss."""
    queries = nnf.normalize(queries, dim=1) if normalise_queries else queries
    return logit_scale * (queries * nnf.normalize(targets, dim=1)).sum(1)


def softened_info_nce(
    queries: Tensor,
    targets: Tensor,
    frozen: Tensor,
    logit_scale: float | Tensor,
    *,
    alpha: float = 0.2,
    temperature: float = 0.1,
    item: Tensor | None = None,
) -> Tensor:
    """Softened contrastive loss of NeuroCLIP (Wang et al. 2025, arXiv 2511.09250).

    The paper names it; no formula is public and this one is inferred: a share ``alpha`` of each row's target goes to
    the other items, by how alike their frozen image features u are,
    Y = (1 - alpha) I + alpha softmax_j≠i(u_i·u_j / temperature), and both directions are trained towards Y, for
    likeness has none. ``alpha`` 0 is :func:`symmetric_info_nce`.

    Parameters
    ----------
    queries, targets : Tensors of shape (B, D)
        EEG and image embeddings; normalised here.
    frozen : Tensor of shape (B, D')
        Image features before any tuning; normalised here, no gradient.
    logit_scale : float or Tensor of shape ()
    alpha, temperature : float
    item : Tensor of shape (B,), integer, optional
        As in :func:`symmetric_info_nce`: equal items share the 1 - alpha.

    Returns
    -------
    Tensor of shape ()
    """
    logits = _logits(queries, targets, logit_scale, normalise_queries=True)
    item = torch.arange(len(logits), device=logits.device) if item is None else item
    positives = _positives(logits, item)
    with torch.no_grad():
        u = nnf.normalize(frozen, dim=1)
        others = positives == 0
        likeness = (inner_products(u, u) / temperature).masked_fill(~others, -torch.inf).softmax(1)
        # A row whose batch shows no other item has nothing to share with.
        likeness = torch.where(others.any(1, keepdim=True), likeness, positives)
    return _both_ways(logits, (1 - alpha) * positives + alpha * likeness)


def semantic_guidance(
    queries: Tensor,
    images: Tensor,
    texts: Tensor,
    logit_scale: float | Tensor,
    *,
    prior_scale: float = 1 / 0.07,
    diagonal: Diagonal = "softmax",
) -> Tensor:
    """Semantic guidance of NeuroAlign (SGA): KL(Q ‖ P), mean over rows.

    P = softmax(prior_scale v_i·t_j) says which captions an image is near to, Q = softmax(logit_scale e_i·v_j) which
    images an EEG is near to. P gives no gradient: it is the teacher. Equations 4 and 5 of the paper set both diagonals
    to 1, whereby rows sum to more than 1; its Algorithm 1 has plain rows. ``"softmax"`` is the algorithm; ``"masked"``
    drops the diagonal and renormalises, which compares what the equations leave.

    Parameters
    ----------
    queries, images, texts : Tensors of shape (B, D)
        Normalised here.
    logit_scale : float or Tensor of shape ()
    prior_scale : float
    diagonal : {"softmax", "masked"}

    Returns
    -------
    Tensor of shape ()
    """
    student = _logits(queries, images, logit_scale, normalise_queries=True)
    teacher = _logits(images, texts, prior_scale, normalise_queries=True).detach()
    if diagonal == "masked":
        student, teacher = _off_diagonal(student), _off_diagonal(teacher)
    return nnf.kl_div(teacher.log_softmax(1), student.log_softmax(1), reduction="batchmean", log_target=True)


def _logits(queries: Tensor, targets: Tensor, logit_scale: float | Tensor, normalise_queries: bool) -> Tensor:
    queries = nnf.normalize(queries, dim=1) if normalise_queries else queries
    return inner_products(logit_scale * queries, nnf.normalize(targets, dim=1))


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """(A, D), (B, D) -> (A, B), with float32's digits in autocast too: from 8 to 16 bfloat16 has steps of 1/16."""
    with torch.autocast(a.device.type, enabled=False):
        return a.to(torch.promote_types(a.dtype, torch.float32)) @ b.to(torch.promote_types(b.dtype, torch.float32)).T


def _positives(logits: Tensor, item: Tensor) -> Tensor:
    """(B, B), rows sum to 1: equal shares to the rows of the same item."""
    same = (item[:, None] == item).to(logits.dtype)
    return same / same.sum(1, keepdim=True)


def _both_ways(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of both directions' cross-entropies to distributions (B, B) over the rows, respectively columns."""
    own = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    # nll_loss of one column: the mean is taken as cross_entropy takes it, and one-hot targets give its very bits.
    rows, columns = (
        nnf.nll_loss((targets * each.log_softmax(1)).sum(1, keepdim=True), own) for each in (logits, logits.T)
    )
    return (rows + columns) / 2


def _off_diagonal(matrix: Tensor) -> Tensor:
    """(B, B) -> (B, B - 1)."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
