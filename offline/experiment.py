"""From a prepared store and target features to a fitted run, and from a run to its evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.decode.evidence import calibrate
from streamdec.decode.gallery import Gallery, unit
from streamdec.decode.manifest import Calibration
from streamdec.errors import ConfigError, DataError
from streamdec.types import Bool, Float32

from . import evaluate, metrics
from .checkpoint import FittedMeta, RunFolder, RunMeta, commit, versions
from .data import splits
from .data.joined import Joined, join
from .data.store import Int64, Item, Part, PartName, Prepared
from .evaluate import About, Evaluation
from .methods.base import Encoder, Labelling, Method, MethodSettings, Training
from .methods.registry import method as method_named
from .progress import Report, silent
from .targets.frozen import check_device
from .targets.store import Targets

_CALIBRATION_CANDIDATES = 200
_MAX_SCALE = 1000.0


def fit(
    method: Method,
    settings: MethodSettings,
    stores: Sequence[Prepared],
    targets: Mapping[str, Targets],
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
    writes: bool = True,
    processes: int = 1,
) -> RunFolder:
    """Fit a method on the training parts of one or several subjects, calibrate its probabilities, and keep both.

    Calibration uses what was held out of training. A call that was killed is repeated as it was, and goes on after the
    last finished pass.

    Parameters
    ----------
    method, settings
        See :func:`.methods.registry.method`.
    stores : sequence of Prepared
        One per subject.
    targets : mapping of str to Targets
        Features per role of the method.
    out : Path
        Run folder.
    writes : bool
        False in the further processes of one run (:mod:`.processes`): they train along, and keep nothing.
    processes : int
        How many make the run.

    Raises
    ------
    ConfigError
        ``out`` holds another run, a role is missing or unknown, a setting is wrong, or the device is not there.
    DataError
        Stores and features do not fit each other.
    """
    check_roles(method, targets)
    if seed < 0:
        raise ConfigError("seed", got=seed, allowed="0 or more")
    on = device if device == "cpu" else check_device(device)
    joined = join(stores)
    run = RunFolder(out)
    if writes:
        run.start(describe(method, settings, stores, targets, seed, on, processes))
    if (out / "fitted.json").exists():
        report("already fitted")
        return run
    if absent := [role for role in method.optional if role not in targets]:
        report(f"without the optional features of {method.name}: {', '.join(absent)}")
    features = {role: of_role.of(joined.items) for role, of_role in targets.items()}
    held = joined.hold_out(settings.validation.by, settings.validation.share, seed)
    fitted = method.fit(samples(joined, features, held, settings.average), settings, seed, device, run, report)
    if not writes:
        return run
    calibration = _calibrate(fitted.held_out, joined, features, held, seed)
    fitted.encoder.save(run.encoder)
    run.write("fitted.json", FittedMeta(calibration, fitted.notes))
    return run


def describe(
    method: Method,
    settings: MethodSettings,
    stores: Sequence[Prepared],
    targets: Mapping[str, Targets],
    seed: int,
    device: str = "",
    processes: int = 1,
) -> RunMeta:
    """Say what a run is that is fitted to these."""
    return RunMeta(
        method=method.name,
        settings=msgspec.json.decode(msgspec.json.encode(settings)),
        seed=seed,
        prepared=tuple(str(store.path.resolve()) for store in stores),
        data=tuple(store.meta.fingerprint for store in stores),
        targets={role: str(features.path.resolve()) for role, features in targets.items()},
        features={role: features.meta.fingerprint for role, features in targets.items()},
        commit=commit(),
        versions=versions(),
        subjects=tuple(store.meta.subject for store in stores),
        device=device,
        processes=processes,
    )


def check_roles(method: Method, targets: Collection[str]) -> None:
    """Refuse roles that a method does not have, and the lack of one that it has.

    Raises
    ------
    ConfigError
        Naming those it has.
    """
    missing = [role for role in method.roles if role not in targets]
    unknown = [role for role in targets if role not in method.roles + method.optional]
    if missing or (unknown and not method.open_roles):
        raise ConfigError(
            f"target features of {method.name}",
            got=", ".join(targets) or "none",
            allowed=", ".join(method.roles) + (f", optionally {', '.join(method.optional)}" if method.optional else ""),
            do="name them as ROLE=FOLDER,ROLE=FOLDER",
        )


def samples(joined: Joined, features: dict[str, npt.NDArray[Any]], held: Sequence[Bool], average: bool) -> Training:
    """Make what a method is given: mean epochs of stimuli, or single epochs; classes are never averaged."""
    concept = np.unique([item.concept for item in joined.items], return_inverse=True)[1].astype(np.int64)
    alone = joined.kind == "class" or not average
    groups = [[indices for indices in part.of_item() if len(indices)] for part in joined.parts]
    rows = [
        np.arange(len(part.epochs)) if alone else np.array([indices[0] for indices in shown])
        for part, shown in zip(joined.parts, groups, strict=True)
    ]
    ends = np.cumsum([len(of_part) for of_part in rows])
    epochs = np.empty((ends[-1], *joined.shape), np.float32)  # filled in place: many subjects may take half the memory
    blocks = np.split(epochs, ends[:-1])
    item: list[Int64] = []
    subject: list[Int64] = []
    of_held: list[Bool] = []
    group: list[Int64] = []
    for number, (part, place) in enumerate(zip(joined.parts, joined.places, strict=True)):
        of_part = rows[number]
        blocks[number][:] = part.epochs if alone else part.means(groups[number])
        item.append(place[part.rows.item[of_part]])
        subject.append(np.full(len(of_part), number, np.int64))
        of_held.append(held[number][of_part])
        of_class = splits.stretches(len(of_part)) + (int(group[-1].max()) + 1 if group else 0)
        group.append(concept[item[-1]] if joined.kind == "stimulus" else of_class)
    return Training(
        epochs,
        np.concatenate(item),
        np.concatenate(subject),
        features,
        np.concatenate(of_held),
        np.concatenate(group),
        joined.items,
        joined.subjects,
        joined.kind,
    )


def _calibrate(
    encoder: Encoder, joined: Joined, features: dict[str, npt.NDArray[Any]], held: Sequence[Bool], seed: int
) -> Calibration:
    """Fit similarity -> probability on held-out epochs, for each number of repetitions there is.

    Each stimulus competes with one image of each of up to 199 other concepts, as it will in a gallery of stimuli.
    """
    candidates = unit(encoder.candidates(features))
    similarities: dict[int, list[Float32]] = {}
    targets: dict[int, list[Int64]] = {}
    rng = np.random.default_rng([seed, 1])
    n_others = min(_CALIBRATION_CANDIDATES, *(len({i.concept for i in part.items}) for part in joined.parts)) - 1
    for subject, part, place, of_part in zip(joined.subjects, joined.parts, joined.places, held, strict=True):
        if joined.kind == "class":
            queries = unit(encoder(np.asarray(part.epochs[of_part]), subject))
            similarities.setdefault(1, []).append(queries @ candidates.T)
            targets.setdefault(1, []).append(place[part.rows.item[of_part]])
            continue
        epochs_of = part.of_item()
        shown = [i for i, indices in enumerate(epochs_of) if len(indices) and of_part[indices[0]]]
        choices = place[np.stack([_competitors(part, i, n_others, rng) for i in shown])]
        for n, indices in evaluate.nested([epochs_of[i] for i in shown]).items():
            queries = unit(encoder(part.means(indices), subject))
            similarities.setdefault(n, []).append(_similarities(queries, candidates, choices))
            targets.setdefault(n, []).append(np.zeros(len(shown), np.int64))
    counts = sorted(n for n, of_count in similarities.items() if len(of_count) == len(joined.parts))
    scales = [calibrate(np.concatenate(similarities[n]), np.concatenate(targets[n]), _MAX_SCALE) for n in counts]
    return Calibration(tuple(counts), tuple(scales))


def _similarities(queries: Float32, candidates: Float32, choices: Int64) -> Float32:
    """Cosines of each query (n, D) to its own choices (n, g) of the candidates: (n, g); never all of them at once."""
    blocks = np.array_split(np.arange(len(queries)), max(1, len(queries) // 64))
    return np.concatenate([np.einsum("nd,ngd->ng", queries[rows], candidates[choices[rows]]) for rows in blocks])


def _competitors(part: Part, own: int, n_others: int, rng: np.random.Generator) -> Int64:
    """Item ``own`` first, then one random item of each of ``n_others`` other concepts."""
    by_concept: dict[str, list[int]] = {}
    for i in rng.permutation(len(part.items)):
        by_concept.setdefault(part.items[i].concept, []).append(int(i))
    by_concept.pop(part.items[own].concept)
    others = [members[0] for members in by_concept.values()][:n_others]
    return np.array([own, *others], np.int64)


def open_run(path: Path) -> tuple[RunFolder, RunMeta, FittedMeta, Encoder]:
    """Open a fitted run.

    Raises
    ------
    DataError
        It is none.
    """
    run = RunFolder(path)
    meta, fitted = run.read("run.json", RunMeta), run.read("fitted.json", FittedMeta)
    return run, meta, fitted, method_named(meta.method).load(run.encoder)


def gallery(encoder: Encoder, prepared: Prepared, targets: Mapping[str, Targets], part: PartName = "test") -> Gallery:
    """Make the gallery of a part's items: what evaluation scores against and what a bundle holds."""
    if part not in prepared.meta.items:
        part = "train"
    items = prepared.meta.items[part]
    features = encoder.candidates({role: of_role.of(items) for role, of_role in targets.items()})
    return Gallery(features, [item.id for item in items], [item.label for item in items], prepared.meta.kind)


def targets_of(meta: RunMeta) -> dict[str, Targets]:
    """Open the target features a run was fitted to.

    Raises
    ------
    DataError
        They are not there, or others are.
    """
    targets = {role: Targets(Path(path)) for role, path in meta.targets.items()}
    for role, of_role in targets.items():
        _same(f"target features {of_role.path}", of_role.meta.fingerprint, meta.features[role])
    return targets


def stores_of(meta: RunMeta) -> list[Prepared]:
    """Open the stores a run was fitted on.

    Raises
    ------
    DataError
        They are not there, or others are.
    """
    stores = [Prepared(Path(folder)) for folder in meta.prepared]
    for store, fingerprint in zip(stores, meta.data, strict=True):
        _same(f"store {store.path}", store.meta.fingerprint, fingerprint)
    return stores


def _same(what: str, fingerprint: str, fitted: str) -> None:
    if fingerprint != fitted:
        raise DataError(
            what, got="another one than the run was fitted on", do="make it again as it was, or fit a new run"
        )


class Opened(msgspec.Struct, frozen=True, eq=False):
    """A fitted run before a test part.

    ``gallery`` the part's items, as the run's encoder sees them; ``targets`` what it was made of.
    """

    about: About
    encoder: Encoder
    prepared: Prepared
    part: Part
    gallery: Gallery
    targets: Mapping[str, Targets]

    def encode(self, epochs: Float32) -> Float32:
        """(n, n_chans, n_times) -> (n, D), as of the tested subject."""
        return self.encoder(epochs, self.about.subject)

    def averaged(self) -> tuple[Float32, Int64, int | None]:
        """Mean epochs of the stimuli that were shown, their candidates, and the repetitions of each, None if uneven.

        Raises
        ------
        DataError
            The items are classes, whose epochs are not repetitions.
        """
        if self.prepared.meta.kind == "class":
            raise DataError(f"mean epochs of {self.prepared.path}", got="classes", allowed="stimuli")
        epochs_of = self.part.of_item()
        shown = np.array([i for i, indices in enumerate(epochs_of) if len(indices)], np.int64)
        counts = {len(epochs_of[i]) for i in shown}
        return self.part.means([epochs_of[i] for i in shown]), shown, counts.pop() if len(counts) == 1 else None


def open_test(path: Path, prepared: Prepared | None = None, targets: Mapping[str, Targets] | None = None) -> Opened:
    """Open a run and the test part of its own store, or of another: a new session, or a subject left out.

    Raises
    ------
    ConfigError
        The other store was prepared otherwise, or the run has several stores and none is named.
    DataError
        There is no test part.
    """
    _, meta, _, encoder = open_run(path)
    prepared = prepared or own_store(meta)
    targets = targets or targets_of(meta)
    check_signal(prepared, meta, encoder)
    known = prepared.meta.fingerprint in meta.data or prepared.meta.subject in {*meta.subjects, *encoder.subjects}
    about = About(
        method=meta.method,
        dataset=prepared.meta.dataset,
        subject=prepared.meta.subject,
        protocol="intra" if known else "left_out",
        simulated=prepared.meta.simulated,
        offline_only=prepared.meta.offline_only,
        seed=meta.seed,
        data=meta.data,
        test_data=prepared.meta.fingerprint,
    )
    part = prepared.part("test")
    return Opened(about, encoder, prepared, part, gallery(encoder, prepared, targets), targets)


def check_signal(prepared: Prepared, meta: RunMeta, encoder: Encoder) -> None:
    """Refuse a store whose epochs are not what a run was fitted on, as far as the run's own store is still there.

    Raises
    ------
    ConfigError
        Its epochs have another shape, or were made otherwise: other channels, rate, window, filters or steps.
    """
    if prepared.meta.shape != encoder.shape:
        raise ConfigError(f"epochs of {prepared.path}", got=prepared.meta.shape, allowed=encoder.shape)
    own = Path(meta.prepared[0])
    if not own.is_dir():
        return
    signal = Prepared(own).meta.signal
    for field in signal.__struct_fields__:
        got, wanted = getattr(prepared.meta.signal, field), getattr(signal, field)
        if got != wanted:
            raise ConfigError(f"{field} of {prepared.path}", got=got, allowed=f"as the run's own store has: {wanted}")


def evaluate_run(
    path: Path,
    prepared: Prepared | None = None,
    targets: Mapping[str, Targets] | None = None,
    centres: Mapping[str, Targets] | None = None,
) -> Evaluation:
    """Evaluate a run as :func:`open_test` opens it; with ``centres``, against :func:`centre_gallery` as well."""
    test = open_test(path, prepared, targets)
    part, kind = test.part, test.prepared.meta.kind
    single = evaluate.scores(test.encode(np.asarray(part.epochs)), test.gallery)
    stimuli = kind == "stimulus"
    return Evaluation(
        **evaluate.about_fields(test.about),
        single=evaluate.from_scores(single, part.rows.item, kind, 1),
        averaged=_averaged(test) if stimuli else None,
        curve=evaluate.curve(test.encode, part, test.gallery, np.arange(len(part.items))) if stimuli else (),
        auc={} if stimuli else evaluate.class_auc(single, part.rows.item, [item.id for item in part.items]),
        class_centre=_against_centres(test, centres) if centres else None,
        multi_label=_labels(test) if stimuli and "labels" in test.targets else None,
    )


def _averaged(test: Opened) -> evaluate.Retrieval:
    means, shown, repetitions = test.averaged()
    return evaluate.retrieval(test.encode(means), test.gallery, shown, repetitions)


def _labels(test: Opened) -> metrics.MultiLabel | None:
    if not isinstance(test.encoder, Labelling):
        return None
    means, shown, _ = test.averaged()
    predicted = test.encoder.labels(means, test.about.subject)
    true = test.targets["labels"].of([test.part.items[i] for i in shown])
    return None if predicted is None else metrics.multi_label(predicted, true > 0.5)


def _against_centres(test: Opened, centres: Mapping[str, Targets]) -> evaluate.Retrieval:
    means, shown, repetitions = test.averaged()
    shelf, of_item = centre_gallery(test.encoder, centres, test.part.items)
    return evaluate.retrieval(test.encode(means), shelf, of_item[shown], repetitions)


def centre_gallery(encoder: Encoder, centres: Mapping[str, Targets], items: Sequence[Item]) -> tuple[Gallery, Int64]:
    """Make the class centres of items' concepts from features of other images of them.

    Parameters
    ----------
    encoder : Encoder
    centres : mapping of str to Targets
        Per role, features whose ids are CONCEPT/FILE, as those of a folder of images are; a number before the concept's
        name does not count. An image whose file has a stimulus' name is left out.
    items : sequence of Item

    Returns
    -------
    gallery : Gallery
        Of kind ``class_centre``.
    of_item : array of shape (n_items,), int64
        Each item's candidate.

    Raises
    ------
    ConfigError
        A role is missing that the encoder makes its candidates of.
    DataError
        There is no image of a concept.
    """
    wanted = [_plain(item.concept) for item in items]
    stimuli = {PurePosixPath(item.image or item.id).name for item in items}
    ids = next(iter(centres.values())).meta.ids
    concepts = {id_: _plain(str(PurePosixPath(id_).parent)) for id_ in ids if PurePosixPath(id_).name not in stimuli}
    kept = [id_ for id_ in concepts if concepts[id_] in set(wanted)]
    missing = sorted(set(wanted) - {concepts[id_] for id_ in kept})
    if missing:
        raise DataError(
            "features of class centres",
            got=f"no image of {missing[0]!r} ({len(missing)} of {len(set(wanted))} concepts) besides the stimuli",
            do="compute them for a folder of images with one folder per concept: streamdec-train features",
        )
    images = [Item(id_, id_, concepts[id_]) for id_ in kept]
    try:
        features = encoder.candidates({role: of_role.of(images) for role, of_role in centres.items()})
    except KeyError as error:
        got = ", ".join(centres)
        raise ConfigError("roles of class centres", got=got, allowed=f"{error.args[0]} among them") from error
    shelf = evaluate.class_centres(features, [image.concept for image in images])
    return shelf, np.array([shelf.index_of(name) for name in wanted], np.int64)


def _plain(concept: str) -> str:
    """Name of a concept without what stands before it: test/00012_cat and 00012_cat are cat."""
    name = concept.rpartition("/")[2]
    number, _, rest = name.partition("_")
    return rest if number.isdigit() and rest else name


def own_store(meta: RunMeta) -> Prepared:
    """Open the one store a run was fitted on.

    Raises
    ------
    ConfigError
        There are several.
    DataError
        It is not there, or another one is.
    """
    if len(meta.prepared) > 1:
        raise ConfigError("store", got="none", allowed="one", do=f"the run has {len(meta.prepared)}: name one")
    return stores_of(meta)[0]
