"""Losses against their formulas, spelt out entry by entry: value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
import two_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offline.losses import (
    BLUR_LEVELS,
    BlurChoice,
    DynamicLossAdjustment,
    LogitScale,
    atm_reconstruction,
    atm_retrieval,
    gathered,
    orthogonality,
    paired_logits,
    representational_similarity,
    semantic_guidance,
    softened_info_nce,
    symmetric_info_nce,
    thought2text,
)
from streamdec.errors import ConfigError

N, D = 5, 3


def rows(seed: int, n: int = N, d: int = D) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def unit(x: Tensor) -> list[Tensor]:
    return [row / row.square().sum().sqrt() for row in x]


def compare(ours: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Value and gradient in every input; an input to which neither is sensitive counts as equal."""
    loss, expected = ours(*inputs), formula(*inputs)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def contrastive(logits: list[list[Tensor]], target: list[list[float]]) -> Tensor:
    """Mean over rows and over columns of minus the expected log-probability, target rows summing to 1."""
    n, total = len(logits), torch.zeros((), dtype=torch.float64)
    for i in range(n):
        row = sum(torch.exp(logits[i][j]) for j in range(n))
        column = sum(torch.exp(logits[j][i]) for j in range(n))
        for j in range(n):
            total = total - target[i][j] * torch.log(torch.exp(logits[i][j]) / row)
            total = total - target[i][j] * torch.log(torch.exp(logits[j][i]) / column)
    return total / (2 * n)


def naive(queries: Tensor, targets: Tensor, scale: float | Tensor, raw: bool = False, item: object = None) -> Tensor:
    item = range(len(queries)) if item is None else item
    eeg = list(queries) if raw else unit(queries)
    logits = [[scale * (q @ t) for t in unit(targets)] for q in eeg]
    target = [[(a == b) / sum(a == c for c in item) for b in item] for a in item]
    return contrastive(logits, target)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("item", [None, (0, 1, 0, 2, 0), (7, 7, 7, 7, 7)])
def test_symmetric_info_nce(raw: bool, item: tuple[int, ...] | None) -> None:
    ids = None if item is None else torch.tensor(item)
    compare(
        lambda q, t, s: symmetric_info_nce(q, t, s, item=ids, normalise_queries=not raw),
        lambda q, t, s: naive(q, t, s, raw, item),
        rows(0),
        rows(1),
        torch.tensor(14.3, dtype=torch.float64, requires_grad=True),
    )


@given(st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_different_items_are_the_loss_without_items_to_the_bit(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for item in (None, torch.randperm(n, generator=torch.Generator().manual_seed(seed))):
        queries = torch.randn(n, 8, generator=generator.manual_seed(seed)).requires_grad_()
        targets = torch.randn(n, 8, generator=generator).requires_grad_()
        loss = symmetric_info_nce(queries, targets, 14.3, item=item)
        loss.backward()
        found.append((loss, queries.grad, targets.grad))
    for without, with_items in zip(*found, strict=True):
        assert torch.equal(without, with_items)


def test_symmetric_info_nce_of_nothing_learnt_is_the_log_of_the_batch() -> None:
    same = torch.ones(7, 4)
    assert math.isclose(float(symmetric_info_nce(same, same, 5.0)), math.log(7), rel_tol=1e-6)


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_order_of_the_batch_does_not_matter(order: list[int]) -> None:
    queries, targets, item = rows(0, 6).detach(), rows(1, 6).detach(), torch.tensor([0, 1, 1, 2, 3, 3])
    for loss in (symmetric_info_nce, lambda q, t, s, item: softened_info_nce(q, t, t, s, item=item)):
        torch.testing.assert_close(
            loss(queries[order], targets[order], 9.0, item=item[order]), loss(queries, targets, 9.0, item=item)
        )


@pytest.mark.parametrize(
    ("kind", "multiplier"), [("exp", 1 / 0.07), ("softplus", math.log(1 + 1 / 0.07)), ("raw", math.log(1 / 0.07))]
)
def test_conventions_of_the_scale(kind: str, multiplier: float) -> None:
    scale = LogitScale(kind)
    assert math.isclose(float(scale().detach()), multiplier, rel_tol=1e-6)
    assert scale.theta.requires_grad
    assert float(LogitScale(kind, theta=1000.0)().detach()) == 100
    assert not LogitScale(kind, learned=False).theta.requires_grad


def test_paired_logits_are_the_diagonal() -> None:
    queries, targets = rows(0), rows(1)
    compare(
        lambda q, t: paired_logits(q, t, 2.7, normalise_queries=False),
        lambda q, t: torch.stack([2.7 * (a @ b) for a, b in zip(q, unit(t), strict=True)]),
        *(tensor.detach()[:1].requires_grad_() for tensor in (queries, targets)),
    )
    torch.testing.assert_close(
        paired_logits(queries, targets, 3.0),
        torch.stack([3.0 * (a @ b) for a, b in zip(unit(queries), unit(targets), strict=True)]),
    )


def soft_targets(frozen: Tensor, alpha: float, temperature: float, item: tuple[int, ...]) -> list[list[float]]:
    u, n = [row.detach().numpy() for row in unit(frozen)], len(frozen)
    target = [[0.0] * n for _ in range(n)]
    for i in range(n):
        same = [j for j in range(n) if item[j] == item[i]]
        others = [j for j in range(n) if item[j] != item[i]]
        for j in same:
            target[i][j] += (1 - alpha if others else 1.0) / len(same)
        weights = np.exp([u[i] @ u[j] / temperature for j in others])
        for j, weight in zip(others, weights, strict=True):
            target[i][j] += alpha * weight / weights.sum()
    return target


@pytest.mark.parametrize("item", [None, (0, 1, 0, 2, 3), (4, 4, 4, 4, 4)])
def test_softened_info_nce(item: tuple[int, ...] | None) -> None:
    ids = None if item is None else torch.tensor(item)
    frozen = rows(2, d=6)
    compare(
        lambda q, t, u: softened_info_nce(q, t, u, 5.0, alpha=0.3, temperature=0.2, item=ids),
        lambda q, t, u: contrastive(
            [[5.0 * (a @ b) for b in unit(t)] for a in unit(q)], soft_targets(u, 0.3, 0.2, item or (0, 1, 2, 3, 4))
        ),
        rows(0),
        rows(1),
        frozen,
    )


def test_softened_info_nce_of_no_softness_is_the_plain_one() -> None:
    queries, targets, frozen = rows(0).detach(), rows(1).detach(), rows(2).detach()
    plain = symmetric_info_nce(queries, targets, 7.0)
    torch.testing.assert_close(softened_info_nce(queries, targets, frozen, 7.0, alpha=0.0), plain)
    assert not torch.isclose(softened_info_nce(queries, targets, frozen, 7.0), plain)
    alone = softened_info_nce(queries[:1], targets[:1], frozen[:1], 7.0)
    assert float(alone) == 0


@pytest.mark.parametrize("diagonal", ["softmax", "masked"])
def test_semantic_guidance(diagonal: str) -> None:
    def formula(e: Tensor, v: Tensor, t: Tensor) -> Tensor:
        e, v, t, v_taught = unit(e), unit(v), unit(t.detach()), unit(v.detach())
        total = torch.zeros((), dtype=torch.float64)
        for i in range(N):
            columns = [j for j in range(N) if diagonal == "softmax" or j != i]
            q = [torch.exp(3.0 * (e[i] @ v[j])) for j in columns]
            p = [torch.exp(6.0 * (v_taught[i] @ t[j])) for j in columns]
            for a, b in zip(q, p, strict=True):
                total = total + a / sum(q) * torch.log((a / sum(q)) / (b / sum(p)))
        return total / N

    compare(
        lambda e, v, t: semantic_guidance(e, v, t, 3.0, prior_scale=6.0, diagonal=diagonal),
        formula,
        rows(0),
        rows(1),
        rows(2),
    )


def test_semantic_guidance_is_zero_where_eeg_says_what_captions_say() -> None:
    texts, images = rows(0), rows(1)
    # e_i·v_j = v_i·t_j for all i, j where e = v = t.
    assert abs(float(semantic_guidance(images, images, images, 5.0, prior_scale=5.0).detach())) < 1e-12
    loss = semantic_guidance(rows(2), images, texts, 5.0)
    assert float(loss.detach()) > 0
    assert torch.autograd.grad(loss, texts, allow_unused=True) == (None,)


def test_atm() -> None:
    compare(
        lambda q, v, t, s: atm_retrieval(q, v, t, s),
        lambda q, v, t, s: 0.99 * naive(q, v, s, raw=True) + 0.01 * naive(q, t, s, raw=True),
        rows(0),
        rows(1),
        rows(2),
        torch.tensor(2.659, dtype=torch.float64, requires_grad=True),
    )
    compare(
        lambda q, v: atm_reconstruction(q, v, 2.659),
        lambda q, v: (
            10 * (0.9 * sum((q[i, k] - v[i, k]) ** 2 for i in range(N) for k in range(D)) / (N * D))
            + naive(q, v, 2.659, raw=True)
        ),
        rows(0),
        rows(1),
    )


def rsm_difference(h: Tensor, z: Tensor) -> Tensor:
    h, z, n = unit(h), unit(z), len(h)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum((h[i] @ h[j] - z[i] @ z[j]) ** 2 for i, j in pairs) / len(pairs)


def frobenius(high: Tensor, low: Tensor) -> Tensor:
    return torch.sqrt(sum((a @ b) ** 2 for a in high for b in low))


def test_terms_of_clip_mused() -> None:
    compare(representational_similarity, rsm_difference, rows(1), rows(3, d=7))
    compare(orthogonality, frobenius, rows(1), rows(2))


def test_terms_of_clip_mused_of_perfect_tokens() -> None:
    tokens = rows(0)
    assert float(representational_similarity(tokens, 3 * tokens).detach()) < 1e-30
    assert float(representational_similarity(tokens[:1], rows(1)[:1]).detach()) == 0
    across = torch.eye(4, dtype=torch.float64)
    high, low = across[:2].requires_grad_(), across[2:].clone().requires_grad_()
    loss = orthogonality(high, low)
    assert float(loss.detach()) == 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, [high, low]))


def test_thought2text() -> None:
    label = torch.tensor([0, 3, 1, 1, 2])
    compare(
        lambda e, z, x: thought2text(e, z, x, label),
        lambda e, z, x: (
            ((e - z) ** 2).sum() / (N * D)
            - sum(torch.log(torch.exp(x[i, label[i]]) / torch.exp(x[i]).sum()) for i in range(N)) / N
        ),
        rows(0),
        rows(1),
        rows(2, d=4),
    )


def test_dynamic_loss_adjustment() -> None:
    for mode in ("paper", "normalised"):
        first, second = rows(0, 2, 2), rows(1, 2, 2)
        adjust, before = DynamicLossAdjustment(2, mode, temperature=0.8), None
        for factor in (0.2, 0.5, 0.1):
            losses = [factor * (first**2).sum(), (first * second).sum()]
            total = adjust(losses, [[first], [first, second]])
            a, b = first.detach().numpy(), second.detach().numpy()
            g = np.sqrt([((2 * factor * a) ** 2).sum(), (a**2).sum() + (b**2).sum()])
            r = np.zeros(2) if before is None else np.abs(g - before) / (before + 1e-8)
            score = np.exp((g / (g.sum() if mode == "normalised" else 1)) * (1 + r) / 0.8)
            weights = score / score.sum()
            np.testing.assert_allclose(adjust.weights, weights, rtol=1e-5)
            np.testing.assert_allclose(
                float(total.detach()), weights @ [float(loss.detach()) for loss in losses], rtol=1e-6
            )
            # The weights are constants to the gradient.
            (grad,) = torch.autograd.grad(total, [second])
            np.testing.assert_allclose(grad, weights[1] * a, rtol=1e-6)
            before = g
        assert len(adjust.history) == 3


def test_dynamic_loss_adjustment_goes_on_from_its_state() -> None:
    x = rows(0)
    adjust, other = DynamicLossAdjustment(2, temperature=2.0), DynamicLossAdjustment(2, temperature=2.0)
    adjust([x.sum(), (x**2).sum()], [[x], [x]])
    other.load_state_dict(adjust.state_dict())
    for each in (adjust, other):
        each([x.sum(), (x**3).sum()], [[x], [x]])
    assert torch.equal(adjust.weights, other.weights)


def test_fixed_weights_are_equal_and_cost_no_gradient() -> None:
    x = rows(0)
    value = DynamicLossAdjustment(3, "fixed")([x.sum(), x.sum(), x.prod()], [[], [], []])
    torch.testing.assert_close(value, (2 * x.sum() + x.prod()) / 3, rtol=1e-6, atol=0)
    with pytest.raises(ConfigError, match="temperature"):
        DynamicLossAdjustment(3, temperature=0)


def test_blur_follows_the_uncertainty() -> None:
    choice, generator = BlurChoice(40), np.random.default_rng(0)
    similarity: dict[int, float] = {}
    level = [1] * 40
    assert choice.level.tolist() == level
    for _ in range(4):
        order = generator.permutation(40)
        for batch in (order[:15], order[15:33]):  # seven samples of each pass are never seen
            logits = generator.normal(size=len(batch)) ** 3
            choice.update(torch.from_numpy(batch), torch.from_numpy(logits))
            for i, logit in zip(batch, logits, strict=True):
                similarity[i] = 0.3 * logit + 0.7 * similarity[i] if i in similarity else logit
            of_batch = np.array([similarity[i] for i in batch])
            mean, reach = of_batch.mean(), 1.96 * of_batch.std()
            for i, logit in zip(batch, logits, strict=True):
                level[i] = BLUR_LEVELS.index(
                    "low" if logit > mean + reach else "high" if logit < mean - reach else "medium"
                )
    assert choice.level.tolist() == level
    assert set(level) == {0, 1, 2}
    again = BlurChoice(40)
    again.load_state_dict(choice.state_dict())
    assert again.level.tolist() == level


def test_gradients_by_finite_differences() -> None:
    ids = torch.tensor([0, 1, 0, 2, 3])
    a, b, c = rows(0), rows(1), rows(2)
    for loss in (
        lambda q, t, u: symmetric_info_nce(q, t, 4.0, item=ids),
        lambda q, t, u: softened_info_nce(q, t, rows(3).detach(), 4.0, item=ids) + 0 * u.sum(),
        lambda q, t, u: representational_similarity(q, t) + orthogonality(q, u),
    ):
        assert torch.autograd.gradcheck(loss, (a, b, c))


def test_one_process_has_nothing_to_gather() -> None:
    x = torch.ones(2)
    assert gathered(x) is x


def test_two_processes_are_one_with_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(two_processes.work, (tmp_path,), two_processes.N_PROCESSES)
    aligner, *data = two_processes.made_up()
    alone = two_processes.step(aligner, aligner, *data)
    for rank in range(two_processes.N_PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, expected in alone.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_autocast_costs_no_digits() -> None:
    a, b, c = (rows(i, 30, 8).detach().float() for i in range(3))
    for loss in (
        lambda: symmetric_info_nce(a, b, 100.0),
        lambda: softened_info_nce(a, b, c, 100.0),
        lambda: semantic_guidance(a, b, c, 100.0),
        lambda: representational_similarity(a, b) + orthogonality(b, c),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            cast = loss()
        torch.testing.assert_close(cast, loss())


def test_inputs_are_not_changed() -> None:
    inputs = [rows(i).detach() for i in range(3)]
    before = [tensor.clone() for tensor in inputs]
    symmetric_info_nce(*inputs[:2], 3.0)
    softened_info_nce(*inputs, 3.0)
    semantic_guidance(*inputs, 3.0, diagonal="masked")
    representational_similarity(*inputs[:2])
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
