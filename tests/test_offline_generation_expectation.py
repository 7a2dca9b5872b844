"""What the embedding of an epoch lets expect, against the posterior mean where that has a formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offline.generation.expectation import ExpectationSettings, fit, ridge
from offline.generation.loop import Steps
from streamdec.errors import ConfigError

QUICK = ExpectationSettings(n_inner=8, steps=Steps(n_steps=3, batch_size=16))


def test_regression_is_the_wiener_filter(rng: np.random.Generator) -> None:
    """Gaussian images seen through a mixture, with noise: the best guess is cov(image, seen) / cov(seen)."""
    n, noise = 160_000, 1.5
    mixture, spread = rng.standard_normal((3, 3)), np.diag([9.0, 1.0, 0.25])
    images = rng.standard_normal((n, 3)) @ np.sqrt(spread) + 5
    seen = (images - 5) @ mixture + noise * rng.standard_normal((n, 3)) - 1
    layer, explained = ridge(seen.astype(np.float32), images.astype(np.float32), np.arange(n) % 4 == 0)
    best = np.linalg.solve(mixture.T @ spread @ mixture + noise**2 * np.eye(3), mixture.T @ spread)
    np.testing.assert_allclose(layer.weight, best.T, atol=0.01)
    np.testing.assert_allclose(layer(torch.full((1, 3), -1.0))[0], [5, 5, 5], atol=0.025)
    left = np.trace(spread - spread @ mixture @ best) / np.trace(spread)
    assert explained == pytest.approx(1 - left, abs=0.01)


def test_network_finds_what_is_expected_of_images_of_two_kinds(tmp_path: Path, rng: np.random.Generator) -> None:
    """Of an image that is -1 or 1 and seen with noise of deviation s, tanh(seen / s^2) is expected: no linear map."""
    n, noise = 20_000, 0.8
    images = rng.choice([-1.0, 1.0], (n, 1))
    seen = images + noise * rng.standard_normal((n, 1))
    held = np.arange(n) % 4 == 0
    settings = ExpectationSettings(
        n_inner=32, dropout=0.0, noise=0.0, steps=Steps(n_steps=1500, batch_size=512, learning_rate=1e-2, cosine=True)
    )
    found = fit(seen.astype(np.float32), images.astype(np.float32), held, settings, tmp_path)
    best = 1 - np.mean((np.tanh(seen / noise**2) - images) ** 2)
    linear = 1 - noise**2 / (1 + noise**2)
    assert found.ridge == pytest.approx(linear, abs=0.02)
    assert found.explained == pytest.approx(best, abs=0.02)
    assert best - linear > 0.05
    asked = np.linspace(-2, 2, 17)[:, None]
    given = torch.from_numpy(asked.astype(np.float32))
    np.testing.assert_allclose(found.network(given), np.tanh(asked / noise**2), atol=0.1)


def test_it_trusts_samples_the_encoder_was_not_trained_on(tmp_path: Path, rng: np.random.Generator) -> None:
    """An encoder that knows its training samples by heart: only those held out tell that it knows nothing of others."""
    images = rng.standard_normal((500, 4)).astype(np.float32) + 2
    held = np.arange(500) >= 400
    epochs = np.where(held[:, None], rng.standard_normal((500, 4)) + 2, images).astype(np.float32)
    settings = ExpectationSettings(n_inner=8, steps=Steps(n_steps=200, batch_size=64, learning_rate=1e-2))
    found = fit(epochs, images, held, settings, tmp_path)
    assert isinstance(found.network, nn.Linear)
    wanted = np.tile(images[~held].mean(0), (9, 1))
    np.testing.assert_allclose(found.network(torch.from_numpy(epochs[:9])), wanted, atol=0.35)
    assert found.explained == found.ridge
    assert abs(found.ridge) < 0.05


def test_it_begins_as_the_regression(tmp_path: Path, rng: np.random.Generator) -> None:
    """Hardly trained at all, it is that, whatever the units of what goes in and comes out."""
    seen = 100 * rng.standard_normal((300, 3)).astype(np.float32) - 40
    shown = 0.01 * seen[:, ::-1] + 7 + 0.1 * rng.standard_normal((300, 3)).astype(np.float32)
    held = np.arange(300) % 3 == 0
    still = ExpectationSettings(n_inner=8, steps=Steps(n_steps=1, batch_size=8, learning_rate=1e-12))
    found = fit(seen, shown, held, still, tmp_path)
    assert found.explained == pytest.approx(found.ridge, abs=1e-6)
    layer, _ = ridge(seen, shown, held)
    x = torch.from_numpy(seen[:5])
    np.testing.assert_allclose(found.network(x), layer(x), rtol=1e-5)


def test_a_killed_fit_goes_on(tmp_path: Path, rng: np.random.Generator) -> None:
    epochs, shown = (rng.standard_normal((60, 3)).astype(np.float32) for _ in range(2))
    held = np.arange(60) % 3 == 0
    first = fit(epochs, shown, held, QUICK, tmp_path / "a")
    steps: list[str] = []
    again = fit(epochs, shown, held, QUICK, tmp_path / "a", report=lambda line, done=0, total=0: steps.append(line))
    assert not steps
    assert first.explained == again.explained
    with pytest.raises(ConfigError, match="holds another run"):
        fit(shown, epochs, held, QUICK, tmp_path / "a")


@pytest.mark.parametrize(("name", "value"), [("n_inner", 0), ("dropout", 1.0), ("noise", -0.1)])
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"expectation\.{name}"):
        ExpectationSettings(**{name: value})
