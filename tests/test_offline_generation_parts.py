"""Linear maps, the latent network and the text bank, against their formulas; what is exported is what was fitted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import tiny_diffusers
import torch
from safetensors.numpy import load_file
from torch import nn

from offline import checkpoint
from offline.generation import onnx_file
from offline.generation.bank import features_of, sentences_of, write_bank
from offline.generation.latent import LatentNetwork, autoencoder, write_latent
from offline.generation.linear import Rescaled, fit_linear, typical_length
from streamdec.errors import ConfigError, DataError, EngineError


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_linear_finds_an_affine_map(rng: np.random.Generator) -> None:
    x = rng.standard_normal((60, 5)).astype(np.float32)
    weights, bias = rng.standard_normal((5, 3)), rng.standard_normal(3)
    y = (x @ weights + bias).astype(np.float32)
    layer, explained = fit_linear(x, y, np.arange(60) // 4)
    np.testing.assert_allclose(layer.weight.T, weights, atol=1e-4)
    np.testing.assert_allclose(layer.bias, bias, atol=1e-4)
    assert explained > 0.9999


def test_linear_explains_nothing_of_noise(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((200, 20), np.float32), rng.standard_normal((200, 4), np.float32)
    _, explained = fit_linear(x, y, np.arange(200))
    assert explained < 0.05


def test_rescaled() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.1]])
    torch.testing.assert_close(Rescaled(10.0)(x), torch.tensor([[6.0, 8.0], [0.0, 10.0]]))
    assert not Rescaled(1.0)(torch.zeros(1, 2)).any()
    assert typical_length(np.array([[3, 4], [0, 1], [0, 2]], np.float32)) == 2


def test_export_refuses_what_differs(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        """Another thing when exported."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (1.0 if torch.compiler.is_exporting() else 0.0)

    with pytest.raises(EngineError, match="nothing was written"):
        onnx_file.write(tmp_path / "a.onnx", Fickle(), [{"x": np.zeros((1, 2), np.float32) + 1}], "y")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    tiny_diffusers.autoencoder().save_pretrained(folder)
    return folder


def test_latent_network_decodes_what_diffusers_decodes(vae: Path) -> None:
    network = autoencoder(str(vae))
    regression = nn.Linear(3, 4 * 4 * 4)
    made = LatentNetwork(regression, network, (4, 4, 4))
    x = torch.randn(2, 3)
    with torch.no_grad():
        latents = (x @ regression.weight.T + regression.bias).view(2, 4, 4, 4)
        pixels = network.decode(latents / network.config.scaling_factor).sample
        torch.testing.assert_close(made(x), (pixels / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("what", ["embedding", "epoch"])
def test_latent_file(vae: Path, tmp_path: Path, what: str, rng: np.random.Generator) -> None:
    shape = (6,) if what == "embedding" else (3, 2)
    x = rng.standard_normal((40, *shape), np.float32)
    latents = (x.reshape(40, 6) @ rng.standard_normal((6, 64))).astype(np.float32)
    path = tmp_path / "latent.onnx"
    explained = write_latent(path, str(vae), x, latents, (4, 4, 4), np.arange(40), what)
    assert 0 < explained <= 1
    picture = run(path, **{what: x[:1]})
    assert picture.shape == (1, 3, 8, 8)
    assert picture.min() >= 0
    assert picture.max() <= 1
    with pytest.raises(ConfigError, match="channels"):
        write_latent(path, str(vae), x, latents, (8, 4, 2), np.arange(40), what)


CAPTIONS = ["a red  star", "a blue ring", "a red star", "a green disc"]


def test_sentences() -> None:
    assert sentences_of(CAPTIONS) == ["a blue ring", "a green disc", "a red star"]
    with pytest.raises(DataError, match="captions"):
        sentences_of([" "])


def test_bank_in_its_own_space(tmp_path: Path) -> None:
    """No adapter; the scale makes the right sentences most probable."""
    features = features_of(sentences_of(CAPTIONS), "spelling")
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    images = np.repeat(features, 3, axis=0) * 5
    own = [sentence for sentence in sentences_of(CAPTIONS) for _ in range(3)]
    scale, adapter, explained = write_bank(
        tmp_path, CAPTIONS, "spelling", images, images, np.arange(9) // 3, images, own
    )
    assert (adapter, explained) == ("", 1.0)
    assert scale == 1000.0  # always right: no finite scale is best
    np.testing.assert_array_equal(load_file(tmp_path / "bank.safetensors")["features"], features)
    assert msgspec.json.decode((tmp_path / "bank.json").read_bytes()) == sentences_of(CAPTIONS)


def test_bank_by_way_of_an_adapter(tmp_path: Path, rng: np.random.Generator) -> None:
    features = features_of(sentences_of(CAPTIONS), "spelling")
    kinds = np.arange(60) % 3
    images = (features[kinds] + 0.01 * rng.standard_normal((60, features.shape[1]))).astype(np.float32)
    turn = rng.standard_normal((features.shape[1], 7))
    embeddings = (images @ turn).astype(np.float32)
    own = [sentences_of(CAPTIONS)[kind] for kind in kinds]
    scale, adapter, explained = write_bank(
        tmp_path, CAPTIONS, "spelling", embeddings, images, np.arange(60), embeddings, own
    )
    assert adapter == "bank_adapter.onnx"
    assert explained <= 1
    assert scale > 0
    seen = np.concatenate([run(tmp_path / adapter, embedding=row[None]) for row in embeddings[:6]])
    assert list(np.argmax(seen @ features.T, axis=1)) == list(kinds[:6])


def test_configs_keep_names_and_not_where_they_lay() -> None:
    config = {"prior": "/home/a/prior", "bank": {"text": "open_clip_text:/data/clip"}, "model": "org/name", "steps": 3}
    kept = {"prior": "prior", "bank": {"text": "open_clip_text:clip"}, "model": "org/name", "steps": 3}
    assert checkpoint.without_folders(config) == kept


def test_exported_networks_say_nothing_of_where_they_were_made() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.ELU()).eval()
    for batched in (False, True):
        made = onnx_file.to_onnx(network, [torch.zeros(2, 3)], ["x"], "y", batched=batched)
        assert b"site-packages" not in made
        assert str(Path(__file__).parents[1]).encode() not in made
