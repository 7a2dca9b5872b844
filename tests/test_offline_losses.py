"""Losses against their formulas, spelt out: value and gradient."""

from __future__ import annotations

import math

import torch

from offline.losses import symmetric_info_nce


def naive(queries: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
    n = len(queries)
    cosine = [[(q @ t) / (q.norm() * t.norm()) for t in targets] for q in queries]
    total = torch.zeros((), dtype=queries.dtype)
    for i in range(n):
        row = sum(torch.exp(scale * cosine[i][j]) for j in range(n))
        column = sum(torch.exp(scale * cosine[j][i]) for j in range(n))
        total = (
            total
            - torch.log(torch.exp(scale * cosine[i][i]) / row)
            - torch.log(torch.exp(scale * cosine[i][i]) / column)
        )
    return total / (2 * n)


def test_symmetric_info_nce() -> None:
    torch.manual_seed(0)
    targets = torch.randn(5, 3, dtype=torch.float64)
    ours, theirs = (
        torch.randn(5, 3, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_() for _ in range(2)
    )
    loss, expected = symmetric_info_nce(ours, targets, 14.3), naive(theirs, targets, 14.3)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_symmetric_info_nce_of_nothing_learnt_is_the_log_of_the_batch() -> None:
    same = torch.ones(7, 4)
    assert math.isclose(float(symmetric_info_nce(same, same, 5.0)), math.log(7), rel_tol=1e-6)
