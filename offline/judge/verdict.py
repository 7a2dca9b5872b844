"""The judgement of a set of results: every figure of every maker, beside what needs no EEG.

Controls, each judged as the results are:

- ``shuffled``: every result stands for another stimulus of the same set, by one fixed shuffle. Tiers see nothing of a
  stimulus but its evidence, so that is what EEG of another stimulus gives.
- ``label only`` (captions): what the decoder took the stimulus for, and no sentence.
- ``mean image``, ``wrong image`` (pictures): the mean of training images, and one of another concept.
- ``stimulus itself`` (pictures): as good as a figure can be; a judge of attributes errs on stimuli too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError, DataError
from streamdec.types import Float64

from ..data.store import Int64
from ..progress import Report, silent
from ..targets.images import UInt8, read_rgb
from .gauges import LOWER, OF_CAPTIONS, OF_PICTURES, Gauge, Maker, Options, objects
from .pictures import common
from .results import Made
from .truth import Truth

Kind: TypeAlias = Literal["caption", "picture"]
_Found: TypeAlias = dict[tuple[str, str], list[dict[str, Float64]]]  # by, control -> figures of each repeat

_SHUFFLE_SEED = 4
_MAKERS: dict[Kind, tuple[Maker, ...]] = {"caption": OF_CAPTIONS, "picture": OF_PICTURES}


class Figure(msgspec.Struct, frozen=True):
    """``value`` the mean over stimuli, repeats averaged first; ``error`` its standard error over stimuli."""

    value: float
    error: float


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one maker; or of one control, "" for the results themselves.

    Controls that are nobody's, such as the mean image, have no ``by``.
    """

    kind: Kind
    by: str
    control: str
    n_stimuli: int
    n_repeats: int
    figures: dict[str, Figure]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What ``streamdec-train judge`` finds.

    ``truth`` the data, ``simulated`` whether they are; ``lower`` figures that are better the lower; ``missing`` why
    something is not there.
    """

    truth: str
    simulated: bool
    judgements: tuple[Judgement, ...]
    lower: tuple[str, ...] = LOWER
    missing: dict[str, str] = {}


class _Set(msgspec.Struct, frozen=True, eq=False):
    """Results of one maker: ``repeats[r][i]`` is repeat r for stimulus ``rows[i]``."""

    by: str
    control: str
    rows: Int64
    repeats: list[npt.NDArray[Any]]


def judge(made: Sequence[Made], truth: Truth, options: Options | None = None, report: Report = silent) -> Verdict:
    """Judge results.

    Parameters
    ----------
    made : sequence of Made
        Results of one maker for one stimulus are repeats; each stimulus of a maker has as many.
    truth : Truth
    options : Options, optional
    report : callable
        Told which figures are on.

    Raises
    ------
    ConfigError
        A figure that was asked for is unknown, or what it needs is not here.
    DataError
        A result is of no stimulus, a picture cannot be read, stimuli have different numbers of repeats, or no maker
        has two stimuli.
    """
    options = options or Options()
    known = dict.fromkeys(name for makers in _MAKERS.values() for maker in makers for name in maker.figures)
    if unknown := options.figures - known.keys():
        raise ConfigError("figure", got=min(unknown), allowed=", ".join(known))
    if strangers := {one.key for one in made} - truth.labels.keys():
        raise DataError("results", got=f"stimulus {min(strangers)!r}", allowed=f"test stimuli of {truth.name}")
    missing: dict[str, str] = {}
    bench = _Bench(truth, options, missing, report)
    judgements = (
        *bench.measured("caption", [one for one in made if one.caption is not None]),
        *bench.measured("picture", [one for one in made if one.caption is None]),
    )
    if not judgements:
        raise DataError("results", got="nothing to judge", allowed="results of one maker for two stimuli or more")
    return Verdict(truth=truth.name, simulated=truth.simulated, judgements=judgements, missing=missing)


def shuffle(n: int) -> Int64:
    """Draw, always alike, whose result stands for each of ``n`` stimuli: never its own; ``n`` is 2 or more."""
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(n)
    out = np.empty(n, np.int64)
    out[order] = np.roll(order, 1)
    return out


class _Bench:
    """Measures results of a kind with all its gauges, one gauge at a time: networks are large."""

    def __init__(self, truth: Truth, options: Options, missing: dict[str, str], report: Report) -> None:
        self._truth, self._options, self._missing, self._report = truth, options, missing, report

    def measured(self, kind: Kind, made: Sequence[Made]) -> list[Judgement]:
        """Judge results, each maker's followed by their controls, those that are nobody's last."""
        wanted = self._options.figures
        makers = [maker for maker in _MAKERS[kind] if not wanted or wanted & set(maker.figures)]
        keys = sorted({one.key for one in made})
        if not makers or not keys:
            return []
        sets = list(self._captions(made, keys) if kind == "caption" else self._pictures(made, keys))
        if not any(one.control == "" for one in sets):
            return []
        found: _Found = {}
        for one in sets:
            found[one.by, one.control] = [{} for _ in one.repeats]
            if not one.control:
                found[one.by, "shuffled"] = [{} for _ in one.repeats]
        for maker in makers:
            self._report(f"{kind}s: {', '.join(maker.figures)}")
            try:
                self._measure(maker.open(self._truth, keys, self._options), sets, found)
            except (ConfigError, DataError) as error:
                if wanted:
                    raise
                self._missing[", ".join(maker.figures)] = str(error)
        return [
            Judgement(
                kind=kind,
                by=by,
                control=control,
                n_stimuli=len(next(one.rows for one in sets if one.by == by and one.control in ("", control))),
                n_repeats=len(repeats),
                figures={name: _figure([repeat[name] for repeat in repeats]) for name in repeats[0]},
            )
            for (by, control), repeats in found.items()
        ]

    def _measure(self, gauge: Gauge, sets: Sequence[_Set], found: _Found) -> None:
        for one in sets:
            real = tuple(part[one.rows] for part in gauge.real)
            for r, repeat in enumerate(one.repeats):
                seen = gauge.look(repeat)
                found[one.by, one.control][r] |= gauge.compare(real, seen)
                if not one.control:
                    moved = tuple(part[shuffle(len(one.rows))] for part in seen)
                    found[one.by, "shuffled"][r] |= gauge.compare(real, moved)

    def _captions(self, made: Sequence[Made], keys: Sequence[str]) -> Iterator[_Set]:
        labels = {(one.by, one.key): one.label for one in made}
        told: list[dict[str, str]] = []
        for one in self._sets(made, keys, lambda result: result.caption, objects):
            yield one
            of = {keys[row]: labels[one.by, keys[row]] for row in one.rows}
            if all(of.values()) and of not in told:  # mostly all makers were told the same
                yield _Set(one.by if told else "", "label only", one.rows, [objects(list(of.values()))])
                told.append(of)

    def _pictures(self, made: Sequence[Made], keys: Sequence[str]) -> Iterator[_Set]:
        truth = self._truth

        def load(one: Made) -> UInt8:
            picture = read_rgb(one.picture) if one.picture is not None else truth.image(one.source)
            return np.asarray(common([picture], truth.size)[0])

        yield from self._sets(made, keys, load, np.stack)
        every = np.arange(len(keys))
        yield _Set("", "stimulus itself", every, [truth.pictures(keys)])
        if not truth.training:
            self._missing["mean image, wrong image"] = f"{truth.name} has no training images"
            return
        yield _Set("", "mean image", every, [np.stack([truth.mean_image()] * len(keys))])
        yield _Set("", "wrong image", every, [truth.wrong_images(keys)])

    def _sets(
        self,
        made: Sequence[Made],
        keys: Sequence[str],
        load: Callable[[Made], Any],
        stack: Callable[[list[Any]], npt.NDArray[Any]],
    ) -> Iterator[_Set]:
        place = {key: row for row, key in enumerate(keys)}
        for by in dict.fromkeys(one.by for one in made):
            of: dict[str, list[Made]] = {}
            for one in made:
                if one.by == by:
                    of.setdefault(one.key, []).append(one)
            n_repeats = len(next(iter(of.values())))
            uneven = next((key for key, results in of.items() if len(results) != n_repeats), None)
            if uneven is not None:
                got = f"{len(of[uneven])} for {uneven!r}"
                raise DataError(f"results by {by}", got=got, allowed=f"as many as for the first stimulus: {n_repeats}")
            if len(of) < 2:
                self._missing[by] = "results for one stimulus only"
                continue
            rows = np.array([place[key] for key in of])
            repeats = [stack([load(results[r]) for results in of.values()]) for r in range(n_repeats)]
            yield _Set(by, "", rows, repeats)


def _figure(repeats: list[Float64]) -> Figure:
    of_stimulus = np.mean(repeats, axis=0)
    return Figure(float(of_stimulus.mean()), float(of_stimulus.std(ddof=1) / np.sqrt(len(of_stimulus))))
