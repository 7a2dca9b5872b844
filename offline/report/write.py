"""``streamdec-train report``: which tables and figures there are, in which order, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

import streamdec
from streamdec.errors import DataError, StreamdecError
from streamdec.page.document import Block, Document, Note, Picture, Section, Text, to_html, to_markdown
from streamdec.page.scalp import flattened
from streamdec.types import Float64

from ..checkpoint import replace
from ..data.store import Prepared
from ..experiment import Opened, open_test
from ..progress import Report, silent
from ..targets.saliency import Saliency
from ..targets.store import Targets
from . import figures, inside, prompts, tables, views
from .gather import DataSet, Entry, Gathered, Run, Variant, counts, gather

_USUAL = ("pass", "train_loss", "validation_loss", "validation_top1")
_WEIGHT = "weight_"
_BANDS = f"Bands: SD over subjects, where there are up to {figures.MAX_BANDS} curves."
_OCCLUSION = (
    "Occlusion: how much of the margin (cosine with the own image minus the mean cosine with the others) is lost when "
    "the channel is zero in every averaged test epoch. Channels that tell the same stand in for each other."
)


def report(
    paths: Sequence[Path],
    out: Path,
    *,
    markdown: bool = False,
    categories: Path | None = None,
    say: Report = silent,
) -> Gathered:
    """Write a report of runs.

    Parameters
    ----------
    paths : sequence of Path
        Run folders, or folders of them.
    out : Path
        The HTML file. It holds all its pictures.
    markdown : bool
        Write Markdown beside it as well, its pictures in a folder.
    categories : Path, optional
        Table of categories, as :func:`.inside.categories` reads it.
    say : callable

    Raises
    ------
    DataError
        No evaluated run; the file cannot be written.
    ConfigError
        The table of categories has none of the items.
    """
    gathered = gather(paths)
    document = compose(gathered, categories, say)
    made_by = f"Made by streamdec {streamdec.__version__}. {_provenance(gathered)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace(out, to_html(document, made_by).encode())
        if markdown:
            text = to_markdown(document, made_by, out.with_name(f"{out.stem}-figures"))
            replace(out.with_suffix(".md"), text.encode())
    except OSError as error:
        raise DataError(f"report {out} cannot be written", got=error.strerror, do="name another file") from error
    return gathered


def compose(gathered: Gathered, categories: Path | None = None, say: Report = silent) -> Document:
    """Make the document."""
    sections: list[Section] = []
    missing: list[str] = []
    for data in gathered.data_sets:
        said = "simulated data, " if data.simulated else ""
        told = [Note("Simulated data. No figure below says anything about people.")] if data.simulated else []
        sections.append(Section(f"{data.name} ({said}{'classes' if data.classes else 'stimuli'})", tuple(told)))
        if data.classes:
            sections.append(_section("Results", [tables.classes(data)]))
        else:
            sections += _results(data)
        sections += _training(data)
        if not data.classes:
            sections += _insides(data, gathered, categories, missing, say)
    sections += [Section("About this report", _about(gathered, missing))]
    names = ", ".join(dict.fromkeys(data.name for data in gathered.data_sets))
    lead = Text(f"{len(gathered.runs)} evaluated runs: {counts(gathered)}.")
    return Document(f"Decoders compared on {names}", (lead,), tuple(sections))


def _section(title: str, blocks: Iterable[Block | None]) -> Section:
    return Section(title, tuple(block for block in blocks if block is not None), 3)


def _slug(*parts: str) -> str:
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)


def _results(data: DataSet) -> list[Section]:
    protocols = data.protocols()
    of_subjects = [tables.subjects(data, protocol) for protocol in protocols]
    return [
        _section("Results", [tables.results(data), tables.literature(data)]),
        _section("Subjects", [*(_bars(data, protocol) for protocol in protocols), *of_subjects]),
        _section("Repetitions", [_repetitions(data)]),
        _section("Time windows", _time_windows(data)),
        _section("Number of subjects", [_subject_counts(data)]),
        _section("Ablations", [tables.ablations(data)]),
        _section("Ranks and k-way", [tables.ranks(data)]),
        _section("Class centres", [tables.class_centres(data)]),
        _section("Transductive scores", [tables.transductive(data)]),
    ]


def _bars(data: DataSet, protocol: str) -> Picture | None:
    values: dict[str, dict[str, list[float]]] = {}
    shown = []
    for variant in data.bases():
        for entry in variant.of(protocol):
            assert entry.evaluation.averaged is not None
            shown.append(entry.evaluation.averaged)
            of_method = values.setdefault(variant.title, {})
            of_method.setdefault(entry.evaluation.subject, []).append(entry.evaluation.averaged.top1)
    if not shown:
        return None
    caption = (
        f"Top-1 of every subject, {tables.PROTOCOLS[protocol]}, all repetitions averaged. Bars: mean over seeds; "
        f"whiskers: binomial 95 % interval of {shown[0].n_queries} queries; dots: seeds; dotted: chance."
    )
    name = _slug(data.name, "subjects", protocol)
    return figures.per_subject(name, values, data.numbers(), shown[0].n_queries, shown[0].chance, caption)


def _repetitions(data: DataSet) -> Picture | None:
    groups: dict[str, dict[str, dict[float, list[float]]]] = {}
    chance = 0.0
    for protocol in data.protocols():
        for variant in data.bases():
            points = _per_subject(
                variant.of(protocol), lambda entry: {row.repetitions or 0: row.top1 for row in entry.evaluation.curve}
            )
            if len(points) > 1:
                groups.setdefault(tables.PROTOCOLS[protocol], {})[variant.title] = points
                chance = variant.entries[0].evaluation.curve[0].chance
    if not groups:
        return None
    caption = (
        "Top-1 over the number of repetitions averaged before encoding; nested subsets, the same in every run. "
        f"{_BANDS}"
    )
    labels = ("repetitions", "top-1 %")
    return figures.curves(
        _slug(data.name, "repetitions"), groups, data.numbers(), labels, chance, caption, doubling=True
    )


def _per_subject(entries: Sequence[Entry], points: Callable[[Entry], dict[float, float]]) -> dict[float, list[float]]:
    """Mean over seeds of each subject's y at each x: x -> one value per subject; x that all entries have."""
    found = [(entry.evaluation.subject, points(entry)) for entry in entries]
    shared = set.intersection(*(set(of_entry) for _, of_entry in found)) if found else set()
    subjects = dict.fromkeys(subject for subject, _ in found)
    return {
        x: [float(np.mean([of_entry[x] for own, of_entry in found if own == subject])) for subject in subjects]
        for x in sorted(shared)
    }


def _subject_counts(data: DataSet) -> Picture | None:
    """Top-1 over the number of subjects one model was fitted to, of methods that have several."""
    groups: dict[str, dict[str, dict[float, list[float]]]] = {}
    for base in data.bases():
        family = [variant for variant in data.variants if variant.method == base.method and variant.fewer_subjects]
        for protocol in data.protocols() if family else ():
            entries = [entry for variant in (base, *family) for entry in variant.of(protocol)]
            points: dict[float, list[float]] = {}
            for n in sorted({len(entry.run.meta.prepared) for entry in entries}):
                fitted = [entry for entry in entries if len(entry.run.meta.prepared) == n]
                points |= _per_subject(fitted, lambda entry, n=n: {n: tables.top1(entry)})  # type: ignore[misc]
            if len(points) > 1:
                groups.setdefault(tables.PROTOCOLS[protocol], {})[base.title] = points
    if not groups:
        return None
    chance = tables.averaged(data.variants[0].entries[0].evaluation).chance
    name, labels = _slug(data.name, "number-of-subjects"), ("subjects fitted to", "top-1 %")
    methods = ", ".join(dict.fromkeys(method for of_group in groups.values() for method in of_group))
    caption = f"{methods}: top-1 over the number of subjects that one model was fitted to. {_BANDS}"
    return figures.curves(name, groups, data.numbers(), labels, chance, caption, doubling=True)


_MODES = {
    "masked": "Masked: the decoder trained on the whole epoch, given epochs that are zero outside the window; it says "
    "when this decoder looks, not what could be decoded.",
    "retrained": "Retrained: the method fitted anew for every window; it says what can be decoded from the window.",
}


def _time_windows(data: DataSet) -> list[Picture]:
    out = []
    for mode, said in _MODES.items():
        for protocol in data.protocols():
            growing: dict[str, dict[float, list[float]]] = {}
            shrinking: dict[str, dict[float, list[float]]] = {}
            chance = 0.0
            for variant in data.variants:
                found = [
                    (record.subject, record)
                    for run in variant.runs()
                    for record in run.windows
                    if (record.mode, record.protocol, record.dataset) == (mode, protocol, data.name)
                ]
                for subject in dict.fromkeys(subject for subject, _ in found):
                    records = [record for own, record in found if own == subject]
                    for side, points in (("growing", growing), ("shrinking", shrinking)):
                        of_x: dict[float, list[float]] = {}
                        for record in records:
                            for row in getattr(record, side):
                                at = round(1000 * (row.stop if side == "growing" else row.start))
                                of_x.setdefault(at, []).append(row.averaged.top1)
                                chance = row.averaged.chance
                        for at, values in of_x.items():
                            points.setdefault(variant.title, {}).setdefault(at, []).append(float(np.mean(values)))
            if growing:
                groups = {"from the start of the epoch to t": growing, "from t to its end": shrinking}
                caption = f"Top-1 over time windows, {tables.PROTOCOLS[protocol]}. {said} {_BANDS}"
                name = _slug(data.name, "windows", mode, protocol)
                out.append(
                    figures.curves(name, groups, data.numbers(), ("t, ms after the onset", "top-1 %"), chance, caption)
                )
    return out


def _training(data: DataSet) -> list[Section]:
    losses: dict[str, dict[str, list[figures.Curve]]] = {}
    top1: dict[str, dict[str, list[figures.Curve]]] = {}
    weights: dict[str, dict[str, list[figures.Curve]]] = {}
    noted: dict[str, dict[str, list[figures.Curve]]] = {}
    for variant in data.variants:
        trained = [run for run in variant.runs() if run.history]
        if not trained:
            continue
        if variant.base:
            losses[variant.title] = {
                "training": [_curve(run, "train_loss") for run in trained],
                "validation": [_curve(run, "validation_loss") for run in trained],
            }
            top1[variant.title] = {"top-1": [_curve(run, "validation_top1", 100) for run in trained]}
        for key in trained[0].history[0]:
            if key.startswith(_WEIGHT):
                found = weights.setdefault(variant.title, {})
                found[key.removeprefix(_WEIGHT)] = [_curve(run, key) for run in trained]
            elif key not in _USUAL:
                noted.setdefault(variant.title, {})[key] = [_curve(run, key) for run in trained]
    n = "Thin: single runs; thick: their mean."
    kinds = (
        ("Learning curves", losses, "loss", f"Losses of different methods are not comparable. {n}"),
        ("", top1, "validation top-1 %", f"On the validation samples, against all validation images at once. {n}"),
        ("Loss weights", weights, "weight", f"Mean weight of each loss over a pass (dynamic loss adjustment). {n}"),
        ("Also noted", noted, "value", f"What a method tells of itself after each pass. {n}"),
    )
    sections: dict[str, list[Block]] = {}
    title = ""
    for heading, groups, label, caption in kinds:
        title = heading or title
        if groups:
            picture = figures.lines(_slug(data.name, label), groups, ("pass", label), caption)
            sections.setdefault(title, []).append(picture)
    return [_section(heading, blocks) for heading, blocks in sections.items()]


def _curve(run: Run, key: str, scale: float = 1.0) -> figures.Curve:
    return {line["pass"]: scale * line[key] for line in run.history if key in line}


def _insides(
    data: DataSet, gathered: Gathered, categories: Path | None, missing: list[str], say: Report
) -> list[Section]:
    maps: list[Picture | None] = []
    geometries: list[Picture | None] = []
    sheets: list[Picture] = []
    for variant in data.bases():
        chosen = median(variant)
        say(f"looking into {variant.title}")
        test = _opened(chosen, gathered, missing)
        if test is None:
            continue
        seen = inside.look(test)
        run = f"{variant.title}, {seen.about.subject}, seed {seen.about.seed}, {tables.PROTOCOLS[seen.about.protocol]}"
        of_item = inside.categories(test.prepared, categories)
        geometries.append(views.geometry(_slug(data.name, "geometry", variant.title), run, seen, of_item))
        right, wrong = inside.cases(seen, 3)
        sheets.append(views.sheet(_slug(data.name, "cases", variant.title), run, seen, right, wrong))
        maps.append(_scalp(data, variant, gathered, missing, say))
    which = Text(
        "One run of each method is shown: the one whose top-1 is the median of the method's runs, neither the best nor "
        "the worst."
    )
    return [
        _section("Geometry by category", [which, *geometries] if any(geometries) else []),
        _section("Channels", maps),
        _section("Retrieval cases", [which, *sheets] if sheets else []),
        _section("Prompts", [_prompts(data, gathered, missing)]),
        _section("Saliency maps", [_saliency(data, gathered)]),
    ]


def median(variant: Variant) -> Entry:
    """Choose the entry with the median top-1, the lower one of two; of intra-subject ones where there are some."""
    entries = variant.of("intra") or variant.of("left_out")
    ordered = sorted(entries, key=lambda entry: entry.evaluation.averaged.top1 if entry.evaluation.averaged else 0.0)
    return ordered[(len(ordered) - 1) // 2]


def _opened(entry: Entry, gathered: Gathered, missing: list[str]) -> Opened | None:
    """Open what an evaluation was made of; where it is gone, say so in the report."""
    try:
        store = gathered.store_of(entry.evaluation)
        if store is None:
            raise DataError(f"store of {entry.evaluation.subject}", got="no run that was fitted to it")
        return open_test(entry.run.path, Prepared(store))
    except StreamdecError as error:
        missing.append(f"{entry.run.path.name}: {error}")
        return None


def _scalp(data: DataSet, variant: Variant, gathered: Gathered, missing: list[str], say: Report) -> Picture | None:
    """Occlusion of every subject's first seed."""
    of_subject: dict[str, Entry] = {}
    for entry in variant.of("intra") or variant.of("left_out"):
        of_subject.setdefault(entry.evaluation.subject, entry)
    found: dict[str, Float64] = {}
    ch_names: tuple[str, ...] = ()
    for i, (subject, entry) in enumerate(of_subject.items()):
        say(f"channels of {variant.title}, {subject}", i, len(of_subject))
        test = _opened(entry, gathered, missing)
        if test is None:
            continue
        seen = inside.look(test)
        if flattened(seen.ch_names) is None or (ch_names and seen.ch_names != ch_names):
            continue
        ch_names = seen.ch_names
        found[subject] = inside.occlusion(test.encode, seen.means, test.gallery, seen.target)
    if not found:
        return None
    return views.scalp(_slug(data.name, "channels", variant.title), variant.title, found, ch_names, _OCCLUSION)


def _prompts(data: DataSet, gathered: Gathered, missing: list[str]) -> Picture | None:
    """What prompts do to the test images, of the first variant that trains all of NeuroCLIP's or else some."""
    found: list[tuple[int, Picture]] = []
    for variant in data.variants:
        chosen = median(variant)
        test = _opened(chosen, gathered, missing) if chosen.run.meta.method == "neuroclip" else None
        seen = test and prompts.look(test)
        picture = seen and prompts.picture(_slug(data.name, "prompts"), variant.title, seen)
        if seen and picture:
            found.append((sum(part is None for part in (seen.filters, seen.instance, seen.shared)), picture))
    return min(found, key=lambda one: one[0])[1] if found else None


def _saliency(data: DataSet, gathered: Gathered) -> Picture | None:
    """Saliency maps of the test images, where a target encoder saw images through them."""
    for entry in (entry for variant in data.variants for entry in variant.entries):
        with suppress(StreamdecError):  # features or store are gone: the next may have them
            for path in entry.run.meta.targets.values():
                for change in Targets(Path(path)).meta.provenance.get("images", ()):
                    store = gathered.store_of(entry.evaluation)
                    if "vse" not in change or store is None:
                        continue
                    settings, meta = msgspec.convert(change["vse"], Saliency), Prepared(store).meta
                    caption = "Visual saliency extraction, with the constants the runs' targets were made with."
                    name = _slug(data.name, "saliency")
                    return views.saliency_maps(name, meta.items["test"], Path(meta.images), settings, caption)
    return None


def _about(gathered: Gathered, missing: Sequence[str]) -> tuple[Block, ...]:
    said = [
        "Figures come from the records that streamdec-train evaluate wrote; nothing is measured by the report but what "
        "its pictures show."
    ]
    if gathered.unfinished:
        said.append(f"Left out, without an evaluation: {_names(gathered.unfinished)}.")
    if gathered.doubled:
        said.append(f"Not counted, as they repeat settings, subject and seed of others: {_names(gathered.doubled)}.")
    if missing:
        said.append(f"Not looked into, as something is gone: {'; '.join(dict.fromkeys(missing))}.")
    offline_only = dict.fromkeys(e.offline_only for run in gathered.runs for e in run.evaluations if e.offline_only)
    if offline_only:
        said.append(f"Some runs cannot serve live: {'; '.join(offline_only)}.")
    return tuple(Text(text) for text in said)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _provenance(gathered: Gathered) -> str:
    commits = dict.fromkeys(run.meta.commit[:10] + run.meta.commit[40:] for run in gathered.runs if run.meta.commit)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.meta.versions.items()) for run in gathered.runs
    )
    of_commits = f"Runs of commit {', '.join(commits)}. " if commits else ""
    return f"{of_commits}Fitted with {'; '.join(versions)}."
