"""judge and results as they are called: figures that are known beforehand, controls, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_generator
import tiny_store
import torch
from PIL import Image

from offline import cli
from offline.data.store import Prepared
from offline.experiment import evaluate_run
from offline.judge import classifier, gauges, make, results, truth, verdict
from offline.judge.classifier import opened as classifier_opened
from offline.judge.gauges import Options
from offline.judge.results import Made
from streamdec.acquire.recording import Recording
from streamdec.decode import bundle as bundles
from streamdec.decode.generate.generator import open_generator, write_generator
from streamdec.decode.generate.spec import Bank, Diffusion, Generator, Latent, Llm
from streamdec.demo import DEMO_BUNDLE
from streamdec.errors import ConfigError, DataError
from streamdec.feed import schema
from streamdec.simulate.captions import ATTRIBUTES, Attributes, describe
from streamdec.simulate.world import World
from streamdec.types import Candidate

PIXELS = Options(frozenset({"PixCorr"}))


@pytest.fixture(scope="module")
def world() -> truth.Truth:
    whole = truth.open_truth("world")
    assert len(whole.training) == 4000
    return msgspec.structs.replace(whole, training=whole.training[::100])  # drawing more takes seconds


@pytest.fixture(scope="module")
def folder(world: truth.Truth, tmp_path_factory) -> Path:
    """Results of somebody who knows everything, but for the shape of one and the picture of another."""
    out = tmp_path_factory.mktemp("results")
    keys = list(world.labels)[::25]
    made = []
    for n, key in enumerate(keys):
        shown = world.attributes[key]
        said = msgspec.structs.replace(shown, shape="star" if shown.shape != "star" else "disc") if n == 3 else shown
        made.append(Made("knows", key, world.labels[key], describe(said, n % 5)))
        picture = world.image(key) if n != 5 else 255 - world.image(key)
        Image.fromarray(picture).save(out / f"{n}.png")
        made.append(Made("draws", key, world.labels[key], picture=out / f"{n}.png"))
    results.write(out, made)
    return out


def of(found: verdict.Verdict, by: str, control: str = "", kind: str = "") -> dict[str, float]:
    (one,) = [one for one in found.judgements if (one.by, one.control) == (by, control) and kind in ("", one.kind)]
    return {name: figure.value for name, figure in one.figures.items()}


def test_known_figures_and_controls(folder: Path, world: truth.Truth) -> None:
    made = results.read(folder)
    found = verdict.judge(
        [one for one in made if one.by == "knows"], world, Options(frozenset({"attributes", "BLEU-1"}))
    )
    assert found.simulated
    knows = of(found, "knows")
    assert knows["shape"] == 7 / 8
    assert knows["colour"] == knows["place"] == 1
    assert knows["attributes"] == pytest.approx(1 - 1 / 56)
    named = of(found, "", "label only")
    assert all(named[name] == 1 for name in ("shape", "colour", "texture", "layout"))
    assert all(named[name] == 0 for name in ("size", "place", "ground"))
    shuffled = of(found, "knows", "shuffled")
    assert shuffled["attributes"] < 0.5
    found = verdict.judge(made, world, Options(frozenset({"PixCorr", "SSIM"})))
    drawn = of(found, "draws")
    assert drawn["PixCorr"] == pytest.approx(6 / 8)
    assert of(found, "", "stimulus itself") == pytest.approx({"PixCorr": 1, "SSIM": 1})
    for control in ("draws", "shuffled"), ("", "mean image"), ("", "wrong image"):
        assert of(found, *control)["PixCorr"] < drawn["PixCorr"] - 0.3
        assert of(found, *control)["SSIM"] < drawn["SSIM"]


def test_repeats_are_averaged_within_a_stimulus(folder: Path, world: truth.Truth) -> None:
    made = [one for one in results.read(folder) if one.picture]
    turned = [
        msgspec.structs.replace(one, picture=other.picture)
        for one, other in zip(made, made[1:] + made[:1], strict=True)
    ]
    once = of(verdict.judge(made, world, PIXELS), "draws")
    again = of(verdict.judge(turned, world, PIXELS), "draws")
    both = verdict.judge([*made, *turned], world, PIXELS)
    assert of(both, "draws")["PixCorr"] == pytest.approx((once["PixCorr"] + again["PixCorr"]) / 2)
    assert {one.n_repeats for one in both.judgements if one.by} == {2}
    with pytest.raises(DataError, match=r"results by draws; got 1 for .*; allowed: as many .*: 2"):
        verdict.judge([*made, *turned[:-1]], world, PIXELS)


def test_the_error_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).uniform(size=(3, 7))
    figure = verdict._figure(list(values))
    assert figure.value == pytest.approx(values.mean())
    assert figure.error == pytest.approx(np.std(values.mean(0), ddof=1) / np.sqrt(7))


@pytest.mark.parametrize("n", [2, 3, 50])
def test_nobody_keeps_his_own(n: int) -> None:
    order = verdict.shuffle(n)
    assert sorted(order) == list(range(n))
    assert np.all(order != np.arange(n))


def test_attributes_count_what_is_said() -> None:
    shown = [Attributes("ring", "red", "plain", "pair", "large", "left", "dark")] * 2
    said = [Attributes("ring", "blue", None, "pair", "large", "left"), Attributes()]
    hits = gauges.attribute_hits(said, shown)
    assert hits["attributes"].tolist() == pytest.approx([4 / 7, 0])
    assert {name for name in ATTRIBUTES if hits[name].any()} == {"shape", "layout", "size", "place"}
    assert hits["shape"].tolist() == [1, 0]


def test_wrong_images_are_of_other_concepts(world: truth.Truth) -> None:
    keys = list(world.labels)[:3]
    few = msgspec.structs.replace(
        world, training=tuple((world.concepts[key], lambda k=key: world.image(k)) for key in keys)
    )
    wrong = few.wrong_images(keys)
    right = few.pictures(keys)
    assert not any(np.array_equal(one, other) for one, other in zip(wrong, right, strict=True))
    mean = few.mean_image()
    assert mean == pytest.approx(right.mean(0), abs=0.51)
    with pytest.raises(DataError, match="none of another concept"):
        msgspec.structs.replace(few, training=few.training[:1]).wrong_images(keys)


def test_what_cannot_be_had_is_named(folder: Path, world: truth.Truth, monkeypatch, tmp_path) -> None:
    made = results.read(folder)
    found = verdict.judge(made, world, Options(weights=tmp_path, bert=str(tmp_path)))
    assert "alexnet-owt-7be5be79.pth" in found.missing["AlexNet(2), AlexNet(5)"]
    assert set(found.missing) >= {"Inception", "CLIP", "EfficientNet", "SwAV", "BERTScore"}
    assert {"BLEU-4", "ROUGE-L"} <= of(found, "knows").keys()
    with pytest.raises(ConfigError, match="inception_v3_google"):
        verdict.judge(made, world, Options(frozenset({"Inception"}), weights=tmp_path))
    with pytest.raises(ConfigError, match=r"figure; got FID; allowed: BLEU-1"):
        verdict.judge(made, world, Options(frozenset({"FID"})))
    with pytest.raises(DataError, match=r"stimulus 'moon'"):
        verdict.judge([*made, Made("knows", "moon", "", "a moon")], world)
    with pytest.raises(DataError, match="nothing to judge"):
        verdict.judge(made[:1], world)


def test_tables_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    assert len(results.read(folder)) == 16
    for text, told in [
        ("key\tcaption\n", "columns key, caption"),
        ("by\tkey\tlabel\tcaption\tpicture\nx\ty\n", "line 2; got 2 columns"),
        ("by\tkey\tlabel\tcaption\tpicture\nx\ty\t\t\t../a.png\n", "a picture inside the folder"),
        ("by\tkey\tlabel\tcaption\tpicture\nx\t\t\tz\t\n", "line 2"),
        ("", "results"),
    ]:
        (tmp_path / "results.tsv").write_text(text)
        with pytest.raises(DataError, match=told):
            results.read(tmp_path)
    (tmp_path / "results.tsv").unlink()
    with pytest.raises(DataError, match=r"a folder with results\.tsv"):
        results.read(tmp_path)
    with pytest.raises(ConfigError, match="world:SEED"):
        truth.open_truth("world:x")
    with pytest.raises(ConfigError, match="captions of the world"):
        truth.open_truth("world", tmp_path / "captions.tsv")


def test_judge_as_it_is_called(folder: Path, tmp_path: Path, world: truth.Truth, monkeypatch, capsys) -> None:
    monkeypatch.setattr(truth, "open_truth", lambda name, captions: world)
    call = ["judge", str(folder), "--truth", "world", "--figures", "BLEU-1,PixCorr", "--out", str(tmp_path / "j.json")]
    assert cli.main(call) == 0
    shown = capsys.readouterr().out
    assert "captions of simulated data world 0" in shown
    assert "pictures of simulated data world 0" in shown
    found = msgspec.json.decode((tmp_path / "j.json").read_bytes(), type=verdict.Verdict)
    assert of(found, "draws")["PixCorr"] == pytest.approx(6 / 8)
    assert cli.main([*call[:4], "--figures", "SwAV", "--weights", str(tmp_path)]) == 2
    assert "swav_800ep_pretrain.pth.tar" in capsys.readouterr().err
    assert cli.main([*call[:-1], str(tmp_path / "none" / "j.json")]) == 1


def test_a_store_as_truth(tmp_path: Path) -> None:
    tiny_store.make(tmp_path / "store")
    store = truth.open_truth(str(tmp_path / "store"))
    keys = list(store.labels)
    made = [Made("says", key, caption="a thing") for key in keys]
    with pytest.raises(DataError, match="give a table of them: --captions"):
        verdict.judge(made, store, Options(frozenset({"BLEU-1"})))
    with pytest.raises(DataError, match=r"unknown; allowed: stimuli of the procedural world"):
        verdict.judge(made, store, Options(frozenset({"attributes"})))
    table = tmp_path / "captions.tsv"
    table.write_text("id\tcaption\n" + "".join(f"{key}\ta thing\n" for key in keys))
    told = truth.open_truth(str(tmp_path / "store"), table)
    assert of(verdict.judge(made, told, Options(frozenset({"BLEU-1"}))), "says")["BLEU-1"] == 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[bundles.Bundle, Path]:
    """The demo's bundle, and a generator for it whose models were never trained."""
    bundle = bundles.read(DEMO_BUNDLE, live=False)
    head = bundle.manifest.heads[-1]
    folder = tmp_path_factory.mktemp("generator")
    rng = np.random.default_rng(0)
    tiny_generator.language_model(folder / "lm", "gpt2", tiny_generator.ENDED)
    tiny_generator.linear(folder / "projector.onnx", rng.normal(0, 0.5, (head.dim, 16)), (1, 16))
    tiny_generator.linear(folder / "latent.onnx", rng.normal(0, 0.1, (head.dim, 3 * 64)), (3, 8, 8))
    tiny_generator.diffusion_generator(folder, width=head.dim)
    import safetensors.numpy

    safetensors.numpy.save_file(
        {"features": rng.normal(size=(5, head.dim)).astype(np.float32)}, folder / "bank.safetensors"
    )
    (folder / "bank.json").write_bytes(
        msgspec.json.encode([f"a {colour} ring" for colour in ("red", "blue", "pink", "teal", "green")])
    )
    about = {"citation": "", "created": "", "commit": "", "config": {}, "seeds": (0,), "data": "", "simulated": True}
    write_generator(
        folder,
        Generator(
            space="tiny",
            dim=head.dim,
            bank=Bank("bank.safetensors", "bank.json", 1.0),
            llm=Llm("lm", "projector.onnx", min_tokens=1, max_tokens=4),
            latent=Latent("latent.onnx"),
            diffusion=Diffusion(
                model="model", adapter="adapter.safetensors", prompt="empty.safetensors", size=16, max_steps=3
            ),
            **about,
        ),
    )
    return bundle, folder


def test_every_tier_answers_every_stimulus(tiny: tuple[bundles.Bundle, Path], tmp_path: Path, world) -> None:
    bundle, folder = tiny
    requests = make.demo_subject(bundle, 3, 2)
    ids = World(0).ids("test")
    assert [request.key for request in requests] == [ids[0], ids[100], ids[199]]
    assert {request.repetitions for request in requests} == {2}
    made = make.make(requests, bundle, open_generator(folder), tmp_path / "out", steps=(1, 3))
    assert list(dict.fromkeys(one.by for one in made)) == [
        "bank", "llm", "llm without EEG", "nearest", "latent", "diffusion 1", "diffusion 3", "diffusion without EEG",
    ]  # fmt: skip
    assert len(made) == 24
    read = results.read(tmp_path / "out")
    assert [(one.by, one.key, one.label, one.caption) for one in read] == [
        (one.by, one.key, one.label, one.caption) for one in made
    ]
    assert len({one.caption for one in made if one.by == "llm without EEG" and one.label == made[0].label}) == 1
    found = verdict.judge(read, world, PIXELS)
    assert {one.n_stimuli for one in found.judgements} == {3}
    with pytest.raises(ConfigError, match="holds something"):
        make.make(requests, bundle, open_generator(folder), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"diffusion steps; got 9; allowed: 1\.\.3"):
        make.make(requests, bundle, open_generator(folder), tmp_path / "more", steps=(9,))
    for n, repetitions in ((0, 2), (201, 2), (3, 0)):
        with pytest.raises(ConfigError):
            make.demo_subject(bundle, n, repetitions)


def test_the_worlds_own_judge(world: truth.Truth, tmp_path: Path, monkeypatch) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    labels = [f"{name}={value}" for name, values in ATTRIBUTES.items() for value in values]
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    network = ResNetForImageClassification(
        ResNetConfig(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}, **sizes)
    ).eval()
    network.save_pretrained(tmp_path)
    keys = list(world.labels)[:3]
    shown, features = classifier_opened(folder=tmp_path)(world.pictures(keys))
    pixels = torch.from_numpy(world.pictures(keys)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        logits = network(pixels).logits.numpy()
        inner = network.resnet(pixels).last_hidden_state.mean((2, 3)).numpy()
    start = 0
    for name, values in ATTRIBUTES.items():
        best = logits[:, start : start + len(values)].argmax(1)
        assert [getattr(one, name) for one in shown] == [values[i] for i in best]
        start += len(values)
    assert features == pytest.approx(inner, abs=1e-5)
    monkeypatch.setattr(classifier, "opened", lambda device: classifier_opened(folder=tmp_path))
    nearest = [Made("nearest", key, source=key) for key in keys]
    found = of(verdict.judge(nearest, world, Options(frozenset({"two-way"}))), "nearest")
    assert found["two-way"] == 1
    assert {"attributes", *ATTRIBUTES} < found.keys()
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a judge of other attributes"):
        classifier_opened(folder=tmp_path)


def test_a_recorded_session(world: truth.Truth, monkeypatch) -> None:
    keys = list(world.labels)[:3]
    timing = schema.GenerationTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, deadline_met=True)
    about = {"onset_time": 0.0, "units": 1, "wanted": 1, "worker": "", "probability": None, "timing": timing}

    def caption(key: str, text: str, repetitions: int, *, partial: bool = False) -> schema.Caption:
        return schema.Caption(key=key, text=text, tier="llm", repetitions=repetitions, partial=partial, **about)

    messages: list[schema.AnyMessage] = [
        schema.Retrieval(
            key=keys[0], onset_time=0.0, residual=0.0, horizon=1.0, final=True, repetitions=1,
            candidates=(Candidate(keys[1], "blue thing", 0.5, 0.5),), gallery_size=3, rank=1, stop=False,
            timing=schema.Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, deadline_met=True),
        ),
        caption(keys[0], "old", 1),
        caption(keys[0], "new so f", 2, partial=True),
        caption(keys[0], "new", 2),
        caption(keys[1], "other", 1),
        schema.Reconstruction(key=keys[0], source=keys[1], tier="nearest", repetitions=2, partial=False, **about),
        schema.Reconstruction(key=keys[0], source="", tier="latent", repetitions=2, partial=False, **about),
    ]  # fmt: skip
    feed = tuple(msgspec.json.encode(message).decode() for message in messages)
    recorded = Recording(Path("session.xdf"), (), feed=feed)
    monkeypatch.setattr(results, "read_recording", lambda path: recorded)
    assert results.read(Path("session.xdf")) == [
        Made("llm", keys[0], "blue thing", "new"),
        Made("llm", keys[1], "", "other"),
        Made("nearest", keys[0], "blue thing", source=keys[1]),
    ]
    found = verdict.judge(results.read(Path("session.xdf")), world, Options(frozenset({"BLEU-1", "PixCorr"})))
    assert [(one.by, one.control) for one in found.judgements] == [("llm", ""), ("llm", "shuffled")]
    assert found.missing["nearest"] == "results for one stimulus only"
    monkeypatch.setattr(results, "read_recording", lambda path: Recording(path, (), feed=feed[:1]))
    with pytest.raises(DataError, match="record one with a generator"):
        results.read(Path("session.xdf"))


def test_requests_of_a_store_are_what_the_evaluator_sees(tmp_path: Path) -> None:
    tiny_store.make(tmp_path / "store", noise=15.0)
    call = ["fit", "ridge", tmp_path / "store", tmp_path / "store-targets", tmp_path / "run"]
    assert cli.main([str(word) for word in call]) == 0
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "bundle.zip")]) == 0
    bundle = bundles.read(tmp_path / "bundle.zip", live=False)
    requests = make.of_store(bundle, Prepared(tmp_path / "store"))
    found = evaluate_run(tmp_path / "run").averaged
    assert found is not None
    assert len(requests) == found.n_queries
    assert {request.repetitions for request in requests} == {found.repetitions}
    assert np.mean([request.candidates[0].id == request.key for request in requests]) == found.top1
    assert all(sum(one.probability for one in request.candidates) <= 1 + 1e-6 for request in requests)
    with pytest.raises(DataError, match="of the bundle"):
        make.of_store(bundles.read(DEMO_BUNDLE), Prepared(tmp_path / "store"))
