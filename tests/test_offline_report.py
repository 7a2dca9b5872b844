"""The report of real, tiny runs: it holds all it shows, every picture is described, every number is a record's."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import report_runs
import tiny_store

from offline import cli
from offline.data.store import Item, Prepared
from offline.evaluate import Evaluation, Retrieval
from offline.report import gather, inside, published, tables, views
from offline.report.gather import DataSet, Gathered, Variant
from offline.report.write import compose, report
from offline.summary import summarise
from streamdec.decode.gallery import Gallery
from streamdec.errors import ConfigError, DataError
from streamdec.page.document import Document, Picture, Section, Table, Text, to_html
from streamdec.page.scalp import flattened

VOID = {"meta", "img", "br", "hr", "link"}
LOCAL = ("data:", "#")


class Page(HTMLParser):
    """Tables, pictures and references of a page; raises where it is not well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.pictures: list[dict[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"{self.open} not closed"

    def handle_starttag(self, tag, attributes) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        self.references += [found[key] for key in ("src", "href", "srcset", "action") if key in found]
        if tag == "img":
            self.pictures.append(found)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h2", "h3"):
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] in ("h2", "h3"):
            self.headings[-1] += data

    def table(self, heading: str) -> list[list[str]]:
        """The first table with this column."""
        return next(table for table in self.tables if heading in table[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return report_runs.make(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def written(runs) -> Path:
    out = runs.parent / "out" / "report.html"
    report([runs], out, markdown=True, categories=runs.parent / "categories.tsv")
    return out


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written.read_text())


def records(runs: Path, row: str, protocol: str) -> list[Evaluation]:
    paths = sorted(runs.glob(f"{row}/{protocol}/*/seed-*/evaluations/*.json"))
    return [msgspec.json.decode(path.read_bytes(), type=Evaluation) for path in paths]


def test_page_holds_everything_it_shows(page) -> None:
    assert all(reference.startswith(LOCAL) for reference in page.references)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert len(page.pictures) >= 10
    for picture in page.pictures:
        kind, _, content = picture["src"].partition(";base64,")
        assert kind == "data:image/svg+xml"
        svg = ET.fromstring(base64.b64decode(content))  # noqa: S314 - ours
        for element in svg.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(LOCAL)
                assert "url(" not in value or "url(#" in value
        assert len(picture["alt"]) > 20
    assert len({picture["src"] for picture in page.pictures}) == len(page.pictures)


def test_sections(page) -> None:
    wanted = "Results Subjects Repetitions Time windows Ablations Ranks and k-way Transductive scores Learning curves"
    for heading in (wanted, "Geometry by category", "Channels", "Retrieval cases"):
        assert heading in " ".join(page.headings)
    for heading in ("Class centres", "Saliency maps", "Loss weights"):
        assert heading not in page.headings, "nothing to show"
    assert "simulated data" in page.headings[0]
    assert "No figure below says anything about people" in page.text


def test_numbers_are_the_records(page, runs) -> None:
    table = page.table("intra-subject\ntop-1 %")
    assert not any("published" in heading for heading in table[0]), "simulated"
    rows = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}
    assert set(rows) == {"ridge", "nice"}
    for method in rows:
        for protocol, name in tables.PROTOCOLS.items():
            found = records(runs, method, protocol)
            for k, figure in ((1, "top1"), (5, "top5")):
                values = {(e.subject, e.seed): getattr(e.averaged, figure) for e in found}
                wanted = tables.percent(summarise(values)) if values else "–"
                assert rows[method][f"{name}\ntop-{k} %"] == wanted
    assert rows["ridge"]["subjects\n× seeds"] == "2 × 2"
    one, two = (
        np.mean([e.averaged.top1 for e in records(runs, row, "intra") if e.seed == 0]) for row in ("one-alpha", "ridge")
    )  # the only seed that both have
    ablations = page.table("changed")
    assert [row[:2] for row in ablations[1:]] == [["ridge", "as it is"], ["one-alpha", "per_feature=false"]]
    assert ablations[2][2] == f"{100 * one:.1f} ({100 * (one - two):+.1f})".replace("-", "−")
    apart = page.table("Sinkhorn")
    alone = [e.averaged.top1 for e in records(runs, "ridge", "intra") if e.seed == 0]
    assert apart[1][2].startswith(f"{100 * np.mean(alone):.1f} ±")
    of_subject = page.table("sub-01")
    assert of_subject[0] == ["method", "sub-01", "sub-02"]


def test_markdown_has_the_same_tables_and_its_pictures_beside_it(written, page) -> None:
    text = written.with_suffix(".md").read_text()
    pictures = sorted((written.parent / "report-figures").iterdir())
    assert len(pictures) == len(page.pictures)
    assert all(f"](report-figures/{picture.name})" in text for picture in pictures)
    for row in page.table("intra-subject\ntop-1 %"):
        assert all(cell.replace("\n", " ") in text for cell in row)


def test_a_browser_shows_every_picture(written, tmp_path, page) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium or Chrome on the path: install one to see the page as a reader does")
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
        widths: [...document.images].map(image => image.naturalWidth),
        beyond: document.documentElement.scrollWidth - innerWidth }) })</script></body>"""
    (tmp_path / "probe.html").write_text(written.read_text().replace("</body>", probe))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,900", f"--user-data-dir={tmp_path}")
    address = (tmp_path / "probe.html").as_uri()
    done = subprocess.run([browser, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    seen = json.loads(title)
    assert len(seen["widths"]) == len(page.pictures)
    assert min(seen["widths"]) > 100
    assert seen["beyond"] <= 0, "nothing sticks out of the window"


def test_one_run_is_a_report_too(runs, tmp_path) -> None:
    run = runs / "nice" / "intra" / "sub-01" / "seed-0"
    report([run], tmp_path / "one.html")
    page = Page((tmp_path / "one.html").read_text())
    assert "1 evaluated runs: 1 of nice" in page.text
    assert "Ablations" not in page.headings
    assert "Geometry by category" not in page.headings, "no categories are known"


def as_real(gathered: Gathered, n_candidates: int) -> DataSet:
    """The same figures as if they were THINGS-EEG2's."""
    (data,) = gathered.data_sets
    retrieval = msgspec.structs.replace(data.variants[0].entries[0].evaluation.averaged, n_candidates=n_candidates)
    return DataSet("things_eeg2", False, False, tuple(with_figures(variant, retrieval) for variant in data.variants))


def with_figures(variant: Variant, retrieval: Retrieval) -> Variant:
    """The same runs, each with these figures."""
    entries = [
        msgspec.structs.replace(e, evaluation=msgspec.structs.replace(e.evaluation, averaged=retrieval))
        for e in variant.entries
    ]
    return msgspec.structs.replace(variant, entries=tuple(entries))


def test_caption_of_figures_over_uneven_repetitions(runs) -> None:
    (data,) = gather.gather([runs]).data_sets
    assert "4 repetitions averaged into each query" in tables.results(data).caption
    figures = msgspec.structs.replace(data.variants[0].entries[0].evaluation.averaged, repetitions=None)
    uneven = [with_figures(variant, figures) for variant in data.variants]
    caption = tables.results(msgspec.structs.replace(data, variants=tuple(uneven))).caption
    assert "Figures of all repetitions averaged into each query" in caption


def test_published_figures_stand_beside_like_ones_only(runs) -> None:
    gathered = gather.gather([runs])
    table = tables.results(as_real(gathered, 200))
    rows = {row[0]: row for row in table.rows}
    beside = [i for i, (name, _) in enumerate(table.columns) if name.startswith("published")]
    assert [rows["nice"][i] for i in beside] == ["16.1 / 43.6 †", "6.2 / 21.4 †"]
    assert "† Against class centres" in table.caption
    assert [rows["ridge"][i] for i in beside] == ["–", "–"], "never published"
    others = tables.results(as_real(gathered, 12))
    assert {row[i] for row in others.rows for i in beside} == {"–"}
    (simulated,) = gathered.data_sets
    assert tables.literature(simulated) is None
    assert "Simulated" in tables.results(simulated).caption


def test_published_figures_are_percentages_of_known_methods() -> None:
    assert set(published.published("things_eeg2")) == {"nice", "atm", "ubp", "neuroalign", "neuroclip", "hvf"}
    assert set(published.published("things_meg")) == {"ubp", "neuroalign", "hvf"}
    assert not published.published("things")
    for row in published.PUBLISHED:
        for top1, top5 in (row.intra, row.left_out):
            assert top5 is None or 0 < top1 < top5 < 100


def test_gathering(runs, tmp_path) -> None:
    gathered = gather.gather([runs, runs / "ridge"])
    (data,) = gathered.data_sets
    assert len(gathered.runs) == 10, "a run counts once, however often it is named"
    assert [(v.method, v.title, v.changed, v.base) for v in data.variants] == [
        ("nice", "nice", "", True),
        ("ridge", "ridge", "", True),
        ("ridge", "one-alpha", "per_feature=false", False),
    ]
    again = tmp_path / "again" / "ridge" / "intra" / "sub-01" / "seed-0"
    shutil.copytree(runs / "ridge" / "intra" / "sub-01" / "seed-0", again)
    shutil.copytree(again, tmp_path / "again" / "unfinished")
    shutil.rmtree(tmp_path / "again" / "unfinished" / "evaluations")
    more = gather.gather([runs, tmp_path / "again"])
    assert more.doubled == (again.resolve(),)
    assert [path.name for path in more.unfinished] == ["unfinished"]
    assert len(more.data_sets[0].variants[1].entries) == len(data.variants[1].entries)
    with pytest.raises(DataError, match="none evaluated"):
        gather.gather([tmp_path / "again" / "unfinished"])
    with pytest.raises(DataError, match="nothing there"):
        gather.gather([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no run folder"):
        gather.gather([_empty(tmp_path)])


def test_every_session_of_a_subject_counts(runs, tmp_path) -> None:
    """A second recording of the same person is kept beside the first, and their mean is the subject's."""
    own = Prepared(runs.parent / "sub-01")
    path = tmp_path / "runs" / "seed-0"
    report_runs.run(path, "ridge", {}, [own], own)
    assert len(gather.gather([path.parent]).data_sets[0].variants[0].entries) == 1
    second = report_runs.store(tmp_path / "later", "sub-01", noise=60.0)
    moved = second.path.rename(tmp_path / "later" / "session-2")
    assert cli.main(["evaluate", str(path), "--prepared", str(moved)]) == 0
    assert {file.name for file in (path / "evaluations").iterdir()} == {"sub-01.json", "sub-01.session-2.json"}
    gathered = gather.gather([path.parent])
    assert gathered.doubled == ()
    both = gathered.data_sets[0].variants[0].entries
    assert len(both) == 2
    top1 = [entry.evaluation.averaged.top1 for entry in both]
    assert top1[0] != top1[1]
    mean = tables.of(both, lambda retrieval: retrieval.top1)
    assert mean.value == pytest.approx(np.mean(top1))
    assert (mean.n_subjects, mean.n_seeds) == (1, 1)
    assert cli.main(["evaluate", str(path), "--prepared", str(moved)]) == 0
    assert len(gather.gather([path.parent]).data_sets[0].variants[0].entries) == 2, "again is not another session"


def test_number_of_subjects_tells_models_apart(runs, tmp_path) -> None:
    """Each subject alone, both in one model, and left out: the last is not told apart, its protocol says it."""
    a, b = (Prepared(runs.parent / name) for name in ("sub-01", "sub-02"))
    for own, other in ((a, b), (b, a)):
        name = own.meta.subject
        report_runs.run(tmp_path / "ridge" / "intra" / name / "seed-0", "ridge", {}, [own], own)
        report_runs.run(tmp_path / "ridge" / "left_out" / name / "seed-0", "ridge", {}, [other], own)
        report_runs.run(tmp_path / "ridge" / "joint" / "seed-0", "ridge", {}, [a, b], own)
    gathered = gather.gather([tmp_path])
    both, one = gathered.data_sets[0].variants
    assert (both.title, both.changed, one.title) == ("ridge", "", "ridge, training_subjects=1")
    assert [len(both.of(protocol)) for protocol in ("intra", "left_out")] == [2, 2]
    assert [len(one.of(protocol)) for protocol in ("intra", "left_out")] == [2, 0]
    sections = {section.title: section for section in compose(gathered).sections}
    (picture,) = sections["Number of subjects"].blocks
    means = [100 * np.mean([tables.top1(entry) for entry in v.of("intra")]) for v in (one, both)]
    assert f"intra-subject, ridge: 1: {means[0]:.3g}, 2: {means[1]:.3g}" in picture.alt


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_data_that_are_gone_are_said_and_the_rest_is_shown(runs, tmp_path) -> None:
    alone = tmp_path / "run"
    shutil.copytree(runs / "ridge" / "intra" / "sub-01" / "seed-0", alone)
    meta = json.loads((alone / "run.json").read_text())
    meta["prepared"] = [str(tmp_path / "gone")]
    (alone / "run.json").write_text(json.dumps(meta))
    report([alone], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "Not looked into" in page.text
    assert "Results" in page.headings
    assert "Channels" not in page.headings


def test_occlusion_finds_the_one_channel_that_tells() -> None:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((12, 5, 8)).astype(np.float32)
    gallery = Gallery(means[:, 3] + 0.1 * rng.standard_normal((12, 8)), [str(i) for i in range(12)], [""] * 12)
    before = means.copy()

    def encode(epochs: np.ndarray) -> np.ndarray:
        return epochs[:, 3] + np.float32(1e-3)

    found = inside.occlusion(encode, means, gallery, np.arange(12))
    assert np.argmax(found) == 3
    assert found[3] > 0.5
    assert np.delete(found, 3) == pytest.approx(0, abs=1e-9)
    assert np.array_equal(means, before)
    queries = encode(means)
    cosines = queries @ gallery.features.T / np.linalg.norm(queries, axis=1)[:, None]
    wanted = [cosines[i, i] - np.mean(np.delete(cosines[i], i)) for i in range(12)]
    assert inside.margin(queries, gallery, np.arange(12)) == pytest.approx(wanted, abs=1e-6)


def test_places_on_the_scalp() -> None:
    names = ("Oz", "Fpz", "T7", "T8", "Cz")
    oz, fpz, t7, t8, cz = flattened(names)
    assert oz[1] < -0.8 < 0.8 < fpz[1], "nose up"
    assert t7[0] < -0.8 < 0.8 < t8[0]
    assert np.linalg.norm(cz) < 0.1
    assert max(np.linalg.norm([oz, fpz, t7, t8], axis=1)) < 1.1
    assert flattened(("Oz", "Cz", "Pz", "MEG0111")) is None
    assert flattened(("Oz", "Cz", "Pz")) is None


def test_scalp_map_names_the_strongest_channel() -> None:
    values = {"sub-01": np.array([0.0, 0.2, 0.0, 0.0]), "sub-02": np.array([0.01, 0.4, 0.0, -0.01])}
    found = views.scalp("map", "ridge", values, report_runs.CH_NAMES, "")
    assert "most on average: Oz, O1" in found.alt
    assert views.scalp("map", "ridge", values, tuple("ABCD"), "") is None


def test_embedding_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3, 20)[np.repeat(np.arange(3), 12)]
    places = views.embedded(centres + 0.02 * rng.standard_normal((36, 20)))
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    same = np.equal.outer(np.repeat(np.arange(3), 12), np.repeat(np.arange(3), 12))
    assert distances[same].max() < distances[~same].min()


def test_cases_are_drawn_from_hits_and_misses(runs) -> None:
    (data,) = gather.gather([runs]).data_sets
    test = report_opened(data)
    seen = inside.look(test)
    scores = np.zeros((12, 12), np.float32)
    scores[np.arange(12), np.arange(12)] = 1
    scores[:3] = np.roll(scores[:3], 1, axis=1)  # three queries take the next one's
    seen = msgspec.structs.replace(seen, scores=scores, target=np.arange(12))
    right, wrong = inside.cases(seen, 20)
    assert (len(right), len(wrong)) == (9, 3)
    assert all(case.first[0] == case.own and case.rank == 0 for case in right)
    assert all(case.first[0] == case.own + 1 for case in wrong)
    assert [inside.cases(seen, 2) for _ in range(2)] == [inside.cases(seen, 2)] * 2
    sheet = views.sheet("cases", "ridge", seen, right[:1], wrong[:1])
    own, (first, *_) = seen.items[right[0].own].label, wrong[0].first
    assert f"shown {own}, found {own}" in sheet.alt
    assert f"shown {seen.items[wrong[0].own].label}, found {seen.items[first].label}" in sheet.alt
    assert sheet.content.count(b"<image") == 12
    bare = tuple(msgspec.structs.replace(item, image="") for item in seen.items)
    labels_only = views.sheet("cases", "ridge", msgspec.structs.replace(seen, items=bare), right[:1], wrong[:1])
    assert labels_only.alt == sheet.alt
    assert b"<image" not in labels_only.content


def report_opened(data: DataSet):
    from offline.experiment import open_test

    return open_test(data.variants[1].of("intra")[0].run.path)


def test_categories(runs, tmp_path) -> None:
    (data,) = gather.gather([runs]).data_sets
    prepared = report_opened(data).prepared
    found = inside.categories(prepared, runs.parent / "categories.tsv")
    assert [found[item.id] for item in prepared.meta.items["test"]] == [report_runs.KINDS[i % 3] for i in range(12)]
    assert inside.most_frequent([*found.values(), None, "rare"], 7) == list(report_runs.KINDS)
    assert inside.categories(prepared, None) == {}, "nothing is known"
    header = "file\tshape=disc\tshape=star\tx\n"
    rows = [f"{item.image}\t{i % 2}\t{1 - i % 2}\t0.3" for i, item in enumerate(prepared.meta.items["test"])]
    attributes = Path(prepared.meta.images) / "image_attributes.tsv"
    attributes.write_text(header + "\n".join(rows))
    assert list(inside.categories(prepared, None).values()) == ["star", "disc"] * 6
    attributes.unlink()
    (tmp_path / "t.csv").write_text("concept,kind\nx,y\n")
    with pytest.raises(ConfigError, match="category"):
        inside.categories(prepared, tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("concept,category\nx,y\n")
    with pytest.raises(ConfigError, match="none of the test items"):
        inside.categories(prepared, tmp_path / "t.csv")
    with pytest.raises(DataError, match="categories"):
        inside.categories(prepared, tmp_path / "nowhere.tsv")


@pytest.mark.data
def test_categories_of_things(data) -> None:
    """The concept table of THINGS as it is distributed, for the 200 test images as the loader names them."""
    folder = data / "things_eeg2"
    rows = [line.split("\t") for line in (folder / "things_eeg2_image_metadata.tsv").read_text().splitlines()]
    paths = [Path(row[1]) for row in rows if row[-1] == "test"]
    items = tuple(
        Item(f"{path.parent.name}/{path.name}", path.parent.name[6:].replace("_", " "), f"test/{path.parent.name}")
        for path in paths
    )
    prepared = SimpleNamespace(meta=SimpleNamespace(items={"test": items}, images=""))
    found = inside.categories(prepared, folder / "things_concepts.tsv")
    assert len(items) == 200
    assert len(found) > 120, "more than the raters' column has"
    assert found["00001_aircraft_carrier/aircraft_carrier_06s.jpg"] == "vehicle"
    assert found["00002_antelope/antelope_01b.jpg"] == "animal"


def test_text_is_text_and_empty_sections_are_left_out() -> None:
    table = Table((("a|b", "text"), ("n", "number")), (("<b>", "1"),), "cap & tion")
    picture = Picture("x.svg", b"<svg/>", 'a "quoted" <alt>', "")
    document = Document(
        "A & <B>",
        (Text("<script>alert(1)</script>"),),
        (Section("Empty", ()), Section("Outer", ()), Section("Inner", (table, picture), 3), Section("Last", ())),
    )
    page = Page(to_html(document, "me"))
    assert page.headings == ["Outer", "Inner"]
    assert page.tables == [[["a|b", "n"], ["<b>", "1"]]]
    assert page.pictures[0]["alt"] == 'a "quoted" <alt>'
    assert "script" not in page.tags


def test_loss_weights_over_training_are_drawn(runs, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "nice" / "intra" / "sub-01" / "seed-0", run)
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    weights = [{"weight_image": 0.7 - 0.2 * i, "weight_text": 0.3 + 0.2 * i, "norm": 2.0} for i in range(len(lines))]
    told = "".join(json.dumps(line | more) + "\n" for line, more in zip(lines, weights, strict=True))
    (run / "history.jsonl").write_text(told)
    report([run], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert {"Loss weights", "Also noted"} <= set(page.headings)
    alt = next(picture["alt"] for picture in page.pictures if "weight over pass" in picture["alt"])
    assert "nice, image: 0.7 at first, 0.5 at last; nice, text: 0.3 at first, 0.5 at last" in alt


def test_classes_have_a_table_of_their_own(tmp_path) -> None:
    prepared = tiny_store.make(tmp_path / "class", kind="class", noise=6.0)
    found = report_runs.run(tmp_path / "runs" / "a", "ridge", {}, [prepared], prepared)
    report([tmp_path / "runs"], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    table = page.table("AUC")
    assert table[1][:3] == ["ridge", "intra-subject", f"{np.mean(list(found.auc.values())):.3f}"]
    assert "Simulated" in page.text
    assert "Retrieval cases" not in page.headings


def test_commands(runs, tmp_path, capsys) -> None:
    """Class centres from a folder of images, windows, transductive scores, and the report of it all."""
    images = Path(report_opened(gather.gather([runs]).data_sets[0]).prepared.meta.images)
    store, run = tmp_path / "store", tmp_path / "run"
    meta = json.loads((runs.parent / "sub-01" / "meta.json").read_text())
    shutil.copytree(runs.parent / "sub-01", store)
    meta["items"]["train"] = [item | {"image": f"{i % 12:02d}.png"} for i, item in enumerate(meta["items"]["train"])]
    (store / "meta.json").write_text(json.dumps(meta))
    for item in meta["items"]["test"]:
        concept = tmp_path / "more" / item["concept"].rpartition("/")[2]
        concept.mkdir(parents=True)
        shutil.copy(images / item["image"], concept / "another.png")
        shutil.copy(images / item["image"], concept / item["image"])
    commands = (
        ("features", store, "colour@vse", tmp_path / "colour"),
        ("features", tmp_path / "more", "colour@vse", tmp_path / "centres"),
        ("fit", "ridge", store, tmp_path / "colour", run),
        ("evaluate", run, "--centres", tmp_path / "centres", "--windows", "masked", "--transductive"),
        ("report", run, "--out", tmp_path / "report.html", "--markdown"),
    )
    for command in commands:
        assert cli.main([str(word) for word in command]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "against 12 class centres" in said
    assert "0 to 100 ms: top-1" in said
    assert "transductive, csls: top-1" in said
    page = Page((tmp_path / "report.html").read_text())
    assert {"Class centres", "Time windows", "Transductive scores", "Saliency maps"} <= set(page.headings)
    found = gather.read(run)
    assert found.evaluations[0].class_centre.top1 == found.evaluations[0].averaged.top1, "the images are the same"
    assert (found.transductive[0].alone.top1, found.windows[0].mode) == (found.evaluations[0].averaged.top1, "masked")
    assert cli.main(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.html")]) == 1
    assert "nothing there" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert cli.main(["features", str(tmp_path / "nothing"), "colour", str(tmp_path / "x")]) == 1
    assert "CONCEPT/IMAGE" in capsys.readouterr().err
