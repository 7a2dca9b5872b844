"""A prior trained on by embeddings of epochs: the formula, what stays as it is, that drawing goes by the embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_diffusers
import torch
from safetensors.torch import load_file
from scipy.special import erf
from tiny_features import LATENTS, N, of_images
from torch import nn

from offline.generation import prior
from offline.generation.diffuser import Diffuser
from offline.generation.loop import Steps
from offline.generation.on_epochs import Conditioner, OnEpochsSettings, Trained, fit
from offline.targets.store import Targets
from streamdec.errors import ConfigError

D = 6
STEPS = Steps(n_steps=400, batch_size=N, learning_rate=1e-2, keep_every=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusers.stable_diffusion(tmp_path_factory.mktemp("model"), prediction_type="v_prediction")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Targets]:
    return of_images(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def trained_prior(model: Path, images: dict[str, Targets], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior")
    small = prior.PriorSettings(n_dims=D, n_inner=5, n_projector=7, steps=Steps(n_steps=2, batch_size=4))
    given = {role: images[role] for role in ("clip", "vae")}
    prior.fit(str(model), given, images["latents"], path, small)
    return path


def on_epochs(steps: Steps = STEPS) -> OnEpochsSettings:
    return OnEpochsSettings(latents="", n_inner=16, dropout=0.0, steps=steps)


def trained(
    path: Path, model: Path, images: dict[str, Targets], embeddings: np.ndarray, folder: Path, phi: nn.Module
) -> Trained:
    expected = nn.Linear(embeddings.shape[1], D)
    with torch.no_grad():
        expected.weight.zero_()
        expected.bias.zero_()
    return fit(
        prior.Prior(path), str(model), expected, phi, embeddings, images["latents"].rows(), LATENTS, on_epochs(), folder
    )


def test_conditioner_formula(rng: np.random.Generator) -> None:
    """phi(E) + spread (W u + b + W2 gelu(W1 u + b1) + b2), u the embedding at root mean square 1."""
    torch.manual_seed(1)
    x = torch.from_numpy(rng.standard_normal((4, 3)))
    made = Conditioner(nn.Linear(3, 5).double(), nn.Linear(5, 2).double(), x, on_epochs()).double().eval()
    with torch.no_grad():
        np.testing.assert_allclose(made(x), made.phi(made.expected(x)), rtol=1e-12, err_msg="0 at first")
        for parameter in (*made.linear.parameters(), *made.outer.parameters()):
            parameter.normal_()
        found = made(x).numpy()
        beside = made.phi(made.expected(x)).numpy()
    p = {name: parameter.detach().numpy() for name, parameter in made.named_parameters()}
    u = x.numpy() / np.sqrt(np.mean(x.numpy() ** 2, axis=1, keepdims=True))
    hidden = u @ p["inner.weight"].T + p["inner.bias"]
    inner = (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) @ p["outer.weight"].T + p["outer.bias"]
    own = u @ p["linear.weight"].T + p["linear.bias"] + inner
    np.testing.assert_allclose(found, beside + 0.15 * np.sqrt(np.mean(beside**2)) * own, rtol=1e-10)


def test_drawing_goes_by_what_only_the_embedding_says(
    trained_prior: Path, model: Path, images: dict[str, Targets], tmp_path: Path, rng: np.random.Generator
) -> None:
    """All that the epochs let expect is one and the same; of random pictures one can know which it is."""
    embeddings = rng.standard_normal((N, 7)).astype(np.float32)
    phi = prior.Prior(trained_prior).network.projector
    made = trained(trained_prior, model, images, embeddings, tmp_path / "on", phi)
    diffuser = Diffuser(str(model))
    diffuser.add_adapter(made.adapter)
    latents = torch.from_numpy(np.array(images["latents"].rows())).view(-1, *LATENTS)

    def loss(given: np.ndarray) -> float:
        torch.manual_seed(9)
        with torch.no_grad():
            condition = made.conditioner(torch.from_numpy(given))
            return float(torch.stack([diffuser.loss(latents, condition) for _ in range(40)]).mean())

    own = loss(embeddings)
    assert own < 0.97 * loss(np.roll(embeddings, 1, axis=0))
    assert own == pytest.approx(loss(3 * embeddings), rel=1e-4), "its length says nothing"


def test_the_expectation_stays_as_it_is(
    trained_prior: Path, model: Path, images: dict[str, Targets], tmp_path: Path, rng: np.random.Generator
) -> None:
    """phi_c, the adapter and the network beside learn; neither the prior's folder nor what is expected changes."""
    before = {file.name: file.read_bytes() for file in trained_prior.iterdir()}
    embeddings = rng.standard_normal((N, 7)).astype(np.float32)
    phi = prior.Prior(trained_prior).network.projector
    weights = {name: weight.clone() for name, weight in phi.state_dict().items()}
    made = trained(trained_prior, model, images, embeddings, tmp_path / "on", phi)
    assert {file.name: file.read_bytes() for file in trained_prior.iterdir()} == before
    assert not any(p.any() for p in made.conditioner.expected.parameters())
    assert not any(p.requires_grad for p in made.conditioner.parameters())
    assert made.conditioner.linear.weight.any()
    assert not torch.equal(phi.state_dict()["outer.weight"], weights["outer.weight"])
    adapter = load_file(trained_prior / "adapter.safetensors")
    assert made.adapter.keys() == adapter.keys()
    assert not torch.equal(made.adapter["image_proj.proj.weight"], adapter["image_proj.proj.weight"])
    with pytest.raises(ConfigError, match="holds another run"):
        trained(trained_prior, model, images, -embeddings, tmp_path / "on", phi)


@pytest.mark.parametrize("wrong", [{"n_inner": 0}, {"dropout": 1.0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OnEpochsSettings(latents="", **wrong)
