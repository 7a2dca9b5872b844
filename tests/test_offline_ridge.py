"""Ridge against the normal equations; its cross-validation against refitting without each group."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from offline.checkpoint import RunFolder
from offline.data.store import Item
from offline.methods.base import Training
from offline.methods.ridge import RidgeSettings, decompose, fit, leave_out_errors, load, solve
from offline.progress import silent
from streamdec.errors import ConfigError


def naive(x: np.ndarray, y: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge with an intercept that is not penalised."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    w = np.linalg.solve(a.T @ a + alpha * np.eye(x.shape[1]), a.T @ b)
    return w, y.mean(axis=0) - x.mean(axis=0) @ w


@pytest.mark.parametrize("shape", [(30, 8), (12, 40)])
def test_solution_and_leave_out_errors(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + 2).astype(np.float32)
    y = rng.standard_normal((shape[0], 3))
    group = rng.integers(0, 4, shape[0])
    alphas = np.array([0.1, 3.0, 50.0])
    parts = decompose(x)
    for i, alpha in enumerate(alphas):
        w, b = naive(x, y, alpha)
        got = solve(parts, y, np.full(3, alpha))
        np.testing.assert_allclose(got[0], w, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(got[1], b, rtol=1e-6, atol=1e-9)
        expected = np.zeros(3)
        for g in np.unique(group):
            w, b = naive(x[group != g], y[group != g], alpha)
            expected += np.sum((y[group == g] - x[group == g] @ w - b) ** 2, axis=0)
        np.testing.assert_allclose(leave_out_errors(parts, y, group, alphas)[i], expected, rtol=1e-6)
    mixed, _ = solve(parts, y, alphas)
    for feature, alpha in enumerate(alphas):
        np.testing.assert_allclose(mixed[:, feature], naive(x, y, alpha)[0][:, feature], rtol=1e-6, atol=1e-9)


def training(kind: str, n: int = 60) -> Training:
    rng = np.random.default_rng(1)
    targets = np.eye(2)[rng.integers(0, 2, n)] if kind == "class" else rng.standard_normal((n, 4)) * 3 + 7
    epochs = np.einsum("nd,dct->nct", targets, rng.standard_normal((targets.shape[1], 3, 5))) + rng.standard_normal(
        (n, 3, 5)
    )
    held = np.arange(n) >= n - 10
    return Training(
        epochs=epochs.astype(np.float32),
        item=np.arange(n),
        subject=np.zeros(n, np.int64),
        targets={"image": targets.astype(np.float32)},
        held=held,
        group=np.arange(n) // 6,
        items=tuple(Item(str(i), str(i), str(i)) for i in range(n)),
        subjects=("nobody",),
        kind=kind,
    )


def test_says_that_it_is_not_on_the_device(tmp_path) -> None:
    lines: list[str] = []
    fit(training("stimulus"), RidgeSettings(), 0, "cuda", RunFolder(tmp_path), lambda line, *_: lines.append(line))
    assert lines[0] == "ridge: on the processor, not on cuda"


@pytest.mark.parametrize("kind", ["stimulus", "class"])
@pytest.mark.parametrize("per_feature", [True, False])
def test_encoder(tmp_path, kind: str, per_feature: bool) -> None:
    data = training(kind)
    fitted = fit(data, RidgeSettings(per_feature=per_feature), 0, "cpu", RunFolder(tmp_path), silent)
    queries, candidates = fitted.encoder(data.epochs), fitted.encoder.candidates(data.targets)
    correlation = np.corrcoef(queries.ravel(), candidates.ravel())[0, 1]
    assert correlation > 0.8
    if kind == "class":
        assert np.array_equal(candidates, data.targets["image"])
    else:
        np.testing.assert_allclose(candidates.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(candidates.std(axis=0), 1, rtol=1e-5)

    changed = training(kind)
    changed.epochs[data.held] += 5
    changed.targets["image"][data.held] *= -1
    again = fit(changed, RidgeSettings(per_feature=per_feature), 0, "cpu", RunFolder(tmp_path), silent)
    assert np.array_equal(again.held_out.weights, fitted.held_out.weights), "it saw what was held out"
    assert not np.array_equal(again.encoder.weights, fitted.encoder.weights)

    session = onnxruntime.InferenceSession(fitted.encoder.to_onnx(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["embeddings"], {"epochs": data.epochs})[0], queries, rtol=1e-5, atol=1e-5)
    fitted.encoder.save(tmp_path / "encoder.safetensors")
    assert np.array_equal(load(tmp_path / "encoder.safetensors")(data.epochs), queries)


@pytest.mark.parametrize("per_feature", [True, False])
def test_explained_is_what_the_chosen_penalty_explains(tmp_path, per_feature: bool) -> None:
    """Features of one kind ask for another penalty than those of the other."""
    data = training("stimulus")
    data.targets["image"][:, 2:] = np.random.default_rng(5).standard_normal((60, 2))
    fitted = fit(data, RidgeSettings(per_feature=per_feature), 0, "cpu", RunFolder(tmp_path), silent)
    x, y = data.epochs[:50].reshape(50, -1).astype(float), data.targets["image"][:50].astype(float)
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    errors = []
    for alpha in RidgeSettings().alphas:
        error = np.zeros(4)
        for g in np.unique(data.group[:50]):
            own = data.group[:50] == g
            w, b = naive(x[~own], y[~own], alpha * float(np.sum((x - x.mean(axis=0)) ** 2)) / 50)
            error += np.sum((y[own] - x[own] @ w - b) ** 2, axis=0)
        errors.append(error)
    best = np.argmin(errors, axis=0)
    assert len(set(best)) > 1
    kept = np.min(errors, axis=0).sum() if per_feature else np.sum(errors, axis=1).min()
    assert fitted.notes["explained"] == pytest.approx(1 - kept / np.sum(y**2), rel=1e-4)


@pytest.mark.parametrize("alphas", [(), (0.0,), (float("nan"),)])
def test_wrong_penalties_are_refused(alphas: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="ridge alphas"):
        RidgeSettings(alphas=alphas)
