"""Sentences about the stimuli: labels, templates, caption files, and the models that write them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_store

from offline import cli
from offline.data.store import Item
from offline.targets.images import Images
from offline.targets.registry import encoder
from offline.targets.store import Targets
from offline.targets.text import Sentences, TextOptions, read_captions
from streamdec.errors import ConfigError, DataError

LABELS = ("cat", "dog", "eagle", "a photo of the dog")
ITEMS = [Item(f"i{i}", label, label, f"{i}.png") for i, label in enumerate(LABELS)]
CAPTIONS = {item.id: f'it\'s "a" {item.label} outside' for item in ITEMS}


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "captions.tsv"
    path.write_text("id\tcaption\n" + "".join(f"{key}\t{text}\n" for key, text in CAPTIONS.items()), encoding="utf-8")
    return path


def test_sentences(table) -> None:
    assert Sentences(TextOptions()).of(ITEMS[:2]) == ["cat", "dog"]
    assert Sentences(TextOptions("This picture is {label}")).of(ITEMS[:1]) == ["This picture is cat"]
    assert Sentences(TextOptions(captions=str(table))).of(ITEMS[1:2]) == ['it\'s "a" dog outside']
    both = Sentences(TextOptions("{label}: {caption}.", str(table)))
    assert both.of(ITEMS[2:3]) == ['eagle: it\'s "a" eagle outside.']
    with pytest.raises(DataError, match="none for 'other'"):
        both.of([Item("other", "", "")])
    before = both.provenance
    table.write_text(table.read_text().replace("outside", "inside"))
    assert Sentences(TextOptions("{label}: {caption}.", str(table))).provenance != before


def test_caption_files(table) -> None:
    assert read_captions(table) == CAPTIONS
    as_json = table.with_suffix(".json")
    as_json.write_text(json.dumps(CAPTIONS))
    assert read_captions(as_json) == CAPTIONS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.tsv", None, "write some"),
        ("a.tsv", "", "write some"),
        ("b.tsv", "id\ttext\n", "columns id, text; allowed: id, caption"),
        ("c.tsv", "id\tcaption\ni0\n", "line 2; got 1 columns"),
        ("d.json", "[1, 2]", "write some"),
        ("e.json", '{"a": 1}', "write some"),
    ],
)
def test_damaged_caption_file(tmp_path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_captions(tmp_path / name)


def test_spelling(table) -> None:
    rows = encoder("spelling", ITEMS)(ITEMS, Images(Path()))
    assert rows.shape == (4, 256)
    assert rows[0].sum() == len("cat") + 1  # "  c", " ca", "cat", "at "
    similar = rows @ rows.T
    assert similar[1, 3] > similar[0, 3]  # "dog" is in "a photo of the dog"
    told = encoder(f"spelling@captions={table}", ITEMS)(ITEMS, Images(Path()))
    assert (told.sum(1) > rows.sum(1)).all()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(len(ITEMS)):
        pixels = rng.random((40 + 8 * i, 60, 3)) * (80 * i, 255 - 80 * i, 128)
        image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="transformers comes with the train extra")
    return tmp_path_factory.mktemp("models")


def test_blip_says_what_the_library_says(made, pictures) -> None:
    import tiny_models
    import torch
    import transformers
    from PIL import Image

    from offline.targets.captions import PROMPTS, Captioner

    folder = tiny_models.blip(made / "blip")
    network = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.BlipProcessor.from_pretrained(folder)
    for prompt in ("A", "C"):
        expected = []
        for item in ITEMS:  # one by one: no padding
            asked = PROMPTS[prompt].replace("{label}", item.label)
            given = processor(images=Image.open(pictures / item.image), text=asked, return_tensors="pt")
            with torch.inference_mode():
                words = network.generate(given.pixel_values, given.input_ids, max_new_tokens=6, do_sample=False)
            new = words[0, given.input_ids.shape[1] - 1 :]  # BLIP's own end token is dropped from the prompt
            expected.append(processor.decode(new, skip_special_tokens=True).strip())
        assert Captioner(str(folder), prompt, 6)(ITEMS, Images(pictures)) == expected
        assert len(set(expected)) > 1
    assert Captioner(str(folder), "", 6)(ITEMS, Images(pictures)) != [""] * len(ITEMS)


@pytest.mark.parametrize("family", ["git", "blip_2", "llava"])
def test_captioners_answer_each_image_alone(made, pictures, family: str) -> None:
    """In a batch as alone; and the prompt is no part of the answer."""
    import tiny_models

    from offline.targets.captions import Captioner

    captioner = Captioner(str(getattr(tiny_models, family)(made / family)), "A", 6)
    together = captioner(ITEMS, Images(pictures))
    assert together == [captioner([item], Images(pictures))[0] for item in ITEMS]
    assert not any("this is a photo of" in text for text in together)
    assert any(together)


def test_caption_table_goes_on_after_a_kill(made, pictures, tmp_path) -> None:
    import tiny_models

    from offline.targets.captions import Captioner, write

    folder = tiny_models.blip(made / "blip")
    captioner = Captioner(str(folder), "A", 6)
    assert write(captioner, ITEMS, pictures, tmp_path / "whole.tsv") == 4
    out = tmp_path / "killed.tsv"
    asked = []

    class Killed(Captioner):
        def __call__(self, items, images):
            asked.extend(item.id for item in items)
            if len(asked) > 2:
                raise KeyboardInterrupt
            return super().__call__(items, images)

    with pytest.raises(KeyboardInterrupt):
        write(Killed(str(folder), "A", 6), ITEMS, pictures, out, batch=2)
    with out.open("a") as file:
        file.write("i2\thalf a li")
    assert write(captioner, ITEMS, pictures, out, batch=2) == 4
    assert out.read_text() == (tmp_path / "whole.tsv").read_text()
    with pytest.raises(ConfigError, match="other captions"):
        write(Captioner(str(folder), "B", 6), ITEMS, pictures, out)
    assert set(read_captions(out)) == {item.id for item in ITEMS}
    assert encoder(f"spelling@captions={out}", ITEMS)(ITEMS, Images(pictures)).shape == (4, 256)


def test_no_network_for_a_captioner() -> None:
    pytest.importorskip("transformers", reason="transformers comes with the train extra")
    from offline.targets.captions import Captioner

    with pytest.raises(ConfigError, match=r"hf download Salesforce/blip2-opt-2\.7b"):
        Captioner("Salesforce/blip2-opt-2.7b")


def test_captions_and_features_from_the_command_line(made, pictures, tmp_path, capsys) -> None:
    import tiny_models

    prepared = tiny_store.make(tmp_path / "store", kind="class")
    items = {part: tuple(ITEMS[:2]) for part in prepared.meta.items}
    meta = msgspec.structs.replace(prepared.meta, images=str(pictures), items=items)
    (tmp_path / "store" / "meta.json").write_bytes(msgspec.json.encode(meta))
    model, table = tiny_models.blip(made / "blip"), tmp_path / "captions.tsv"
    store = str(tmp_path / "store")
    assert cli.main(["captions", store, str(model), str(table), "--prompt", "B", "--batch", "1"]) == 0
    assert "2 captions" in capsys.readouterr().out
    name = f"spelling@template=a {{label}}, or {{caption}}@captions={table}"
    assert cli.main(["features", store, name, str(tmp_path / "text"), "--batch", "1"]) == 0
    assert Targets(tmp_path / "text").of(ITEMS[:2]).shape == (2, 256)
    assert cli.main(["features", store, "pixels@size=4@vse+thumbnails@size=4", str(tmp_path / "both")]) == 0
    assert Targets(tmp_path / "both").of(ITEMS[:2]).shape == (2, 96)
    assert cli.main(["features", store, "pixels@depth=4", str(tmp_path / "wrong")]) == 2
    assert "allowed: size, blur, vse" in capsys.readouterr().err
