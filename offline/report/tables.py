"""Figures as tables. Percentages; where runs are summarised, as :mod:`..summary` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import numpy as np

from streamdec.page.document import Column, Table

from ..evaluate import Evaluation, Retrieval
from ..summary import Mean, summarise
from .gather import DataSet, Entry, Variant
from .published import N_CANDIDATES, Published, published

PROTOCOLS = {"intra": "intra-subject", "left_out": "subject left out"}
_HOW = "Mean over subjects ± SD over subjects, in brackets the SD of that mean over seeds, where there are several."
_NONE = "–"


def of(entries: Iterable[Entry], figure: Callable[[Retrieval], float]) -> Mean | None:
    """Summarise a figure of the averaged queries; None without entries."""
    return over(entries, lambda evaluation: figure(averaged(evaluation)))


def over(entries: Iterable[Entry], figure: Callable[[Evaluation], float]) -> Mean | None:
    """Summarise a figure of the evaluations; None without entries."""
    values = _by_subject(entries, figure)
    return summarise(values) if values else None


def _by_subject(entries: Iterable[Entry], figure: Callable[[Evaluation], float]) -> dict[tuple[str, int], float]:
    """Give a figure by subject and seed: the mean over sessions, where several were tested."""
    found: dict[tuple[str, int], list[float]] = {}
    for entry in entries:
        found.setdefault((entry.evaluation.subject, entry.evaluation.seed), []).append(figure(entry.evaluation))
    return {key: fmean(sessions) for key, sessions in found.items()}


def percent(mean: Mean | None) -> str:
    """``48.1 ± 3.2 (0.8)``."""
    return _NONE if mean is None else _spread(mean, 100, 1)


def _spread(mean: Mean, scale: float, digits: int) -> str:
    subjects = "" if mean.over_subjects is None else f" ± {scale * mean.over_subjects:.{digits}f}"
    seeds = "" if mean.over_seeds is None else f" ({scale * mean.over_seeds:.{digits}f})"
    return f"{scale * mean.value:.{digits}f}{subjects}{seeds}"


def results(data: DataSet) -> Table:
    """Top-1 and top-5 of every method, on real data beside its published figures."""
    protocols, bases = data.protocols(), data.bases()
    shown = [[averaged(entry.evaluation) for entry in base.entries] for base in bases]
    sizes = [(_range(r.repetitions or "all" for r in own), _range(r.n_candidates for r in own)) for own in shown]
    alike = len(set(sizes)) == 1
    beside = {} if data.simulated else published(data.name)
    columns: list[tuple[str, Column]] = [("method", "text")]
    for name in protocols:
        columns += [(f"{PROTOCOLS[name]}\ntop-{k} %", "number") for k in (1, 5)]
        columns += [(f"published\n{PROTOCOLS[name]}\ntop-1 / top-5 %", "number")] if beside else []
    columns += [("subjects\n× seeds", "number")]
    columns += [] if alike else [("repetitions", "number"), ("candidates", "number")]
    rows = []
    for base, own, size in zip(bases, shown, sizes, strict=True):
        theirs = beside.get(base.method) if all(r.n_candidates == N_CANDIDATES for r in own) else None
        row = [base.title]
        for name in protocols:
            row += [percent(of(base.of(name), figure)) for figure in (_top1, _top5)]
            row += [_theirs(theirs, name)] if beside else []
        rows.append((*row, _grid(base), *(() if alike else size)))
    chance = _range(f"{100 / r.n_candidates:.2g}" for own in shown for r in own)
    each = (
        f"{sizes[0][0]} repetitions averaged into each query, {sizes[0][1]} stimuli to choose from"
        if alike
        else "all repetitions averaged into each query"
    )
    caption = f"{_HOW} Figures of {each}; chance {chance}\u00a0%."
    if data.simulated:
        caption = f"Simulated data: not comparable with any published figure. {caption}"
    elif beside:
        caption += " Published figures are other programs', of 200 candidates; beside another number there are none."
        caption += " † Against class centres, not stimuli." if any(row.class_centres for row in beside.values()) else ""
    return Table(tuple(columns), tuple(rows), caption)


def literature(data: DataSet) -> Table | None:
    """Where the published figures come from, and how they were obtained."""
    rows = [] if data.simulated else list(published(data.name).values())
    if not rows:
        return None
    return Table(
        (
            ("published", "text"),
            ("intra-subject %", "number"),
            ("subject left out %", "number"),
            ("source", "text"),
            ("how", "text"),
        ),
        tuple((row.name, _theirs(row, "intra"), _theirs(row, "left_out"), row.source, row.how) for row in rows),
        "Top-1 / top-5 as published, means over subjects, 200 candidates; † class centres, not stimuli.",
    )


def subjects(data: DataSet, protocol: str) -> Table | None:
    """Top-1 of every subject, mean over seeds."""
    chosen = [variant for variant in data.bases() if variant.of(protocol)]
    names = sorted({entry.evaluation.subject for variant in chosen for entry in variant.of(protocol)})
    if len(names) < 2:
        return None
    rows = []
    for variant in chosen:
        of_subject = [[e for e in variant.of(protocol) if e.evaluation.subject == name] for name in names]
        means = [of(entries, _top1) for entries in of_subject]
        rows.append((variant.title, *(f"{100 * mean.value:.1f}" if mean else _NONE for mean in means)))
    columns: list[tuple[str, Column]] = [("method", "text"), *((name, "number") for name in names)]
    return Table(tuple(columns), tuple(rows), f"Top-1 in % of each subject, {PROTOCOLS[protocol]}, mean over seeds.")


def ranks(data: DataSet) -> Table:
    """Median rank, mAP and k-way of every variant."""
    ways = sorted({int(k) for v in data.variants for e in v.entries for k in averaged(e.evaluation).k_way})
    columns: list[tuple[str, Column]] = [("method", "text"), ("protocol", "text"), ("median rank", "number")]
    columns += [("mAP", "number"), *((f"{k}-way %", "number") for k in ways)]
    rows = []
    for variant in data.variants:
        for name in data.protocols():
            entries = variant.of(name)
            if not entries:
                continue
            rank, precision = of(entries, lambda r: r.median_rank), of(entries, lambda r: r.mean_average_precision)
            assert rank is not None
            assert precision is not None
            cells = [variant.title, PROTOCOLS[name], f"{rank.value:.1f}", f"{precision.value:.3f}"]
            for k in ways:
                mean = of(entries, lambda r, k=k: r.k_way.get(str(k), np.nan))  # type: ignore[misc]
                cells.append(_NONE if mean is None or np.isnan(mean.value) else f"{100 * mean.value:.1f}")
            rows.append(tuple(cells))
    caption = "Means over subjects. k-way: expected top-1 among the own candidate and k - 1 drawn ones, in closed form."
    return Table(tuple(columns), tuple(rows), caption)


def class_centres(data: DataSet) -> Table | None:
    """Top-1 and top-5 against class centres, where they were evaluated."""
    rows = []
    for variant in data.variants:
        for name in data.protocols():
            entries = [entry for entry in variant.of(name) if entry.evaluation.class_centre]
            if entries:
                figures = [over(entries, lambda e, f=f: f(_centre(e))) for f in (_top1, _top5)]  # type: ignore[misc]
                n = _range(_centre(entry.evaluation).n_candidates for entry in entries)
                rows.append((variant.title, PROTOCOLS[name], *map(percent, figures), n))
    columns: tuple[tuple[str, Column], ...] = (
        ("method", "text"),
        ("protocol", "text"),
        ("top-1 %", "number"),
        ("top-5 %", "number"),
        ("candidates", "number"),
    )
    caption = (
        f"{_HOW} Candidates are the means of other images of the concepts: another task than finding the stimulus."
    )
    return Table(columns, tuple(rows), caption) if rows else None


def transductive(data: DataSet) -> Table | None:
    """Top-1 with the help of the whole test set, apart from all other figures."""
    rows = []
    for variant in data.variants:
        for name in data.protocols():
            found = {
                (record.subject, record.seed): record
                for run in variant.runs()
                for record in run.transductive
                if record.protocol == name and record.dataset == data.name
            }
            if found:
                kinds = ("alone", "csls", "sinkhorn", "whitened")
                cells = [summarise({k: getattr(r, kind).top1 for k, r in found.items()}) for kind in kinds]
                rows.append((variant.title, PROTOCOLS[name], *map(percent, cells)))
    columns: tuple[tuple[str, Column], ...] = (
        ("method", "text"),
        ("protocol", "text"),
        ("each query alone\ntop-1 %", "number"),
        ("CSLS", "number"),
        ("Sinkhorn", "number"),
        ("whitened", "number"),
    )
    caption = f"{_HOW} Transductive: computed from all test queries together, which no live decoder has."
    return Table(columns, tuple(rows), caption) if rows else None


def ablations(data: DataSet) -> Table | None:
    """Every variant of a method that has several, and how far it is from the method itself."""
    protocols = data.protocols()
    columns: list[tuple[str, Column]] = [("method", "text"), ("changed", "text")]
    columns += [(f"{PROTOCOLS[name]}\ntop-{k} %", "number") for name in protocols for k in (1, 5)]
    rows: list[tuple[str, ...]] = []
    bold = []
    for base in data.bases():
        family = [variant for variant in data.variants if variant.method == base.method]
        if len(family) < 2:
            continue
        bold.append(len(rows))
        for variant in family:
            cells = [variant.title if variant.named else "", "as it is" if variant.base else variant.changed]
            for name in protocols:
                usual = () if variant.base else base.of(name)
                cells += [_against(variant.of(name), usual, figure) for figure in (_top1, _top5)]
            cells.append(_grid(variant))
            rows.append(tuple(cells))
    columns.append(("subjects\n× seeds", "number"))
    caption = (
        "Means over subjects; in brackets the difference from the method as it is, in points, on the subjects and "
        "seeds that both have."
    )
    return Table(tuple(columns), tuple(rows), caption, tuple(bold)) if rows else None


def classes(data: DataSet) -> Table:
    """Area under the ROC curve and accuracy of single epochs, for data of classes."""
    rows = []
    for variant in data.variants:
        for name in data.protocols():
            entries = variant.of(name)
            if entries:
                mean = over(entries, lambda e: float(np.mean(list(e.auc.values()))))
                hits = over(entries, lambda e: e.single.top1)
                assert mean is not None
                auc = _spread(mean, 1, 3)
                rows.append((variant.title, PROTOCOLS[name], auc, percent(hits), _grid(variant)))
    columns: tuple[tuple[str, Column], ...] = (
        ("method", "text"),
        ("protocol", "text"),
        ("AUC", "number"),
        ("accuracy %", "number"),
        ("subjects\n× seeds", "number"),
    )
    names = sorted({label for v in data.variants for e in v.entries for label in e.evaluation.auc})
    caption = f"{_HOW} Single epochs; classes: {', '.join(names)}; AUC of each against the others, mean over classes."
    return Table(columns, tuple(rows), f"Simulated data. {caption}" if data.simulated else caption)


def averaged(evaluation: Evaluation) -> Retrieval:
    """Figures of the averaged queries, which evaluations of stimuli have."""
    assert evaluation.averaged is not None, "classes have tables of their own"
    return evaluation.averaged


def top1(entry: Entry) -> float:
    """Top-1 of the averaged queries."""
    return averaged(entry.evaluation).top1


def _centre(evaluation: Evaluation) -> Retrieval:
    assert evaluation.class_centre is not None
    return evaluation.class_centre


def _top1(retrieval: Retrieval) -> float:
    return retrieval.top1


def _top5(retrieval: Retrieval) -> float:
    return retrieval.top5


def _grid(variant: Variant) -> str:
    seeds = {entry.evaluation.seed for entry in variant.entries}
    return f"{len({entry.evaluation.subject for entry in variant.entries})} × {len(seeds)}"


def _range(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _theirs(row: Published | None, protocol: str) -> str:
    pair: Sequence[float | None] = (None, None) if row is None else getattr(row, protocol)
    if row is None or not any(pair):
        return _NONE
    return " / ".join(_NONE if value is None else f"{value:.1f}" for value in pair) + (
        " †" if row.class_centres else ""
    )


def _against(entries: Sequence[Entry], usual: Sequence[Entry], figure: Callable[[Retrieval], float]) -> str:
    """Mean, and its difference from others on the subjects and seeds that both have."""
    mean = of(entries, figure)
    if mean is None:
        return _NONE
    own, theirs = (_by_subject(side, lambda evaluation: figure(averaged(evaluation))) for side in (entries, usual))
    differences = {key: own[key] - theirs[key] for key in own if key in theirs}
    shown = f"{100 * mean.value:.1f}"
    if not differences:
        return shown
    return f"{shown} ({100 * summarise(differences).value:+.1f})".replace("-", "−")
