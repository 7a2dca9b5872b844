"""A generator from a run: built by the command, opened by the live side, every tier answers; which space it is for."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusers
import tiny_speakers
import tiny_store
import torch

from offline.cli import main
from offline.data.store import Item, Prepared
from offline.experiment import open_run, open_test
from offline.generation import prior
from offline.generation.loop import Steps
from offline.generation.source import Source
from offline.targets.store import Targets, compute
from streamdec.decode import bundle as bundles
from streamdec.decode.gallery import unit
from streamdec.decode.generate.generator import open_generator
from streamdec.decode.generate.job import Request
from streamdec.decode.generate.tiers.bank import BankTier
from streamdec.decode.generate.tiers.diffusion import DiffusionTier
from streamdec.decode.generate.tiers.latent import LatentTier
from streamdec.decode.generate.tiers.llm import LlmTier
from streamdec.errors import BundleError
from streamdec.types import Candidate

LATENTS = (4, tiny_diffusers.SIDE, tiny_diffusers.SIDE)
STEPS = "n_steps = 2\nbatch_size = 4\n"
EXPECTATION = "expectation = {n_inner = 8, steps = {n_steps = 2, batch_size = 4}}\n"
UNCHANGED = "rescale = false\nexpectation = {fit = false}\n"


class Turned:
    """What the responses follow from, by a random matrix."""

    def __init__(self, name: str, known: Targets, n: int, **provenance: object) -> None:
        self.name, self._known, self.provenance = name, known, provenance
        self._turn = np.random.default_rng(len(name)).standard_normal((known.rows().shape[1], n))

    def __call__(self, items, images):
        return (self._known.of(items) @ self._turn).astype(np.float32)


def compute_given(path: Path, items: list[Item], rows: np.ndarray) -> Path:
    known = tiny_store.Known({item.id: row for item, row in zip(items, rows, strict=True)})
    compute(known, items, path.parent, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, features, models, captions."""
    path = tmp_path_factory.mktemp("build")
    store = tiny_store.make(path / "store", noise=1.0)
    items = [item for part in store.meta.items.values() for item in part]
    known = Targets(path / "store-targets")
    for encoder in (
        Turned("clip", known, 256),
        Turned("plain", known, 5),
        Turned("latents", known, math.prod(LATENTS), latents=list(LATENTS)),
    ):
        compute(encoder, items, path, path / encoder.name)
    captions = {item.id: f"a {'red star' if i % 2 else 'blue ring'} {item.label}" for i, item in enumerate(items)}
    (path / "captions.json").write_text(json.dumps(captions))
    tiny_diffusers.stable_diffusion(path / "pipeline")
    tiny_speakers.speaker(path / "speaker")
    assert main(["fit", "ridge", str(path / "store"), str(path / "store-targets"), str(path / "run")]) == 0
    assert main(["export", str(path / "run"), str(path / "bundle.zip")]) == 0
    features = {role: Targets(path / role) for role in ("clip", "plain")}
    steps = Steps(n_steps=2, batch_size=4)
    small = prior.PriorSettings(n_dims=7, n_inner=5, n_projector=6, steps=steps)
    prior.fit(str(path / "pipeline"), features, Targets(path / "latents"), path / "prior", small)
    single = prior.PriorSettings(fuse=False, steps=steps)
    prior.fit(str(path / "pipeline"), {"plain": features["plain"]}, Targets(path / "latents"), path / "single", single)
    return path


BANK = '[bank]\ntext = "spelling"\nimages = "clip"\n'
LLM = '[llm]\nmodel = "speaker"\nright_only = false\nmin_tokens = 1\nmax_tokens = 6\n'
LLM += f"[llm.images]\n{STEPS}[llm.epochs]\n{STEPS}"
LATENT = '[latent]\nvae = "pipeline"\nlatents = "latents"\n'
HVF = '[diffusion]\nmodel = "pipeline"\nprior = "prior"\nsize = 16\nfeatures = {clip = "clip", plain = "plain"}\n'
DIRECT = '[diffusion]\nmodel = "pipeline"\nprior = "single"\nsize = 16\nfeatures = {plain = "plain"}\n'
ATM = "[diffusion.diffusion_prior]\nwidths = [8, 6]\nn_time = 4\nn_samples = 3\n"
ATM += f"[diffusion.diffusion_prior.steps]\n{STEPS}"


def build(folder: Path, out: Path, *parts: str, top: str = "", code: int = 0) -> Path:
    config = folder / f"{out.name}.toml"
    config.write_text(f'run = "run"\ncaptions = "captions.json"\n{top or EXPECTATION}' + "".join(parts))
    assert main(["generator", str(config), str(out)]) == code
    return out


def request(folder: Path, kind: str, epoch: bool = False) -> Request:
    store = Prepared(folder / "store").part("test")
    epochs = np.asarray(store.epochs[:1])
    embedding = open_run(folder / "run")[3](epochs)[0]
    given = epochs[0].copy() if epoch else None
    return Request(1, kind, "test0", 1, 0.0, 1.0, (Candidate("test0", "red star", 1.0, 0.5),), embedding, given)


def run(tier, asked: Request):
    return tier.run(asked, tier.units[1], math.inf, lambda: 0.0, lambda result, done: True)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    return build(folder, folder / "whole", BANK, LATENT, LLM, HVF)


def test_every_tier_answers(folder: Path, whole: Path) -> None:
    made = open_generator(whole, bundles.read(folder / "bundle.zip").manifest)
    assert made.manifest.simulated
    assert "Thought2Text" in made.manifest.citation
    said = BankTier(made).run(request(folder, "caption"))
    assert said.text.split()[0] == "a"
    assert 0 < said.probability <= 1
    written = run(LlmTier(made), request(folder, "caption"))
    assert written.wanted == 6
    for tier in (LatentTier(made), DiffusionTier(made)):
        assert run(tier, request(folder, "reconstruction")).image.startswith(b"\x89PNG")
    assert not (folder / "whole.parts").exists()


def test_it_names_no_folder_of_this_machine(folder: Path, whole: Path) -> None:
    assert str(folder) not in (whole / "generator.json").read_text()
    here = str(Path(__file__).parents[1]).encode()
    for path in whole.rglob("*.onnx"):
        assert here not in path.read_bytes(), path.name


def test_the_models_are_inside(whole: Path) -> None:
    assert (whole / "llm" / "config.json").is_file()
    assert {path.name for path in (whole / "diffusion").iterdir()} == {"unet", "scheduler", "vae"}


def test_conditioner_is_the_way_into_the_prior(folder: Path, whole: Path) -> None:
    """The length of images, a regression to the fused features, phi_c."""
    import onnxruntime

    source = Source(folder / "run")
    candidates = source.candidates()
    query, session = (
        onnxruntime.InferenceSession(whole / name, providers=["CPUExecutionProvider"])
        for name in ("query.onnx", "conditioner.onnx")
    )

    def condition(embedding: np.ndarray) -> np.ndarray:
        return session.run(None, {"embedding": query.run(None, {"embedding": embedding[None]})[0]})[0]

    opened = prior.Prior(folder / "prior")
    items = source.items
    fused = opened.fused({role: Targets(folder / role).of(items) for role in ("clip", "plain")})
    wanted = opened.network.projector(torch.from_numpy(fused)).numpy()
    found = np.concatenate([condition(row) for row in candidates])
    longer = np.concatenate([condition(3 * row) for row in candidates[:4]])
    np.testing.assert_allclose(found[:4], longer, rtol=1e-4, atol=1e-5)
    assert np.mean(np.sum(unit(found) * unit(wanted), axis=1)) > 0.8


def test_as_the_reference_draws(folder: Path, whole: Path) -> None:
    """Without phi_c: other conditions."""
    made = build(folder, folder / "skipping", HVF, "brain_through_adapter = false\n")
    assert (made / "conditioner.onnx").read_bytes() != (whole / "conditioner.onnx").read_bytes()


def test_captioned_pictures_bring_their_text_encoder(folder: Path) -> None:
    made = build(folder, folder / "captioned", LLM, HVF, "captioned = true\n")
    assert {path.name for path in (made / "diffusion").iterdir()} == {
        *("unet", "scheduler", "vae"),
        *("tokenizer", "text_encoder"),
    }
    opened = open_generator(made, bundles.read(folder / "bundle.zip").manifest)
    assert "2306.11536" in opened.manifest.citation
    assert run(DiffusionTier(opened), request(folder, "reconstruction")).image.startswith(b"\x89PNG")


@pytest.mark.parametrize(("lost", "got"), [("text_encoder", "tokenizer"), ("tokenizer", "text_encoder")])
def test_captioned_pictures_need_text_encoders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str, got: str
) -> None:
    name = f"without-{lost}"
    shutil.copytree(folder / "pipeline", folder / name)
    shutil.rmtree(folder / name / lost)
    drawn = HVF.replace('model = "pipeline"', f'model = "{name}"')
    out = build(folder, folder / f"{name}-out", LLM, drawn, "captioned = true\n", code=2)
    assert f"{name}; got {got}; allowed: tokenizer, text_encoder" in capsys.readouterr().err
    assert not (out.parent / f"{out.name}.parts" / "llm").exists(), "before anything is trained"


def test_captioned_pictures_need_a_language_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(folder, folder / "mute", HVF, "captioned = true\n", code=2)
    assert "diffusion captioned; got no llm" in capsys.readouterr().err


@pytest.mark.slow
def test_atm_and_direct(folder: Path) -> None:
    for name, more in (("atm", ATM), ("direct", "")):
        made = open_generator(build(folder, folder / name, DIRECT, more))
        picture = run(DiffusionTier(made), request(folder, "reconstruction"))
        assert picture.image.startswith(b"\x89PNG")
        assert ("2403.07721" in made.manifest.citation) == (name == "atm")


def test_embeddings_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(folder, folder / "raw", DIRECT, "bridge = false\n", code=2)
    assert "6 dims; allowed: 5 dims" in capsys.readouterr().err
    single = prior.PriorSettings(fuse=False, steps=Steps(n_steps=1, batch_size=4))
    wide = {"known": Targets(folder / "store-targets")}
    prior.fit(str(folder / "pipeline"), wide, Targets(folder / "latents"), folder / "known-single", single)
    given = (
        DIRECT.replace('"single"', '"known-single"').replace("{plain", "{known").replace('"plain"', '"store-targets"')
    )
    made = build(folder, folder / "raw", given, "bridge = false\n", top=UNCHANGED)
    manifest = open_generator(made).manifest
    assert manifest.query == manifest.diffusion.conditioner == ""


def test_other_images_than_those_shown(folder: Path) -> None:
    """The bank also knows the sentences of the training stimuli, whose epochs its scale is fitted on."""
    items = [Item(f"00001_red_star/{i}.png", "", "", "") for i in range(8)]
    rng = np.random.default_rng(5)
    more = Targets(compute_given(folder / "more", items, rng.standard_normal((8, 6), np.float32)))
    clip = compute_given(folder / "more-clip", items, more.rows() @ rng.standard_normal((6, 256), np.float32))
    captions = json.loads((folder / "captions.json").read_text()) | {item.id: "a pink cross" for item in items}
    (folder / "more.json").write_text(json.dumps(captions))
    config = folder / "more.toml"
    bank = f'[bank]\ntext = "spelling"\nimages = "{clip}"\n'
    config.write_text(f'run = "run"\ncaptions = "more.json"\n{EXPECTATION}images = {{image = "more"}}\n{bank}')
    assert main(["generator", str(config), str(folder / "of-more")]) == 0
    said = json.loads((folder / "of-more" / "bank.json").read_text())
    assert "a pink cross" in said
    assert captions["train0"] in said
    assert Source(folder / "run", {"image": more}).items[0].label == "red star"


def test_adapter_from_a_file(folder: Path) -> None:
    more = '[diffusion]\nmodel = "pipeline"\nadapter = "single/adapter.safetensors"\nsize = 16\n'
    made = build(folder, folder / "file", more, 'features = {plain = "plain"}\n', top="inside = false\n")
    opened = open_generator(made)
    assert opened.manifest.diffusion.model == str((folder / "pipeline").resolve())
    assert not (made / "diffusion").exists()
    run(DiffusionTier(opened), request(folder, "reconstruction"))


def test_latent_from_epochs(folder: Path) -> None:
    made = open_generator(build(folder, folder / "epochs", LATENT, 'reads = "epoch"\n'))
    assert run(LatentTier(made), request(folder, "reconstruction", epoch=True)).image.startswith(b"\x89PNG")


def test_another_space_is_refused(folder: Path, whole: Path) -> None:
    assert main(["fit", "ridge", str(folder / "store"), str(folder / "plain"), str(folder / "other")]) == 0
    assert main(["export", str(folder / "other"), str(folder / "other.zip")]) == 0
    with pytest.raises(BundleError, match="another bundle"):
        open_generator(whole, bundles.read(folder / "other.zip").manifest)


HVF_METHOD = """\
n_dims = 7
n_inner = 5
prior = "{prior}"
[validation]
share = 0.2
[schedule]
n_epochs_train = 1
batch_size = 30
"""


def test_brain_into_the_frozen_space(folder: Path, tmp_path: Path) -> None:
    """Runs of one prior share its space, and nothing lies between it and phi_c."""
    method = tmp_path / "hvf.toml"
    method.write_text(HVF_METHOD.format(prior=folder / "prior"))
    roles = ",".join(f"{role}={folder / role}" for role in ("clip", "plain"))
    spaces = []
    for seed in ("0", "1"):
        call = ["fit", "hvf", str(folder / "store"), roles, str(folder / f"hvf{seed}"), "--config", str(method)]
        assert main([*call, "--seed", seed]) == 0
        assert main(["export", str(folder / f"hvf{seed}"), str(folder / f"hvf{seed}.zip")]) == 0
        spaces.append(bundles.read(folder / f"hvf{seed}.zip").manifest.space)
    assert spaces[0] == spaces[1]
    candidates = Source(folder / "hvf0").candidates()
    items = Source(folder / "hvf0").items
    opened = prior.Prior(folder / "prior")
    fused = opened.fused({role: Targets(folder / role).of(items) for role in ("clip", "plain")})
    np.testing.assert_allclose(candidates, fused, rtol=1e-4, atol=1e-5)
    config = folder / "frozen.toml"
    config.write_text(f'run = "hvf0"\n{UNCHANGED}{HVF}')
    assert main(["generator", str(config), str(folder / "frozen")]) == 0
    made = open_generator(folder / "frozen", bundles.read(folder / "hvf1.zip").manifest)
    assert not [name for name in made.manifest.config["notes"] if name.startswith("diffusion")], "no map was needed"
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "frozen" / "conditioner.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"embedding": candidates[:1]})[0]
    np.testing.assert_allclose(found, opened.network.projector(torch.from_numpy(candidates[:1])), rtol=1e-4, atol=1e-4)


def test_inspect(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the heat maps, and the prompt as the language model gets it."""
    out = folder / "seen"
    assert main(["inspect", str(whole), str(folder / "run"), str(out)]) == 0
    assert "12 stimuli" in capsys.readouterr().out
    header, *lines = (out / "captions.tsv").read_text().splitlines()
    assert header.split("\t") == ["key", "label", "retrieved", "length", "cosine", "bank", "llm"]
    assert len(lines) == 12
    test = open_test(folder / "run")
    means, shown, _ = test.averaged()
    query = test.encode(means)[0]
    own = test.gallery.features[shown[0]]
    cells = lines[0].split("\t")
    assert float(cells[3]) == pytest.approx(np.linalg.norm(query), abs=1e-3)
    assert float(cells[4]) == pytest.approx(query @ own / np.linalg.norm(query), abs=1e-3)
    assert (out / "embeddings.png").read_bytes().startswith(b"\x89PNG")
    tokens = [line.split("\t") for line in (out / "tokens.tsv").read_text().splitlines()[1:]]
    assert [row[1] for row in tokens].count("image") == 1
    assert " ".join(row[2] for row in tokens if row[1] == "prompt").endswith("one sentence :")


def test_inspect_refuses_another_run(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "ridge", str(folder / "store"), str(folder / "plain"), str(folder / "third")]) == 0
    assert main(["inspect", str(whole), str(folder / "third"), str(folder / "no")]) == 2
    assert "another embedding space" in capsys.readouterr().err


def test_refusals(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(folder, whole, BANK, code=2)
    assert "exists" in capsys.readouterr().err
    build(folder, folder / "a", "[banc]\n", code=2)
    assert "banc" in capsys.readouterr().err
    build(folder, folder / "a", HVF.replace("plain = ", "other = "), code=2)
    assert "features for" in capsys.readouterr().err
    build(folder, folder / "a", HVF.replace('prior = "prior"\n', ""), code=2)
    assert "neither" in capsys.readouterr().err
    (folder / "some.json").write_text(json.dumps({"train0": "a star"}))
    config = folder / "some.toml"
    config.write_text(f'run = "run"\ncaptions = "some.json"\n{EXPECTATION}{BANK}')
    assert main(["generator", str(config), str(folder / "a")]) == 1
    assert "captions" in capsys.readouterr().err
    assert not (folder / "a").exists()


def test_the_example_config_is_right() -> None:
    from offline.generation.config import read

    made = read(Path(__file__).parents[1] / "configs" / "generators" / "generator.toml")
    assert made.llm is not None
    assert made.llm.images.batch_size == 64
    assert Path(made.run).is_absolute()
    assert made.diffusion is not None
    assert made.diffusion.model == "stabilityai/sdxl-turbo"


def test_the_demo_is_made_of_what_the_configs_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maker and the ablation write configs that are read."""
    from offline.generation.config import read
    from offline.methods.hvf import HvfSettings
    from streamdec.config import convert, read_toml

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    import ablate_prior
    import make_demo_full

    config = tmp_path / "config.toml"
    config.write_text(make_demo_full.PRIOR.format(n_dims=5, fuse="true", n_steps=5))
    assert convert(read_toml(config), prior.PriorSettings, "prior").steps.n_steps == 5
    config.write_text(make_demo_full.HVF.format(n_dims=5, prior="p"))
    assert convert(read_toml(config), HvfSettings, "hvf").prior == "p"
    config.write_text(make_demo_full.GENERATOR_TOML.format(models="/models", guidance=2.0, adapter_scale=0.5))
    assert read(config).run == str(tmp_path / "hvf")
    given = {"prior": "p", "features": 'clip = "c"', "through": "true", "bridge": "false"}
    config.write_text(ablate_prior.GENERATOR.format(model="m", guidance=2.0, **given))
    made = read(config)
    assert made.diffusion is not None
    assert not made.diffusion.bridge
