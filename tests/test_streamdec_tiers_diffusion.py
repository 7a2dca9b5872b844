"""Pictures by a diffusion model: the mathematics by hand, and what happens when time runs out."""

from __future__ import annotations

import io
import itertools
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from tiny_generator import DIM, Listener, diffusion_generator, generator, ip_adapter, linear, llm_generator, request
from torch import Tensor

from streamdec.decode.generate.generator import OpenGenerator, open_generator
from streamdec.decode.generate.job import Request
from streamdec.decode.generate.spec import Diffusion, Llm
from streamdec.decode.generate.tiers.diffusion import DiffusionTier
from streamdec.decode.generate.tiers.llm import LlmTier
from streamdec.errors import BundleError, EngineError

NEVER = float("inf")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("diffusion")
    return {kind: diffusion_generator(made / kind, kind).path for kind in ("sd", "xl")}


def opened(folders: dict[str, Path], tmp_path: Path, kind: str = "sd", **changes: Any) -> OpenGenerator:
    """A copy with another manifest."""
    path = shutil.copytree(folders[kind], tmp_path / "g")
    if "conditioner" in changes:
        linear(path / "conditioner.onnx", changes.pop("weights"))
    before = msgspec.json.decode((path / "generator.json").read_bytes())["diffusion"]
    return generator(path, diffusion=msgspec.convert(before | changes, Diffusion))


def still() -> float:
    return 0.0


def draw(tier: DiffusionTier, asked: Request | None = None, steps: int = 4, **ends: Any) -> Any:
    """Run; what comes of it, and what was reported."""
    listener = ends.get("listener", Listener())
    result = tier.run(
        asked or request("reconstruction"), steps, ends.get("deadline", NEVER), ends.get("clock", still), listener
    )
    return result, listener.heard


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)), dtype=np.float64)


def shown(tier: DiffusionTier, latents: Tensor) -> np.ndarray:
    """Latents decoded by hand, 0..255."""
    vae = tier._pipe.vae
    image = vae.decode(latents / vae.config.scaling_factor).sample[0] / 2 + 0.5
    return image.clamp(0, 1).permute(1, 2, 0).double().numpy() * 255


def noise(key: str) -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))


def predicted(
    tier: DiffusionTier, latents: Tensor, time: int, embedding: Tensor, prompt: dict[str, Tensor] | None = None
) -> Tensor:
    """One call of the network, with the empty prompt where none is given and what the adapter is shown."""
    unet, prompt = tier._pipe.unet, prompt or tier._prompt
    added: dict[str, Any] = {"image_embeds": [embedding.reshape(1, 1, -1)]}
    if "pooled_prompt_embeds" in prompt:
        sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]])  # original size, crop, target size
        added |= {"text_embeds": prompt["pooled_prompt_embeds"], "time_ids": sizes}
    out: Tensor = unet(
        latents, time, encoder_hidden_states=prompt["prompt_embeds"], added_cond_kwargs=added, return_dict=False
    )[0]
    return out


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.5])
def test_one_step_by_hand(folders: dict[str, Path], tmp_path: Path, kind: str, guidance: float) -> None:
    tier = DiffusionTier(opened(folders, tmp_path, kind, guidance=guidance))
    asked = request("reconstruction")
    result, heard = draw(tier, asked, 1)
    # DDIM from the noisiest time in one step: the network's guess at the noise, taken out (Song et al., arXiv
    # 2010.02502, eq. 9), with classifier-free guidance (Ho and Salimans, arXiv 2207.12598) against no image.
    beta = torch.linspace(1e-4, 2e-2, 1000)
    kept = torch.cumprod(1 - beta, 0)[999]
    start = noise(asked.key)
    guess = predicted(tier, start, 999, torch.from_numpy(asked.embedding))
    if guidance > 1:
        without = predicted(tier, start, 999, torch.zeros(DIM))
        guess = without + guidance * (guess - without)
    clean = (start - (1 - kept).sqrt() * guess) / kept.sqrt()
    assert np.abs(pixels(result.image) - shown(tier, clean)).max() <= 0.51
    assert pixels(result.image).std() > 1, "there is something to see"
    assert (result.media, result.units, result.wanted) == ("image/png", 1, 1)
    assert [(units, progress.image) for progress, units in heard] == [(1, b"")]


@pytest.fixture(scope="module")
def captioned(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, with a language model whose letters are those of the text encoders."""
    made: dict[str, Path] = {}
    for kind in folders:
        path = tmp_path_factory.mktemp("captioned") / kind
        llm = llm_generator(path, words=["a", "b", "c", *map("".join, itertools.product("abc", repeat=2))]).manifest.llm
        shutil.copytree(folders[kind], path, dirs_exist_ok=True)
        spec = msgspec.json.decode((path / "generator.json").read_bytes())["diffusion"]
        generator(path, llm=llm, diffusion=msgspec.convert(spec | {"captioned": True, "guidance": 3.5}, Diffusion))
        made[kind] = path
    return made


def encoded(path: Path, text: str) -> dict[str, Tensor]:
    """A prompt through the text encoders of a pipeline, by transformers: of SDXL the last layer but one of both."""
    hidden, pooled = [], None
    xl = (path / "model" / "text_encoder_2").is_dir()
    for n in ("", "_2") if xl else ("",):
        tokens = transformers.CLIPTokenizer.from_pretrained(path / "model" / f"tokenizer{n}")(
            text, padding="max_length", max_length=6, truncation=True, return_tensors="pt"
        )
        kind = transformers.CLIPTextModelWithProjection if n else transformers.CLIPTextModel
        out = kind.from_pretrained(path / "model" / f"text_encoder{n}")(tokens.input_ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2] if xl else out.last_hidden_state)
        pooled = out.text_embeds if n else None
    found = {"prompt_embeds": torch.cat(hidden, -1)}
    return found if pooled is None else {**found, "pooled_prompt_embeds": pooled}


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_captioned_by_hand(captioned: dict[str, Path], kind: str) -> None:
    """The caption is the prompt; guidance is against no image and the empty prompt."""
    made = open_generator(captioned[kind])
    tier, asked = DiffusionTier(made), request("reconstruction")
    writer = LlmTier(made)
    said = writer.run(request(), writer.units[1], NEVER, still, Listener()).text
    assert len(said.split()) > 1
    result, heard = draw(tier, asked, 1)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)[999]
    start = noise(asked.key)
    without = predicted(tier, start, 999, torch.zeros(DIM))
    guess = predicted(tier, start, 999, torch.from_numpy(asked.embedding), encoded(captioned[kind], said))
    clean = (start - (1 - kept).sqrt() * (without + 3.5 * (guess - without))) / kept.sqrt()
    assert np.abs(pixels(result.image) - shown(tier, clean)).max() <= 0.51
    assert [units for _, units in heard] == [1], "a caption is no unit"
    other = request("reconstruction", seed=2)
    again = writer.run(msgspec.structs.replace(other, kind="caption"), writer.units[1], NEVER, still, Listener()).text
    assert again != said, "the caption is of the evidence"


def test_at_the_deadline_a_caption_ends_and_nothing_is_drawn(captioned: dict[str, Path]) -> None:
    tier = DiffusionTier(open_generator(captioned["sd"]))
    words: list[object] = []
    assert tier._writer is not None
    tier._writer._model.register_forward_pre_hook(lambda *_: words.append(None))
    drawn = Counted(tier)
    whole, _ = draw(tier)
    assert len(words) > 2
    words.clear()
    drawn.calls = 0
    times = iter([0.0, 1.0, 2.0])
    result, heard = draw(tier, deadline=1.0, clock=lambda: next(times))
    assert len(words) == 2
    assert (result.image, result.text, result.units, result.wanted) == (b"", "", 0, 4)
    assert (heard, drawn.calls) == ([], 0)
    assert draw(tier)[0].image == whole.image, "and the next is as ever"


def test_text_encoders_fail_as_the_network_does(captioned: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DiffusionTier(open_generator(captioned["sd"]))

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(tier._pipe.text_encoder, "forward", full)
    with pytest.raises(EngineError, match="diffusion failed; got CUDA out of memory"):
        draw(tier)


def test_half_precision_text_encoders(captioned: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(captioned["xl"], tmp_path / "xl")
    for name, kind in (
        ("text_encoder", transformers.CLIPTextModel),
        ("text_encoder_2", transformers.CLIPTextModelWithProjection),
    ):
        encoder = kind.from_pretrained(path / "model" / name).half()
        (path / "model" / name / "model.safetensors").unlink()
        encoder.save_pretrained(path / "model" / name, variant="fp16")
    whole, halved = (DiffusionTier(resealed(folder)) for folder in (captioned["xl"], path))
    assert halved._pipe.text_encoder.dtype == torch.float32
    assert np.abs(pixels(draw(whole)[0].image) - pixels(draw(halved)[0].image)).mean() < 2
    brain = DiffusionTier(resealed(path, dtype="bfloat16"))
    assert brain._pipe.text_encoder_2.dtype == torch.bfloat16
    assert draw(brain)[0].image


def resealed(path: Path, **changes: Any) -> OpenGenerator:
    spec = msgspec.json.decode((path / "generator.json").read_bytes())
    llm, drawn = msgspec.convert(spec["llm"], Llm), msgspec.convert(spec["diffusion"] | changes, Diffusion)
    return generator(path, llm=llm, diffusion=drawn)


def another_encoder(name: str, kind: Any, **changes: Any) -> Any:
    def apply(path: Path) -> None:
        folder = path / "model" / name
        config = transformers.CLIPTextConfig.from_pretrained(folder)
        config.update(changes)
        kind(config).save_pretrained(folder)

    return apply


def words_of(name: str, path: Path) -> None:
    """Lose a tokenizer's words; it still opens."""
    for file in (path / "model" / name).iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


TEXT, CUT = "model/text_encoder/config.json", "model/tokenizer/tokenizer_config.json"
PROJECTED = transformers.CLIPTextModelWithProjection


@pytest.mark.parametrize(
    ("kind", "damage", "said"),
    [
        ("sd", lambda path: (path / TEXT).unlink(), r"no .*text_encoder/config\.json"),
        ("sd", lambda path: (path / CUT).unlink(), r"no .*tokenizer_config\.json"),
        ("sd", lambda path: (path / "model/text_encoder/model.safetensors").unlink(), "model model; got"),
        (
            "sd",
            lambda path: rewrite(TEXT, architectures=["GPT2Model"])(path),
            "text encoder of model; .* CLIPTextModel",
        ),
        ("sd", lambda path: rewrite(CUT, model_max_length=5)(path), r"got .*\(1, 5, 12\).*; allowed: .*\(1, 6, 12\)"),
        ("sd", lambda path: rewrite(CUT, model_max_length=9)(path), "text encoders of model; got Sequence length"),
        ("sd", lambda path: rewrite(CUT, model_max_length=10**30)(path), "text encoders of model; got int too big"),
        ("sd", another_encoder("text_encoder", transformers.CLIPTextModel, hidden_size=4), r"got .*\(1, 6, 4\)"),
        ("sd", another_encoder("text_encoder", PROJECTED), "text encoders of model; got"),
        ("xl", another_encoder("text_encoder_2", transformers.CLIPTextModel), "text encoders of model; got"),
        ("sd", lambda path: words_of("tokenizer", path), "tokenizer of model; got . words; allowed: 8, as its text"),
        (
            "xl",
            lambda path: words_of("tokenizer_2", path),
            "tokenizer_2 of model; got . words; allowed: 8, as its text",
        ),
    ],
)
def test_text_encoders_that_are_not_right(
    captioned: dict[str, Path], tmp_path: Path, kind: str, damage: Any, said: str
) -> None:
    path = shutil.copytree(captioned[kind], tmp_path / "copy")
    damage(path)
    broken = resealed(path)
    with pytest.raises(BundleError, match=said) as caught:
        DiffusionTier(broken)
    assert "\n" not in str(caught.value)


def test_captioned_pictures_need_a_language_model(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="captioned pictures; got no language model"):
        opened(folders, tmp_path, captioned=True)


def test_the_adapter_adds_tokens_to_the_attention(folders: dict[str, Path], tmp_path: Path) -> None:
    """out(attention(q, k, v) + scale * attention(q, k', v')), k' and v' of 4 tokens: IP-Adapter, arXiv 2308.06721."""
    tier = DiffusionTier(opened(folders, tmp_path, adapter_scale=0.7))
    unet = tier._pipe.unet
    weights = safetensors.torch.load_file(folders["sd"] / "adapter.safetensors")
    embedding = torch.from_numpy(request().embedding)
    tokens = (weights["image_proj.proj.weight"] @ embedding + weights["image_proj.proj.bias"]).reshape(4, 12)
    tokens = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    (given,) = unet.encoder_hid_proj([embedding.reshape(1, 1, -1)])
    assert torch.allclose(given.reshape(4, 12), tokens, atol=1e-5)
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    numbers = sorted({int(key.split(".")[1]) for key in weights if key.startswith("ip_adapter.")})
    assert len(names) == len(numbers) > 1
    text = torch.randn(6, 12)
    for name, number in zip(names, numbers, strict=True):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        hidden = torch.randn(5, attention.to_q.in_features)
        got = attention(hidden[None], encoder_hidden_states=(text[None], [tokens.reshape(1, 1, 4, 12)]))[0]
        query = hidden @ attention.to_q.weight.T

        def attended(key: Tensor, value: Tensor, query: Tensor = query, heads: int = attention.heads) -> Tensor:
            split = [array.reshape(len(array), heads, -1).transpose(0, 1) for array in (query, key, value)]
            weight = torch.softmax(split[0] @ split[1].transpose(1, 2) / split[0].shape[-1] ** 0.5, -1)
            return (weight @ split[2]).transpose(0, 1).reshape(len(query), -1)

        of_text = attended(text @ attention.to_k.weight.T, text @ attention.to_v.weight.T)
        of_image = attended(
            tokens @ weights[f"ip_adapter.{number}.to_k_ip.weight"].T,
            tokens @ weights[f"ip_adapter.{number}.to_v_ip.weight"].T,
        )
        wanted = (of_text + 0.7 * of_image) @ attention.to_out[0].weight.T + attention.to_out[0].bias
        assert torch.allclose(got, wanted, atol=1e-5)


OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers


@OLD_NUMPY
@pytest.mark.parametrize("scheduler", ["", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_the_same_evidence_gives_the_same_picture(folders: dict[str, Path], tmp_path: Path, scheduler: str) -> None:
    tier = DiffusionTier(opened(folders, tmp_path, scheduler=scheduler))
    tier.warm_up()
    first, _ = draw(tier, request("reconstruction"))
    other, _ = draw(tier, request("reconstruction", key="img2"))
    shifted, _ = draw(tier, request("reconstruction", seed=2))
    again, heard = draw(tier, request("reconstruction", id=7, due=3.0))
    assert first.image == again.image
    assert len({first.image, other.image, shifted.image}) == 3
    assert [units for _, units in heard] == [1, 2, 3, 4]


def test_schedulers_saved_long_ago(folders: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(folders["sd"], tmp_path / "copy" / "sd")
    rewrite("model/scheduler/scheduler_config.json", steps_offset=0, clip_sample=True)(path)
    old, new = DiffusionTier(opened({"sd": path}, tmp_path / "old")), DiffusionTier(opened(folders, tmp_path / "new"))
    assert draw(old)[0].image == draw(new)[0].image


@OLD_NUMPY
def test_schedulers_of_two_calls_a_step(folders: dict[str, Path], tmp_path: Path) -> None:
    tier = DiffusionTier(opened(folders, tmp_path, scheduler="HeunDiscreteScheduler"))
    result, heard = draw(tier, steps=3)
    assert (result.units, result.wanted) == (3, 3)
    assert [units for _, units in heard] == [1, 1, 2, 2, 3]


class Counted:
    """Counts the calls of the network."""

    def __init__(self, tier: DiffusionTier) -> None:
        self.calls = 0
        tier._pipe.unet.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.calls += 1


def test_cancelled_it_returns_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    tier = DiffusionTier(opened(folders, tmp_path, max_steps=8))
    whole, _ = draw(tier, steps=8)
    counted = Counted(tier)
    result, heard = draw(tier, steps=8, listener=Listener(stop_after=3))
    assert counted.calls == len(heard) == 3
    assert (result.image, result.media, result.units, result.wanted) == (b"", "", 3, 8)
    assert draw(tier, steps=8)[0].image == whole.image, "and the next is as ever"


def test_previews_show_what_the_picture_becomes(folders: dict[str, Path], tmp_path: Path) -> None:
    tier = DiffusionTier(opened(folders, tmp_path, preview=3))
    asked = request("reconstruction")
    result, heard = draw(tier, asked, 4)
    assert [bool(progress.image) for progress, _ in heard] == [True, True, True, True]
    assert heard[3][0].image == heard[2][0].image, "none of the last step: the picture itself follows"
    start = noise(asked.key)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)[999]
    guess = predicted(tier, start, 999, torch.from_numpy(asked.embedding))
    clean = (start - (1 - kept).sqrt() * guess) / kept.sqrt()
    assert np.abs(pixels(heard[0][0].image) - shown(tier, clean)).max() <= 0.51
    few, heard = draw(tier, asked, 2)
    assert [progress.image for progress, _ in heard] == [b"", b""], "fewer steps than `preview`"
    assert few.image
    assert result.image
    cancelled, _ = draw(tier, asked, 4, listener=Listener(stop_after=2))
    assert (cancelled.image, cancelled.units) == (draw(tier, asked, 4)[1][1][0].image, 2)


def test_at_the_deadline_the_picture_so_far(folders: dict[str, Path], tmp_path: Path) -> None:
    tier = DiffusionTier(opened(folders, tmp_path, preview=1, max_steps=8))
    _, previews = draw(tier, steps=8)
    counted = Counted(tier)
    times = iter([0.0, 1.0, 2.0, 3.0])
    result, heard = draw(tier, steps=8, deadline=2.0, clock=lambda: next(times))
    assert counted.calls == len(heard) == 3
    assert (result.units, result.wanted) == (3, 8)
    assert result.image == previews[2][0].image
    late, heard = draw(tier, steps=2, deadline=-1.0)
    assert (late.units, len(heard)) == (1, 1)
    assert late.image


def test_conditioner(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(DIM, DIM)).astype(np.float32)
    asked = request("reconstruction")
    plain = DiffusionTier(opened(folders, tmp_path / "a"))
    through = DiffusionTier(opened(folders, tmp_path / "b", conditioner="conditioner.onnx", weights=weights))
    turned = request("reconstruction", embedding=asked.embedding @ weights)
    assert np.abs(pixels(draw(through, asked)[0].image) - pixels(draw(plain, turned)[0].image)).max() <= 1
    assert draw(through, asked)[0].image != draw(plain, asked)[0].image


def test_another_autoencoder(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    path = shutil.copytree(folders["sd"], tmp_path / "copy" / "sd")
    tiny.save_pretrained(path / "tiny")
    shutil.rmtree(path / "model" / "vae")
    tier = DiffusionTier(opened({"sd": path}, tmp_path, vae="tiny"))
    assert isinstance(tier._pipe.vae, diffusers.AutoencoderTiny)
    result, _ = draw(tier, steps=1)
    asked = request("reconstruction")
    kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)[999]
    guess = predicted(tier, noise(asked.key), 999, torch.from_numpy(asked.embedding))
    clean = (noise(asked.key) - (1 - kept).sqrt() * guess) / kept.sqrt()
    wanted = (tiny.eval().decode(clean).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels(result.image) - wanted).max() <= 0.51


def test_half_precision_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """As published models have them; the autoencoder of SDXL overflows in half precision and is kept wide."""
    path = shutil.copytree(folders["xl"], tmp_path / "copy" / "xl")
    for part in ("unet", "vae"):
        kind = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
        network = kind.from_pretrained(path / "model" / part, low_cpu_mem_usage=False).half()
        (path / "model" / part / "diffusion_pytorch_model.safetensors").unlink()
        network.save_pretrained(path / "model" / part, variant="fp16")
    whole = DiffusionTier(opened(folders, tmp_path / "whole", "xl"))
    halved = DiffusionTier(opened({"xl": path}, tmp_path / "halved", "xl"))
    assert halved._pipe.unet.dtype == torch.float32
    assert np.abs(pixels(draw(whole)[0].image) - pixels(draw(halved)[0].image)).mean() < 2
    half = DiffusionTier(opened({"xl": path}, tmp_path / "half", "xl", dtype="float16"))
    assert (half._pipe.unet.dtype, half._pipe.vae.dtype) == (torch.float16, torch.float32)
    brain = DiffusionTier(opened(folders, tmp_path / "brain", "xl", dtype="bfloat16"))
    assert brain._pipe.unet.dtype == torch.bfloat16
    assert np.abs(pixels(draw(whole)[0].image) - pixels(draw(brain)[0].image)).mean() < 10


@pytest.mark.slow
def test_the_network_is_traced_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    """What a GPU compiles: adapter and all, no break in the graph, the same picture."""
    tier = DiffusionTier(opened(folders, tmp_path))
    before, _ = draw(tier, steps=2)
    tier._pipe.unet.compile(backend="eager", fullgraph=True)
    assert draw(tier, steps=2)[0].image == before.image


@pytest.mark.parametrize(
    "embedding",
    [np.full(DIM, np.nan, np.float32), np.full(DIM, -np.inf, np.float32), np.ones(DIM + 1, np.float32), np.ones(DIM)],
)
def test_refuses_embeddings(folders: dict[str, Path], tmp_path: Path, embedding: np.ndarray) -> None:
    tier = DiffusionTier(opened(folders, tmp_path))
    with pytest.raises(EngineError, match="embedding of 'img1'"):
        draw(tier, request("reconstruction", embedding=embedding))


def test_pictures_that_are_none(folders: dict[str, Path], tmp_path: Path) -> None:
    tier = DiffusionTier(opened(folders, tmp_path))
    tier._pipe.vae.post_quant_conv.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="NaN or infinity in its picture"):
        draw(tier)


def remove(name: str) -> Any:
    return lambda path: (path / name).unlink()


def write(name: str, data: bytes) -> Any:
    return lambda path: (path / name).write_bytes(data)


def rewrite(name: str, **change: Any) -> Any:
    def apply(path: Path) -> None:
        config = msgspec.json.decode((path / name).read_bytes()) | change
        (path / name).write_bytes(msgspec.json.encode(config))

    return apply


def tensors(name: str, arrays: dict[str, Tensor]) -> Any:
    return lambda path: safetensors.torch.save_file(arrays, path / name)


def lose(name: str) -> Any:
    def apply(path: Path) -> None:
        arrays = safetensors.torch.load_file(path / name)
        del arrays["conv_in.bias"]
        safetensors.torch.save_file(arrays, path / name, {"format": "pt"})

    return apply


def test_levels_of_a_network_may_differ_in_depth(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers has it so, where its own setting of an adapter's scale has not."""
    path = shutil.copytree(folders["sd"], tmp_path / "copy" / "sd")
    rewrite("model/unet/config.json", layers_per_block=[1, 1])(path)
    pictures = []
    for n, (of, scale) in enumerate(((path, 0.7), (folders["sd"], 0.7), (folders["sd"], 0.0))):
        tier = DiffusionTier(opened({"sd": of}, tmp_path / f"{n}", adapter_scale=scale))
        pictures.append(draw(tier)[0].image)
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("model/unet/config.json"), r"model model is not on this machine; got no .*unet/config\.json"),
        (remove("model/scheduler/scheduler_config.json"), r"no .*scheduler/scheduler_config\.json"),
        (remove("model/vae/config.json"), r"no .*vae/config\.json"),
        (remove("model/unet/diffusion_pytorch_model.safetensors"), "model model; got"),
        (rewrite("model/unet/config.json", block_out_channels=[16, 16]), "model model; got"),
        (rewrite("model/unet/config.json", layers_per_block=2), "model model; got"),
        (lose("model/unet/diffusion_pytorch_model.safetensors"), r"weights of model; got none for conv_in\.bias"),
        (rewrite("model/scheduler/scheduler_config.json", _class_name="UNet2DConditionModel"), "scheduler class"),
        (rewrite("model/scheduler/scheduler_config.json", prediction_type=[], trained_betas="a"), "scheduler of model"),
        (write("model/scheduler/scheduler_config.json", b"{"), "a scheduler's config"),
        (write("model/vae/config.json", b"\xff"), "an autoencoder of diffusers"),
        (write("model/unet/config.json", b"{"), "a folder of diffusers with a UNet2DConditionModel"),
        (write("empty.safetensors", b"x"), r"empty\.safetensors; got"),
        (write("adapter.safetensors", b"x"), r"adapter\.safetensors; got"),
        (tensors("adapter.safetensors", {"other.weight": torch.zeros(2)}), r"adapter\.safetensors; got 'other'"),
        (tensors("empty.safetensors", {"prompt": torch.zeros(1, 6, 12)}), r"prompt_embeds of empty.*got none"),
        (tensors("empty.safetensors", {"prompt_embeds": torch.zeros(2, 6, 12)}), r"got \(2, 6, 12\)"),
        (tensors("empty.safetensors", {"prompt_embeds": torch.zeros(1, 6, 10)}), "width 10; allowed: 12"),
    ],
)
def test_models_that_are_not_right(folders: dict[str, Path], tmp_path: Path, damage: Any, said: str) -> None:
    path = shutil.copytree(folders["sd"], tmp_path / "copy" / "sd")
    damage(path)
    changed = opened({"sd": path}, tmp_path)
    with pytest.raises(BundleError, match=said) as caught:
        DiffusionTier(changed)
    assert "\n" not in str(caught.value)


def test_adapters_and_conditioners_that_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(folders["sd"], tmp_path / "copy" / "sd")
    safetensors.torch.save_file(ip_adapter(path / "model", DIM + 2), path / "adapter.safetensors")
    with pytest.raises(BundleError, match=r"adapter\.safetensors; got 8; allowed: .* 6 dims"):
        DiffusionTier(opened({"sd": path}, tmp_path / "a"))
    wider = opened({"sd": path}, tmp_path / "b", conditioner="conditioner.onnx", weights=np.ones((DIM, DIM + 2)))
    assert draw(DiffusionTier(wider))[0].image
    xl = shutil.copytree(folders["xl"], tmp_path / "copy" / "xl")
    shutil.copy(folders["sd"] / "empty.safetensors", xl / "empty.safetensors")
    unpooled = opened({"xl": xl}, tmp_path / "c", "xl")
    with pytest.raises(BundleError, match="pooled_prompt_embeds"):
        DiffusionTier(unpooled)
