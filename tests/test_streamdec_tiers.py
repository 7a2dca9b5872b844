"""Text bank, nearest picture and one-pass picture: what they answer by hand, and what they refuse."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_bundle import DIM as BUNDLE_DIM
from small_bundle import write_bundle
from tiny_generator import (
    DIM,
    Listener,
    bank_generator,
    diffusion_generator,
    generator,
    latent_generator,
    linear,
    llm_generator,
    request,
)

from streamdec.decode import bundle
from streamdec.decode.gallery import Gallery
from streamdec.decode.generate.generator import OpenGenerator
from streamdec.decode.generate.job import Kind, Request
from streamdec.decode.generate.link import Job
from streamdec.decode.generate.spec import Bank
from streamdec.decode.generate.tiers.bank import BankTier
from streamdec.decode.generate.tiers.base import plain, png, seed
from streamdec.decode.generate.tiers.latent import LatentTier
from streamdec.decode.generate.tiers.nearest import NearestTier
from streamdec.decode.generate.tiers.network import Network
from streamdec.decode.generate.tiers.open import open_first, open_tiers
from streamdec.decode.generate.worker import _Task, work
from streamdec.errors import BundleError, EngineError
from streamdec.types import Candidate

BAD = [np.full(DIM, np.nan, np.float32), np.full(DIM, np.inf, np.float32), np.ones(3, np.float32), np.ones(DIM)]
NEVER = float("inf")


def picture(size: int = 4, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, kind)
    return file.getvalue()


def test_bank_by_hand(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(7, DIM)) * np.arange(1, 8)[:, None]
    tier = BankTier(bank_generator(tmp_path / "g", features, [f"sentence {i}" for i in range(7)], scale=5.0))
    for number in range(5):
        asked = request(seed=number)
        wide = asked.embedding.astype(np.float64)
        cosines = features @ wide / np.linalg.norm(features, axis=1) / np.linalg.norm(wide)
        odds = np.exp(5.0 * cosines)
        answer = tier.run(asked)
        assert answer.text == f"sentence {np.argmax(cosines)}"
        assert answer.probability == pytest.approx(odds.max() / odds.sum(), rel=1e-5)
        assert (answer.units, answer.wanted, answer.image) == (1, 1, b"")


def test_bank_through_an_adapter(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(DIM, 9))
    features = np.random.default_rng(2).normal(size=(5, 9))
    linear(tmp_path / "g" / "adapter.onnx", weights)
    tier = BankTier(bank_generator(tmp_path / "g", features, list("abcde"), adapter="adapter.onnx"))
    asked = request()
    shelf = Gallery(features, list("abcde"), list("abcde"))
    (best,), _ = shelf.search((asked.embedding @ weights).astype(np.float32), 1)
    assert tier.run(asked).text == "abcde"[best]


def test_every_tier_reads_what_the_query_network_makes(tmp_path: Path) -> None:
    """With a network that changes signs, each tier answers as it would answer the opposite without one."""
    asked = request()
    opposite = request(embedding=-asked.embedding)
    made = {
        "bank": bank_generator(tmp_path / "bank", np.eye(DIM), list("abcdef")),
        "latent": latent_generator(tmp_path / "latent", np.random.default_rng(3).normal(size=(DIM, 12)), (3, 2, 2)),
        "llm": llm_generator(tmp_path / "llm"),
        "diffusion": diffusion_generator(tmp_path / "diffusion"),
    }

    def answer(name: str, opened: OpenGenerator, asked: Request) -> tuple[str, bytes]:
        if name == "bank":
            result = BankTier(opened).run(asked)
        else:
            (tier,) = open_tiers(opened, "caption" if name == "llm" else "reconstruction")
            result = tier.run(asked, tier.units[1], NEVER, float, Listener())
        return result.text, result.image

    for name, opened in made.items():
        as_it_is, turned = answer(name, opened, asked), answer(name, opened, opposite)
        assert as_it_is != turned
        linear(opened.path / "query.onnx", -np.eye(DIM))
        queried = generator(opened.path, **{name: getattr(opened.manifest, name)}, query="query.onnx")
        assert answer(name, queried, asked) == turned
        with pytest.raises(EngineError, match="embedding of 'img1'"):
            answer(name, queried, request(embedding=np.full(DIM, np.nan, np.float32)))


def test_a_latent_of_the_epoch_needs_no_query(tmp_path: Path) -> None:
    opened = latent_generator(tmp_path / "latent", np.zeros((DIM, 12)), (3, 2, 2), reads="epoch", inputs=(2, 3))
    linear(opened.path / "query.onnx", np.eye(DIM))
    tier = LatentTier(generator(opened.path, latent=opened.manifest.latent, query="query.onnx"))
    asked = request(embedding=np.full(DIM, np.nan, np.float32), epoch=np.zeros((2, 3), np.float32))
    assert tier.run(asked, 1, NEVER, float, Listener()).image


def test_a_query_network_of_other_sizes(tmp_path: Path) -> None:
    opened = bank_generator(tmp_path / "bank", np.eye(DIM), list("abcdef"))
    linear(opened.path / "query.onnx", np.ones((DIM, DIM + 1)))
    with pytest.raises(EngineError, match=r"output of query\.onnx; got \(1, 7\); allowed: \(1, 6\)"):
        BankTier(generator(opened.path, bank=opened.manifest.bank, query="query.onnx"))


def test_sentences_steer_no_terminal(tmp_path: Path) -> None:
    sentences = ["a\x1b[2J red\r\n ring\u202e"] * DIM
    tier = BankTier(bank_generator(tmp_path / "g", np.eye(DIM), sentences))
    assert tier.run(request()).text == "a [2J red ring"


@given(st.text())
def test_plain_is_one_line_of_printable_characters(text: str) -> None:
    cleaned = plain(text)
    assert cleaned.isprintable()
    assert cleaned == plain(cleaned)
    assert [c for c in cleaned if c != " "] == [c for c in text if c.isprintable() and c != " "]


@pytest.mark.parametrize("embedding", BAD)
def test_bank_and_latent_refuse_embeddings(tmp_path: Path, embedding: np.ndarray) -> None:
    bad = request(embedding=embedding)
    with pytest.raises(EngineError, match="embedding of 'img1'"):
        BankTier(bank_generator(tmp_path / "bank", np.eye(DIM), ["a"] * DIM)).run(bad)
    latent = LatentTier(latent_generator(tmp_path / "latent", np.zeros((DIM, 12)), (3, 2, 2)))
    with pytest.raises(EngineError, match="embedding of 'img1'"):
        latent.run(bad, 1, NEVER, float, Listener())


def test_zero_has_no_nearest_sentence(tmp_path: Path) -> None:
    tier = BankTier(bank_generator(tmp_path / "g", np.eye(DIM), ["a"] * DIM))
    with pytest.raises(EngineError, match="length zero"):
        tier.run(request(embedding=np.zeros(DIM, np.float32)))


@pytest.mark.parametrize(
    ("features", "sentences", "said"),
    [
        (np.eye(DIM), ["a"], "1 labels"),
        (np.eye(DIM + 1), ["a"] * (DIM + 1), "7 dims; allowed: 6"),
        (np.zeros((2, DIM)), ["a", "b"], "length zero"),
        (np.full((2, DIM), np.nan), ["a", "b"], "NaN"),
        (np.zeros((0, DIM)), [], "no sentences"),
    ],
)
def test_banks_that_are_not_right(tmp_path: Path, features: np.ndarray, sentences: list[str], said: str) -> None:
    opened = bank_generator(tmp_path / "g", features, sentences)
    with pytest.raises(BundleError, match=said):
        BankTier(opened)


def test_bank_files_of_another_kind(tmp_path: Path) -> None:
    opened = bank_generator(tmp_path / "g", np.eye(DIM), ["a"] * DIM)
    swapped = generator(opened.path, bank=Bank("bank.safetensors", "bank.safetensors", 1.0))
    with pytest.raises(BundleError, match="a JSON list of texts"):
        BankTier(swapped)
    swapped = generator(opened.path, bank=Bank("bank.json", "bank.json", 1.0))
    with pytest.raises(BundleError, match=r"bank\.json; got"):
        BankTier(swapped)


def pictured(tmp_path: Path) -> bundle.Bundle:
    made = bundle.read(write_bundle(tmp_path / "plain"))
    thumbnails = {"img00": picture(), "img01": picture(kind="JPEG"), "img02": picture(kind="WEBP")}
    encoders = {head.encoder: made.encoder(head) for head in made.manifest.heads}
    return bundle.read(bundle.write(tmp_path / "b", made.manifest, made.arrays, made.gallery, encoders, thumbnails))


def test_nearest_shows_the_best_candidate(tmp_path: Path) -> None:
    tier = NearestTier(pictured(tmp_path))
    for name, media in (("img00", "image/png"), ("img01", "image/jpeg"), ("img02", "image/webp")):
        others = (Candidate("img05", "other", 0.2, 0.3),)
        answer = tier.run(request("reconstruction", candidates=(Candidate(name, "x", 0.5, 0.6), *others)))
        assert (answer.source, answer.probability, answer.media) == (name, 0.6, media)
        assert Image.open(io.BytesIO(answer.image)).size == (4, 4)
    assert tier.run(request("reconstruction", candidates=others)) == msgspec.structs.replace(
        answer, image=b"", source="img05", probability=0.3
    )
    with pytest.raises(EngineError, match="no candidates"):
        tier.run(request("reconstruction", candidates=()))


def test_latent_by_hand(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0.1, 0.3, (DIM, 3 * 4 * 5))
    tier = LatentTier(latent_generator(tmp_path / "g", weights, (3, 4, 5)))
    tier.warm_up()
    asked, listener = request("reconstruction"), Listener()
    answer = tier.run(asked, 1, NEVER, float, listener)
    assert (answer.media, answer.units, answer.wanted) == ("image/png", 1, 1)
    assert listener.heard == [(answer, 1)]
    wanted = np.clip(asked.embedding @ weights, 0, 1).reshape(3, 4, 5).transpose(1, 2, 0) * 255
    shown = np.asarray(Image.open(io.BytesIO(answer.image)))
    assert shown.shape == (4, 5, 3)
    assert np.abs(shown - wanted).max() <= 0.51


def test_a_picture_in_one_pass_is_sent_once(tmp_path: Path) -> None:
    tier = LatentTier(latent_generator(tmp_path / "g", np.zeros((DIM, 12)), (3, 2, 2)))
    sent: list[object] = []
    task = _Task(Job(request("reconstruction"), "latent", 1, 60.0), 0.0)
    assert work(tier, task, sent.append).image
    assert sent == []


def test_latent_of_an_epoch(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0.5, 0.3, (2 * 3, 12))
    tier = LatentTier(latent_generator(tmp_path / "g", weights, (3, 2, 2), inputs=(2, 3), reads="epoch"))
    tier.warm_up()
    assert tier.example.epoch is not None
    epoch = np.random.default_rng(4).normal(size=(2, 3)).astype(np.float32)
    shown = tier.run(request("reconstruction", epoch=epoch), 1, NEVER, float, Listener())
    wanted = png((epoch.ravel() @ weights).astype(np.float32).reshape(3, 2, 2))
    assert np.abs(pixels(shown.image) - pixels(wanted)).max() <= 1
    for bad in (None, np.zeros((3, 2), np.float32), np.full((2, 3), np.nan, np.float32), np.zeros((2, 3))):
        with pytest.raises(EngineError, match="epoch of 'img1'"):
            tier.run(request("reconstruction", epoch=bad), 1, NEVER, float, Listener())


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)), dtype=np.int64)


def test_networks_of_other_sizes(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"input of latent\.onnx; got \(1, 7\); allowed: \(1, 6\)"):
        LatentTier(latent_generator(tmp_path / "a", np.zeros((DIM + 1, 12)), (3, 2, 2)))
    with pytest.raises(EngineError, match=r"output of latent\.onnx; got \(1, 4, 3\)"):
        LatentTier(latent_generator(tmp_path / "b", np.zeros((DIM, 12)), (4, 3)))
    with pytest.raises(EngineError, match=r"latent\.onnx.*NaN"):
        LatentTier(latent_generator(tmp_path / "c", np.full((DIM, 12), np.nan), (3, 2, 2)))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(EngineError, match=r"bad\.onnx cannot be loaded"):
        Network(generator(tmp_path / "d"), "bad.onnx")


def test_noise_of_a_network_is_its_seed(tmp_path: Path) -> None:
    linear(tmp_path / "g" / "noisy.onnx", np.eye(DIM), noise=DIM)
    network = Network(generator(tmp_path / "g"), "noisy.onnx")
    zero = np.zeros((1, DIM), np.float32)
    assert (network(zero, 1) == network(zero, 1)).all()
    assert (network(zero, 1) != network(zero, 2)).any()
    expected = np.random.default_rng(7).standard_normal((1, DIM), dtype=np.float32)
    assert np.allclose(network(zero, 7), expected)
    assert seed(request(key="a")) == seed(request(key="a", id=9)) != seed(request(key="b"))


def everything(folder: Path) -> OpenGenerator:
    """All tiers of both kinds."""
    llm = llm_generator(folder).manifest.llm
    bank = bank_generator(folder, np.eye(DIM), ["a"] * DIM).manifest.bank
    latent = latent_generator(folder, np.zeros((DIM, 12)), (3, 2, 2)).manifest.latent
    diffusion = diffusion_generator(folder).manifest.diffusion
    return generator(folder, bank=bank, llm=llm, latent=latent, diffusion=diffusion)


def test_tiers_of_each_kind(tmp_path: Path) -> None:
    shown, whole = pictured(tmp_path), everything(tmp_path / "g")
    assert open_first("reconstruction", shown, None).name == "nearest"  # type: ignore[union-attr]
    assert open_first("caption", shown, None) is None
    assert open_first("caption", shown, whole).name == "bank"  # type: ignore[union-attr]
    kinds: tuple[tuple[Kind, list[str]], ...] = (("caption", ["llm"]), ("reconstruction", ["latent", "diffusion"]))
    for kind, names in kinds:
        tiers = open_tiers(whole, kind)
        assert [tier.name for tier in tiers] == names
        for tier in tiers:
            tier.warm_up()
            result = tier.run(tier.example, tier.units[1], NEVER, float, Listener())
            assert result.text or result.image
    bare = generator(latent_generator(tmp_path / "bare", np.zeros((DIM, 12)), (3, 2, 2)).path)
    assert open_tiers(bare, "caption") == open_tiers(bare, "reconstruction") == []
    assert open_first("caption", shown, bare) is None
    assert BUNDLE_DIM != DIM  # what is opened together is checked by open_generator alone


def test_first_tiers_need_no_torch(tmp_path: Path) -> None:
    opened = bank_generator(tmp_path / "g", np.eye(DIM), ["a"] * DIM)
    program = f"""
import sys
from streamdec.decode.generate import generator
from streamdec.decode.generate.tiers import open as tiers, bank, nearest, latent, llm, diffusion, prompt
assert tiers.open_first("caption", None, generator.open_generator({str(opened.path)!r})).name == "bank"
heavy = {{"torch", "transformers", "diffusers", "PIL", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
