"""Target encoders that run a network: each against the library called directly, on tiny models with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.data.store import Item
from offline.targets.images import Images
from offline.targets.openclip import load
from offline.targets.registry import encoder
from offline.targets.store import Targets, compute
from streamdec.errors import ConfigError, EngineError
from streamdec.simulate.captions import attributes, describe
from streamdec.simulate.world import World

torch = pytest.importorskip("torch", reason="torch comes with the train extra")
image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
open_clip = pytest.importorskip("open_clip", reason="open_clip comes with the train extra")
transformers = pytest.importorskip("transformers", reason="transformers comes with the train extra")
import tiny_models  # noqa: E402 - needs transformers

LABELS = ("cat", "dog", "eagle", "a photo of the dog")
ITEMS = [Item(f"i{i}", label, label, f"{i}.png") for i, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(len(ITEMS)):
        pixels = rng.random((70 + 9 * i, 90, 3)) * (60 * i, 255 - 60 * i, 128)
        image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def opened(pictures) -> list[object]:
    return [image.open(pictures / item.image).convert("RGB") for item in ITEMS]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def ours(models) -> tuple[Path, torch.nn.Module, object]:
    """A checkpoint of the tiny ViT, the network it is from, and its image preparation."""
    encoder("open_clip:tiny/random", ITEMS)  # tells open_clip of the name
    torch.manual_seed(7)
    network, _, transform = open_clip.create_model_and_transforms("tiny", pretrained=None)
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, models / "tiny.safetensors")
    return models / "tiny.safetensors", network.eval(), transform


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3  # the items differ


def test_open_clip_towers(ours, opened, pictures) -> None:
    path, network, transform = ours
    with torch.inference_mode():
        seen = network.encode_image(torch.stack([transform(one) for one in opened]))
        read = network.encode_text(open_clip.get_tokenizer("tiny")([f"This picture is {label}" for label in LABELS]))
    close(encoder(f"open_clip:tiny/{path}", ITEMS)(ITEMS, Images(pictures)), seen)
    text = encoder(f"open_clip_text:tiny/{path}@template=This picture is {{label}}", ITEMS)
    close(text(ITEMS, Images(pictures)), read)
    assert text.provenance["text"] == {"template": "This picture is {label}"}
    with pytest.raises(ConfigError, match=r"allowed: none published; random; or a file"):
        encoder("open_clip:tiny/laion2b", ITEMS)


@pytest.mark.parametrize("layer", [1, 4])
def test_open_clip_layers(ours, opened, pictures, layer: int) -> None:
    path, network, transform = ours
    kept = []
    hook = network.visual.transformer.resblocks[layer - 1].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    with torch.inference_mode():
        network.encode_image(torch.stack([transform(one) for one in opened]))
    hook.remove()
    tokens = kept[0] if kept[0].shape[0] == len(ITEMS) else kept[0].transpose(0, 1)
    close(encoder(f"open_clip:tiny/{path}@layer={layer}", ITEMS)(ITEMS, Images(pictures)), tokens[:, 0])
    mean = encoder(f"open_clip:tiny/{path}@layer={layer}@pool=mean", ITEMS)
    close(mean(ITEMS, Images(pictures)), tokens[:, 1:].mean(1))


def test_open_clip_layer_that_is_not_there(ours) -> None:
    with pytest.raises(ConfigError, match=r"got 5; allowed: 1\.\.4"):
        encoder(f"open_clip:tiny/{ours[0]}@layer=5", ITEMS)
    with pytest.raises(ConfigError, match=r"class.*mean|Invalid enum value"):
        encoder(f"open_clip:tiny/{ours[0]}@layer=2@pool=most", ITEMS)


def test_random_weights_are_the_same_each_time(pictures) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = encoder("open_clip:tiny/random", ITEMS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = encoder("open_clip:tiny/random", ITEMS)
    np.testing.assert_array_equal(first(ITEMS, Images(pictures)), again(ITEMS, Images(pictures)))
    assert first.provenance["weights"] == "random, seed 0"


def test_the_trained_one_has_the_sizes_of_the_random_one_and_knows_its_world(pictures) -> None:
    """So that tables may put one in the other's place, and what is prompted means something."""
    made = {name: encoder(f"open_clip:tiny/{name}", ITEMS) for name in ("random", "world")}
    assert made["random"](ITEMS, Images(pictures)).shape == made["world"](ITEMS, Images(pictures)).shape
    tokens = [encoder(f"tokens:tiny/{name}", ITEMS)(ITEMS, Images(pictures)) for name in made]
    assert tokens[0].shape == tokens[1].shape
    world, loaded = World(0), load("tiny", "world")
    shown = world.images("test", range(20))
    said = [describe(attributes(world.concept("test", i), world.look("test", i))) for i in range(20)]
    with torch.no_grad():
        batch = torch.stack([loaded.transform(image.fromarray(one)) for one in shown])
        seen = loaded.network.encode_image(batch, normalize=True)
        texts = loaded.network.encode_text(loaded.tokenize(said), normalize=True)
    assert int(((seen @ texts.T).argmax(1) == torch.arange(20)).sum()) >= 18


def test_a_file_in_place_of_a_tag_keeps_what_the_tag_says(ours, monkeypatch) -> None:
    tag = {"url": "https://example.org/w.pt", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    tag |= {"interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"ours": tag})
    made = encoder(f"open_clip:tiny/ours@file={ours[0]}", ITEMS)
    assert made.provenance["weights"] == "ours"
    assert made.provenance["file"].startswith("sha256:")
    assert "mean=(0.1, 0.2, 0.3)" in made.provenance["preprocess"]
    assert "bilinear" in made.provenance["preprocess"]
    activation = made._loaded.network.visual.transformer.resblocks[0].mlp.gelu
    assert type(activation).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", r"huggingface\.co/laion/CLIP-ViT-B-32.*ViT-B-32/laion2b.*@file=PATH"),
        ("open_clip_text:ViT-B-32/openai", r"@file=PATH"),
        ("transformers:facebook/dinov2-base", r"'hf download facebook/dinov2-base --local-dir FOLDER'"),
        ("transformers_text:google-bert/bert-base-uncased", r"hf download google-bert/bert-base-uncased"),
        pytest.param(
            "vae:stabilityai/sdxl-vae",
            r"hf download stabilityai/sdxl-vae",
            # diffusers 0.42 gives huggingface_hub 2 an argument that it no longer has
            marks=pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument"),
        ),
    ],
)
def test_no_network_for_weights(name: str, said: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if name.startswith("vae"):
        pytest.importorskip("diffusers", reason="diffusers comes with the generate extra")
    with pytest.raises(ConfigError, match=said) as error:
        encoder(name, ITEMS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cuda:77", "nothing"])
def test_no_such_device(models, device: str) -> None:
    folder = tiny_models.clip_vision(models / "clip_vision")
    for name in ("open_clip:tiny/random", f"transformers:{folder}"):
        with pytest.raises(ConfigError, match=f"device {device}"):
            encoder(name, ITEMS, device)


@pytest.mark.parametrize("kind", ["open_clip:tiny/", "tokens:tiny/"])
def test_damaged_weights_file(kind: str, tmp_path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ConfigError, match="give another file"):
        encoder(f"{kind}{tmp_path / 'weights.safetensors'}", ITEMS)


def test_tokens_are_those_of_filtered_images(ours, opened, pictures, tmp_path) -> None:
    """And their weighted sum is the token of the image seen through the weighted sum of filters."""
    path, network, transform = ours
    compute(encoder(f"tokens:tiny/{path}", ITEMS), ITEMS, pictures, tmp_path / "tokens", batch=3)
    found = Targets(tmp_path / "tokens").of(ITEMS)
    assert found.shape == (4, 4, 16, 64)
    assert found.dtype == np.float16
    batch = torch.stack([transform(one) for one in opened])
    with torch.inference_mode():
        plain = network.visual.conv1(batch).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(found[:, 0].astype(np.float32), plain.numpy(), rtol=2e-3, atol=2e-3)
    from scipy.ndimage import gaussian_filter

    filtered = [
        gaussian_filter(batch.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, 3 * sigma, 3 * sigma))
        for sigma in (0, 2, 4, 8)
    ]
    share = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    mixed = torch.from_numpy(np.tensordot(share, np.stack(filtered), 1).astype(np.float32))
    with torch.inference_mode():
        expected = network.visual.conv1(mixed).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(np.einsum("k,nkpd->npd", share, found), expected.numpy(), rtol=5e-3, atol=5e-3)


def test_tokens_need_a_vision_transformer() -> None:
    with pytest.raises(ConfigError, match="vision transformers"):
        encoder("tokens:RN50/random", ITEMS)


def test_transformers_clip(models, opened, pictures) -> None:
    folder = tiny_models.clip(models / "clip")
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)(images=opened, return_tensors="pt").pixel_values
    words = transformers.AutoTokenizer.from_pretrained(folder)(list(LABELS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = network(pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask)
        states = network.vision_model(pixels, output_hidden_states=True).hidden_states
        projected = network.visual_projection(network.vision_model(pixels).pooler_output)
        read = network.text_projection(network.text_model(words.input_ids, words.attention_mask).pooler_output)
    made = encoder(f"transformers:{folder}", ITEMS)(ITEMS, Images(pictures))
    close(made, projected)
    np.testing.assert_allclose(made / np.linalg.norm(made, axis=1, keepdims=True), seen.image_embeds, atol=1e-5)
    close(encoder(f"transformers_text:{folder}", ITEMS)(ITEMS, Images(pictures)), read)
    close(encoder(f"transformers:{folder}@layer=1", ITEMS)(ITEMS, Images(pictures)), states[1][:, 0])
    close(encoder(f"transformers:{folder}@layer=0@pool=mean", ITEMS)(ITEMS, Images(pictures)), states[0].mean(1))
    with pytest.raises(ConfigError, match=r"got 4; allowed: 0\.\.3"):
        encoder(f"transformers:{folder}@layer=4", ITEMS)


def test_transformers_vision_tower_keeps_its_projection(models, opened, pictures) -> None:
    folder = tiny_models.clip_vision(models / "clip_vision")
    network = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)(images=opened, return_tensors="pt").pixel_values
    with torch.inference_mode():
        close(encoder(f"transformers:{folder}", ITEMS)(ITEMS, Images(pictures)), network(pixels).image_embeds)


def test_transformers_never_pools_by_random_weights(models, opened, pictures) -> None:
    folder = tiny_models.classifier(models / "classifier")
    network = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=opened, return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = network.vit(pixels).last_hidden_state[:, 0]
    close(encoder(f"transformers:{folder}", ITEMS)(ITEMS, Images(pictures)), expected)


def test_transformers_refuses_weights_that_are_not_all_there(models, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_models.clip_vision(tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"got none for visual_projection\.weight"):
        encoder(f"transformers:{folder}", ITEMS)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="look into the folder"):
        encoder(f"transformers:{folder}", ITEMS)


def test_transformers_text_is_the_mean_over_its_tokens(models, pictures) -> None:
    folder = tiny_models.bert(models / "bert")
    network = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():  # one by one: no padding
        expected = [network(**tokenizer(label, return_tensors="pt")).last_hidden_state[0].mean(0) for label in LABELS]
    close(encoder(f"transformers_text:{folder}", ITEMS)(ITEMS, Images(pictures)), torch.stack(expected))


def test_vae_latents(models, opened, pictures) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the generate extra")
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision comes with the train extra")
    folder = tiny_models.vae(models / "vae")
    network = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(128, bicubic), transforms.CenterCrop(128), transforms.ToTensor()]
    prepare = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)])
    with torch.inference_mode():
        latents = network.encode(torch.stack([prepare(one) for one in opened])).latent_dist.mode() * 0.13025
    made = encoder(f"vae:{folder}", ITEMS)
    assert made.provenance["latents"] == [4, 16, 16]
    found = made(ITEMS, Images(pictures))
    assert found.shape == (4, 1024)
    close(found, latents.flatten(1))
    assert encoder(f"vae:{folder}@size=64", ITEMS)(ITEMS, Images(pictures)).shape == (4, 256)
    with pytest.raises(ConfigError, match="multiples of 8"):
        encoder(f"vae:{folder}@size=100", ITEMS)


@pytest.mark.parametrize("name", ["open_clip:tiny/random", "open_clip_text:tiny/random", "tokens:tiny/random"])
def test_out_of_memory_says_the_batch_that_fits(name: str, pictures, tmp_path, monkeypatch) -> None:
    made = encoder(name, ITEMS)
    inner = "_filtered" if name.startswith("tokens") else "_encode"
    real, most = getattr(made, inner), 2

    def small(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(batch)

    monkeypatch.setattr(made, inner, small)
    with pytest.raises(EngineError, match=r"out of memory on cpu; got batch 4: CUDA out of memory; --batch 2 fits"):
        compute(made, ITEMS, pictures, tmp_path)
    assert compute(made, ITEMS, pictures, tmp_path, batch=2).fingerprint
    most = 0
    with pytest.raises(EngineError, match="smaller model"):
        made(ITEMS, Images(pictures))


def test_open_clip_from_a_folder(tmp_path: Path, pictures: Path) -> None:
    """Config, weights and tokenizer of one's own: what open_clip calls local-dir."""
    import json

    from safetensors.torch import save_file

    tiny = Path(__file__).parents[1] / "offline" / "targets" / "tiny.json"
    folder = tmp_path / "own"
    tiny_models.bert(folder)  # for its tokenizer
    for left in ("config.json", "model.safetensors"):
        (folder / left).unlink()
    config = json.loads(tiny.read_text())
    size = config["vision_cfg"]["image_size"]
    config["text_cfg"] |= {"hf_tokenizer_name": "own", "vocab_size": 64}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": size}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    network = open_clip.CLIP(**config)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    made = encoder(f"open_clip:{folder}", ITEMS, "cpu")(ITEMS, Images(pictures))
    assert made.shape == (len(ITEMS), config["embed_dim"])
    said = encoder(f"open_clip_text:{folder}", ITEMS, "cpu")(ITEMS, Images(pictures))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(LABELS))
    with torch.no_grad():
        np.testing.assert_allclose(said, network.eval().encode_text(tokens), atol=1e-5)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="open_clip model"):
        encoder(f"open_clip:{folder}", ITEMS, "cpu")
