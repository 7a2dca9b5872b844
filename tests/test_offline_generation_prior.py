"""Fusion Prior: its loss against the formula, the adapter against attention by hand, what is frozen, going on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusers
import torch
from safetensors.torch import load_file
from scipy.special import erf

from models.fusion import PriorProjector
from offline.data.store import Item
from offline.generation import prior
from offline.generation.diffuser import Diffuser
from offline.generation.loop import Steps, batch_rows
from offline.targets.store import Targets, compute
from streamdec.errors import ConfigError, DataError

N, D = 10, 6
LATENTS = (4, tiny_diffusers.SIDE, tiny_diffusers.SIDE)


class Made:
    """Random features, of any shape."""

    def __init__(self, name: str, *shape: int, **provenance: object) -> None:
        self.name, self._shape, self.provenance = name, shape, provenance

    def __call__(self, items, images):
        rng = np.random.default_rng(len(self.name))
        return rng.standard_normal((len(items), *self._shape)).astype(np.float32)


def features(folder: Path, encoder: Made, n: int = N) -> Targets:
    compute(encoder, [Item(f"c/{i}", "c", "c", f"c/{i}.png") for i in range(n)], folder, folder / encoder.name)
    return Targets(folder / encoder.name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusers.stable_diffusion(tmp_path_factory.mktemp("model"), prediction_type="v_prediction")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Targets]:
    folder = tmp_path_factory.mktemp("features")
    return {
        "clip": features(folder, Made("clip", 5)),
        "vae": features(folder, Made("vae", 2, 3)),
        "latents": features(folder, Made("latents", math.prod(LATENTS), latents=list(LATENTS))),
    }


def settings(**changes) -> prior.PriorSettings:
    steps = Steps(n_steps=6, batch_size=4, learning_rate=1e-2, keep_every=2)
    return prior.PriorSettings(**({"n_dims": D, "n_inner": 7, "n_projector": 9, "steps": steps} | changes))


def roles(images: dict[str, Targets]) -> dict[str, Targets]:
    return {role: images[role] for role in ("clip", "vae")}


def test_projector_formula() -> None:
    torch.manual_seed(0)
    net = PriorProjector(5, 7).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    p = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    hidden = x.numpy() @ p["inner.weight"].T + p["inner.bias"]
    wanted = x.numpy() + (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) @ p["outer.weight"].T + p["outer.bias"]
    np.testing.assert_allclose(net(x).detach(), wanted)
    with torch.device("meta"):
        assert sum(q.numel() for q in PriorProjector().parameters()) == 2 * 1024 * 4096 + 4096 + 1024


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_is_what_the_schedule_says(tmp_path: Path, kind: str) -> None:
    """From the definition: x_t = a x + s e; wanted is e, a e - s x, or x."""
    diffuser = Diffuser(str(tiny_diffusers.stable_diffusion(tmp_path, prediction_type=kind)))
    torch.manual_seed(3)
    diffuser.add_adapter(diffuser.own_adapter(D))
    latents, condition = torch.randn(3, *LATENTS), torch.randn(3, D)
    torch.manual_seed(4)
    found = diffuser.loss(latents, condition)
    torch.manual_seed(4)
    noise, times = torch.randn_like(latents), torch.randint(0, 1000, (3,))
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)  # DDIMScheduler's defaults
    power = torch.cumprod(1 - betas, 0)[times][:, None, None, None]
    noisy = power.sqrt() * latents + (1 - power).sqrt() * noise
    wanted = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": power.sqrt() * noise - (1 - power).sqrt() * latents,
    }[kind]
    with torch.no_grad():
        out = diffuser.predict(noisy.float(), times, condition)
    torch.testing.assert_close(found.double(), ((out.double() - wanted) ** 2).mean(), rtol=1e-5, atol=1e-6)


def test_often_takes_half_of_the_times(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffuser = Diffuser(str(model))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(diffuser, "predict", lambda noisy, times, condition: seen.append(times) or noisy)
    torch.manual_seed(6)
    n = 4000
    latents, condition = torch.zeros(n, 1, 1, 1), torch.zeros(n, D)
    diffuser.loss(latents, condition)
    diffuser.loss(latents, condition, (999, 249))
    plain, often = (np.bincount(times, minlength=1000) for times in seen)
    assert plain.max() < 20  # 4 expected of each
    for time in (999, 249):
        assert abs(often[time] - (n / 4 + 2)) < 5 * np.sqrt(n * 3 / 16)
    others = np.delete(often, (999, 249))
    assert abs(others.sum() - n / 2) < 5 * np.sqrt(n / 4)
    assert others.max() < 15


def test_often_must_be_in_the_schedule(model: Path, images: dict[str, Targets], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="often"):
        settings(often=(-1,))
    with pytest.raises(ConfigError, match="below 1000"):
        prior.fit(str(model), roles(images), images["latents"], tmp_path / "prior", settings(often=(1000,)))


def test_adapter_is_attention_to_four_more_tokens(model: Path) -> None:
    """Image tokens LN(W z + b); to each cross-attention's text attention that of the image tokens is added."""
    diffuser = Diffuser(str(model))
    torch.manual_seed(5)
    p = diffuser.add_adapter(diffuser.own_adapter(D))
    with torch.no_grad():
        for parameter in p.values():
            parameter.add_(torch.randn_like(parameter) / 3)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    attention = diffuser.unet.get_submodule(name)
    seen: dict[str, torch.Tensor] = {}

    def keep(module, args, kwargs, output):
        seen.update(x=args[0], text=kwargs["encoder_hidden_states"][0], out=output)

    attention.register_forward_hook(keep, with_kwargs=True)
    z = torch.randn(2, D)
    with torch.no_grad():
        diffuser.predict(torch.randn(2, *LATENTS), torch.tensor([3, 700]), z)
    tokens = (z @ p["image_proj.proj.weight"].T + p["image_proj.proj.bias"]).reshape(2, 4, tiny_diffusers.WIDTH)
    deviation = tokens.var(2, keepdim=True, correction=0).add(1e-5).sqrt()
    tokens = (tokens - tokens.mean(2, keepdim=True)) / deviation
    tokens = tokens * p["image_proj.norm.weight"] + p["image_proj.norm.bias"]
    query = seen["x"] @ attention.to_q.weight.T

    def attend(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        heads = []
        for q, k, v in zip(
            *(t.split(query.shape[2] // attention.heads, dim=2) for t in (query, keys, values)), strict=True
        ):
            heads.append(torch.softmax(q @ k.transpose(1, 2) / q.shape[2] ** 0.5, dim=2) @ v)
        return torch.cat(heads, dim=2)

    text = attend(seen["text"] @ attention.to_k.weight.T, seen["text"] @ attention.to_v.weight.T)
    image = attend(tokens @ p["ip_adapter.1.to_k_ip.weight"].T, tokens @ p["ip_adapter.1.to_v_ip.weight"].T)
    wanted = (text + image) @ attention.to_out[0].weight.T + attention.to_out[0].bias
    torch.testing.assert_close(seen["out"], wanted, rtol=1e-4, atol=1e-5)


def test_begins_with_the_keys_and_values_of_the_text(model: Path) -> None:
    diffuser = Diffuser(str(model))
    state = diffuser.own_adapter(D)
    unet = diffuser.unet
    first = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    torch.testing.assert_close(state["ip_adapter.1.to_k_ip.weight"], first.to_k.weight)
    keys = {name for name in state if name.startswith("ip_adapter.")}
    n = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    assert keys == {f"ip_adapter.{2 * i + 1}.to_{kv}_ip.weight" for i in range(n) for kv in "kv"}


def test_trains_and_leaves_the_frozen_alone(
    model: Path, images: dict[str, Targets], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Diffuser] = []

    class Watched(Diffuser):
        def __init__(self, *args: str) -> None:
            super().__init__(*args)
            self.before = {name: p.clone() for name, p in self.unet.named_parameters()}
            kept.append(self)

    monkeypatch.setattr(prior, "Diffuser", Watched)
    meta = prior.fit(str(model), roles(images), images["latents"], tmp_path / "run", settings())
    assert meta.widths == {"clip": 5, "vae": 6}
    assert meta.encoders == {"clip": "clip", "vae": "vae"}
    for name, p in kept[0].unet.named_parameters():
        if name in kept[0].before:
            assert torch.equal(p, kept[0].before[name]), name
    adapter = load_file(tmp_path / "run" / "adapter.safetensors")
    torch.manual_seed(0)
    fresh = Diffuser(str(model)).own_adapter(D)
    assert adapter.keys() == fresh.keys()
    assert not torch.equal(adapter["ip_adapter.1.to_k_ip.weight"], fresh["ip_adapter.1.to_k_ip.weight"])
    assert load_file(tmp_path / "run" / "prompt.safetensors")["prompt_embeds"].shape == (1, 6, tiny_diffusers.WIDTH)


def test_the_live_pipeline_takes_what_was_trained(model: Path, images: dict[str, Targets], tmp_path: Path) -> None:
    """The official layout: diffusers' own loader makes the same network of it."""
    from diffusers import StableDiffusionPipeline

    prior.fit(str(model), roles(images), images["latents"], tmp_path, settings())
    trained = Diffuser(str(model))
    trained.add_adapter(load_file(tmp_path / "adapter.safetensors"))
    pipeline = StableDiffusionPipeline.from_pretrained(model, low_cpu_mem_usage=False)
    pipeline.load_ip_adapter(
        str(tmp_path),
        subfolder="",
        weight_name="adapter.safetensors",
        image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )
    torch.manual_seed(6)
    noisy, times, z = torch.randn(2, *LATENTS), torch.tensor([5, 400]), torch.randn(2, D)
    prompt = trained.prompt["prompt_embeds"].expand(2, -1, -1)
    with torch.no_grad():
        theirs = pipeline.unet(noisy, times, prompt, added_cond_kwargs={"image_embeds": [z[:, None]]}).sample
        torch.testing.assert_close(trained.predict(noisy, times, z), theirs)


def test_goes_on_where_it_was_killed(model: Path, images: dict[str, Targets], tmp_path: Path) -> None:
    def fit(folder: str, report=lambda line, done=0, total=0: None) -> dict[str, torch.Tensor]:
        prior.fit(str(model), roles(images), images["latents"], tmp_path / folder, settings(), report=report)
        return load_file(tmp_path / folder / "adapter.safetensors")

    def kill(line: str, done: int = 0, total: int = 0) -> None:
        if done == 4:
            raise KeyboardInterrupt

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", kill)
    again = fit("killed")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    with pytest.raises(ConfigError, match="holds another run"):
        prior.fit(str(model), roles(images), images["latents"], tmp_path / "whole", settings(n_inner=8))


def test_fused_features_and_conditioner(model: Path, images: dict[str, Targets], tmp_path: Path) -> None:
    prior.fit(str(model), roles(images), images["latents"], tmp_path, settings())
    opened = prior.Prior(tmp_path)
    arrays = {role: targets.rows() for role, targets in roles(images).items()}
    fused = opened.fused(arrays)
    tensors = {role: torch.from_numpy(np.array(array)) for role, array in arrays.items()}
    wanted = opened.network.fusion(tensors)
    np.testing.assert_allclose(fused, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(opened.network(tensors), opened.network.projector(wanted))


def test_sdxl(images: dict[str, Targets], tmp_path: Path) -> None:
    """Pooled prompt and size go in."""
    model = tiny_diffusers.stable_diffusion_xl(tmp_path / "model")
    prior.fit(str(model), roles(images), images["latents"], tmp_path / "run", settings())
    prompt = load_file(tmp_path / "run" / "prompt.safetensors")
    assert prompt["prompt_embeds"].shape == (1, 6, tiny_diffusers.WIDTH)
    assert prompt["pooled_prompt_embeds"].shape == (1, 8)


def test_plain_adapter(model: Path, images: dict[str, Targets], tmp_path: Path) -> None:
    meta = prior.fit(str(model), {"clip": images["clip"]}, images["latents"], tmp_path, settings(fuse=False))
    assert load_file(tmp_path / "adapter.safetensors")["image_proj.proj.weight"].shape[1] == 5
    opened = prior.Prior(tmp_path)
    np.testing.assert_array_equal(opened.fused({"clip": images["clip"].rows()}), images["clip"].rows())
    assert not meta.settings.fuse
    with pytest.raises(ConfigError, match="unfused"):
        prior.fit(str(model), roles(images), images["latents"], tmp_path / "b", settings(fuse=False))


def test_refusals(model: Path, images: dict[str, Targets], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="latents"):
        prior.fit(str(model), roles(images), images["clip"], tmp_path / "a", settings())
    fewer = features(tmp_path, Made("few", 3), n=4)
    with pytest.raises(DataError, match="images of few"):
        prior.fit(str(model), {"clip": images["clip"], "few": fewer}, images["latents"], tmp_path / "a", settings())
    with pytest.raises(ConfigError, match="model"):
        Diffuser(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="train it first"):
        prior.Prior(tmp_path)
    with pytest.raises(ConfigError, match="IP-Adapter weights"):
        prior.fit(str(model), roles(images), images["latents"], tmp_path / "a", settings(start=str(tmp_path / "none")))


def test_rows_of_steps() -> None:
    """Passes without a gap; each sample once in each."""
    rows = np.concatenate([batch_rows(step, 4, 10, 0) for step in range(5)])
    for start in (0, 10):
        assert sorted(rows[start : start + 10]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])


def test_fused_features_for_any_method(model: Path, tmp_path: Path) -> None:
    """``fused:PRIOR`` computes what its encoders see, and fuses it."""
    from PIL import Image

    from offline.targets.registry import encoder

    folder = tmp_path / "images"
    items = [Item(f"c/{i}.png", "c", "c", f"c/{i}.png") for i in range(4)]
    (folder / "c").mkdir(parents=True)
    for i, item in enumerate(items):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / item.image)
    compute(encoder("colour", items, "cpu"), items, folder, tmp_path / "colour")
    compute(encoder("pixels@size=2", items, "cpu"), items, folder, tmp_path / "pixels")
    compute(Made("latents", math.prod(LATENTS), latents=list(LATENTS)), items, folder, tmp_path / "latents")
    parts = {role: Targets(tmp_path / role) for role in ("colour", "pixels")}
    prior.fit(str(model), parts, Targets(tmp_path / "latents"), tmp_path / "prior", settings())
    made = compute(encoder(f"fused:{tmp_path / 'prior'}", items, "cpu"), items, folder, tmp_path / "fused")
    wanted = prior.Prior(tmp_path / "prior").fused({role: part.rows() for role, part in parts.items()})
    np.testing.assert_allclose(Targets(tmp_path / "fused").rows(), wanted, rtol=1e-5, atol=1e-6)
    assert set(made.provenance["parts"]) == {"colour", "pixels"}


def test_command(model: Path, images: dict[str, Targets], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from offline.cli import main

    config = tmp_path / "prior.toml"
    config.write_text("n_dims = 6\nn_inner = 7\nn_projector = 9\n[steps]\nn_steps = 2\nbatch_size = 4\n")
    given = ",".join(f"{role}={targets.path}" for role, targets in roles(images).items())
    call = ["prior", str(model), given, str(images["latents"].path), str(tmp_path / "run"), "--config", str(config)]
    assert main(call) == 0
    assert "clip, vae into" in capsys.readouterr().out.replace("\n", " ")
    config.write_text("n_dim = 6\n")
    assert main(call) == 2
    assert "n_dim" in capsys.readouterr().err


def test_published_settings_are_the_defaults() -> None:
    from streamdec.config import convert, read_toml

    path = Path(__file__).parents[1] / "configs" / "generators" / "prior.toml"
    assert convert(read_toml(path), prior.PriorSettings, "prior.toml") == prior.PriorSettings()
