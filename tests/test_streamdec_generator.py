"""Generator folders: what is written is read back; nothing damaged, changed or for another bundle is opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import write_bundle
from tiny_generator import DIM, bank_generator, generator, linear

from streamdec.decode import bundle
from streamdec.decode.generate.generator import OpenGenerator, open_generator, write_generator
from streamdec.decode.generate.spec import Bank, Diffusion, Generator, Latent, Llm
from streamdec.errors import BundleError


@pytest.fixture
def whole(tmp_path: Path) -> OpenGenerator:
    return bank_generator(tmp_path / "made", np.eye(DIM), [f"sentence {i}" for i in range(DIM)])


def changed(opened: OpenGenerator, **change: Any) -> Path:
    """The same folder, its manifest changed."""
    manifest = json.loads((opened.path / "generator.json").read_bytes()) | change
    (opened.path / "generator.json").write_text(json.dumps(manifest))
    return opened.path


def test_round_trip(whole: OpenGenerator) -> None:
    again = open_generator(whole.path)
    assert again.manifest == whole.manifest
    assert again.hash == whole.hash == hashlib.sha256((whole.path / "generator.json").read_bytes()).hexdigest()
    assert again.manifest.files == {
        name: hashlib.sha256((whole.path / name).read_bytes()).hexdigest() for name in ("bank.json", "bank.safetensors")
    }
    assert again.read("bank.json") == (whole.path / "bank.json").read_bytes()
    with pytest.raises(BundleError, match="generator made: a file is missing"):
        again.read("generator.json")


def test_written_again_it_is_the_same(whole: OpenGenerator) -> None:
    assert write_generator(whole.path, whole.manifest).hash == whole.hash


def flip(path: Path) -> None:
    data = bytearray((path / "bank.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "bank.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "bank.safetensors; got sha256"),
        (lambda path: (path / "bank.json").unlink(), "a file is missing; got bank.json"),
        (lambda path: (path / "more.onnx").write_bytes(b"1"), "does not list; got more.onnx"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "link; got a link or special file"),
        (lambda path: os.mkfifo(path / "pipe"), "pipe; got a link or special file"),
        (lambda path: (path / "generator.json").unlink(), "it is no generator; got no generator.json"),
        (lambda path: (path / "generator.json").write_text("{"), "generator.json; got"),
        (shutil.rmtree, "it is no folder"),
    ],
)
def test_damage_is_told_in_one_line(whole: OpenGenerator, damage: Callable[[Path], None], said: str) -> None:
    damage(whole.path)
    with pytest.raises(BundleError) as caught:
        open_generator(whole.path)
    assert str(caught.value).startswith("generator made: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_changes_after_the_opening_is_not_read(whole: OpenGenerator) -> None:
    flip(whole.path)
    with pytest.raises(BundleError, match=r"bank\.safetensors; got sha256"):
        whole.read("bank.safetensors")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_manifest_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes of generator.json cut, changed, put in: it opens, or a BundleError says why not."""
    opened = bank_generator(tmp_path_factory.mktemp("fuzz") / "g", np.eye(DIM), ["a"] * DIM)
    raw = bytearray((opened.path / "generator.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=4))
        raw = raw or bytearray(b" ")
    (opened.path / "generator.json").write_bytes(raw)
    with suppress(BundleError):
        open_generator(opened.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "its schema is newer; got 2"),
        ({"colour": "red"}, "unknown field"),
        ({"dim": "six"}, "Expected `int`"),
        ({"dim": 0}, "its space"),
        ({"space": ""}, "its space"),
        ({"bank": {"features": "../bank.safetensors", "sentences": "bank.json", "scale": 1.0}}, "a file is missing"),
        ({"bank": {"features": "bank.safetensors", "sentences": "/etc/passwd", "scale": 1.0}}, "a file is missing"),
        ({"bank": {"features": "bank.safetensors", "sentences": "bank.json", "scale": -1.0}}, "bank scale; got -1"),
        ({"files": {"../up": "0"}}, "a file is missing; got ../up"),
        ({"query": "query.onnx"}, "a file is missing; got 'query.onnx'"),
        ({"latent": {"network": "latent.onnx"}}, "a file is missing; got 'latent.onnx'"),
        ({"llm": {"model": "lm", "projector": "p.onnx", "prompt": "nothing"}}, "llm prompt"),
    ],
)
def test_a_manifest_that_is_not_right(whole: OpenGenerator, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_generator(changed(whole, **change))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_for_bundles_of_its_space(tmp_path: Path, whole: OpenGenerator) -> None:
    made = bundle.read(write_bundle(tmp_path / "bundle")).manifest
    with pytest.raises(BundleError, match="for another bundle; got 6 dims; allowed: the bundle's 12"):
        open_generator(whole.path, made)
    path = changed(whole, dim=made.heads[-1].dim)
    with pytest.raises(BundleError, match="does not name its embedding space; export the bundle again"):
        open_generator(path, made)
    with pytest.raises(BundleError, match="embedding space space; allowed: the bundle's: other"):
        open_generator(path, msgspec.structs.replace(made, space="other"))
    assert open_generator(path, msgspec.structs.replace(made, space="space")).manifest.dim == 12


@pytest.mark.parametrize(
    "make",
    [
        lambda: Llm("lm", "p.onnx", prompt="<image> <image>"),
        lambda: Llm("lm", "p.onnx", max_tokens=0),
        lambda: Llm("lm", "p.onnx", min_tokens=9, max_tokens=8),
        lambda: Llm("lm", "p.onnx", repetition_penalty=0.0),
        lambda: Diffusion(model="m", adapter="a", prompt="p", size=12),
        lambda: Diffusion(model="m", adapter="a", prompt="p", size=64, min_steps=3, max_steps=2),
        lambda: Diffusion(model="m", adapter="a", prompt="p", size=64, guidance=float("nan")),
        lambda: Bank("f", "s", float("inf")),
    ],
)
def test_values_that_are_not_right(make: Callable[[], Any]) -> None:
    with pytest.raises(BundleError, match=r"; got |; allowed"):
        make()


def test_what_is_named_must_be_there_when_it_is_written(tmp_path: Path) -> None:
    linear(tmp_path / "g" / "net.onnx", np.zeros((DIM, 12)), (3, 2, 2))
    with pytest.raises(BundleError, match=r"generator g: a file is missing; got 'other\.onnx'"):
        generator(tmp_path / "g", latent=Latent("other.onnx"))
    assert not (tmp_path / "g" / "generator.json").exists()
    assert generator(tmp_path / "g", latent=Latent("net.onnx")).manifest.files.keys() == {"net.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_where_models_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("g/models/lm", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    opened = generator(tmp_path / "g")
    for name in ("models/lm", "models/lm/"):
        assert opened.model(name, ["config.json"]) == tmp_path / "g" / "models" / "lm"
    assert opened.model(str(tmp_path / "elsewhere"), ["config.json"]) == tmp_path / "elsewhere"
    for name in ("../elsewhere", "models/../../elsewhere", "a/b/c", "", "..", "a/.."):
        with pytest.raises(BundleError, match="a model; got"):
            opened.model(name, ["config.json"])
    with pytest.raises(BundleError, match=r"no .*elsewhere/model\.json; bring the model's files: model\.json"):
        opened.model(str(tmp_path / "elsewhere"), ["model.json"])


def test_hub_models_are_those_that_were_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub"
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    opened = bank_generator(tmp_path / "g", np.eye(DIM), ["a"] * DIM)
    with pytest.raises(BundleError, match=r"model owner/lm is not on this machine; .*hf download owner/lm"):
        opened.model("owner/lm", ["config.json"])
    snapshot = cache / "models--owner--lm" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cache / "models--owner--lm" / "refs").mkdir()
    (cache / "models--owner--lm" / "refs" / "main").write_text("0" * 40)
    assert opened.model("owner/lm", ["config.json"]) == snapshot
    with pytest.raises(BundleError, match=r"no .*tokenizer_config\.json; with a network: hf download owner/lm"):
        opened.model("owner/lm", ["config.json", "tokenizer_config.json"])


def test_the_manifest_needs_no_more_than_it_says() -> None:
    fields = {"space": "s", "dim": 3, "citation": "", "created": "", "commit": "", "config": {}, "seeds": ()}
    made = msgspec.convert(fields | {"data": "", "simulated": True}, Generator)
    assert (made.bank, made.llm, made.latent, made.diffusion, made.files) == (None, None, None, None, {})
