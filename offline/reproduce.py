"""A published table, from the data set on disk to its figures: features, stores, and the sweep over its rows.

::

    OUT/
      simulated/      the simulated data set, where the table is made of one
      captions/       what an image-to-text model said
      targets/NAME/   target features
      stores/NAME/    prepared stores, one per subject
      runs/           the sweep (see :mod:`.sweep`)

What is there is not made again. What the rows deviate in from the papers stands in each table's ``about``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from streamdec.config import convert, read_toml
from streamdec.errors import ConfigError
from streamdec.signal.spec import Whiten
from streamdec.simulate import things_layout
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World

from .data import layouts
from .data.prepare import Recipe, Source, Whitening, prepare
from .data.store import Prepared
from .methods.base import merged
from .methods.registry import method
from .progress import Report, silent
from .sweep import Entry, Executor, Grid, Protocol, Resources, Swept, run
from .tables import FOLDER, NAMES
from .targets.captions import Captioner, write
from .targets.registry import encoder
from .targets.store import compute

_Sources = dict[str, dict[str, Source]]


class Captions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``model`` of transformers that is asked, and the ``prompt``: A, B, C, or any text."""

    model: str
    prompt: str = "A"


class Simulated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands for the data and the weights where the table is made of simulated subjects.

    ``targets`` an analytic encoder for each of the table's; ``schedule`` changes to every network's, and ``settings``
    to single rows'. ``subjects``, ``n_train`` concepts of ``images_per_concept`` images, ``n_test`` test images, and
    how often one is repeated in each of two sessions: ``train_repetitions``, ``test_repetitions``. ``distinctness`` of
    the responses and what of them is ``shared`` as in :class:`streamdec.simulate.subject.Subject`; ``tmax`` end of the
    epochs, s after the onset, None for the data set's own.
    """

    targets: dict[str, str]
    schedule: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    subjects: int = 3
    n_train: int = 100
    images_per_concept: int = 5
    n_test: int = 100
    train_repetitions: int = 2
    test_repetitions: int = 5
    distinctness: float = 1.0
    shared: float = 0.0
    tmax: float | None = None


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A published table.

    ``about`` its source, and what is done otherwise here. ``channels`` per preparation a regular expression of the
    names that are kept; ``tmax`` end of the epochs, s after the onset, where it is not the data set's own; ``whitener``
    of raw recordings; ``targets`` encoders by name, in which ``{NAME}`` is the file of those ``captions``; the rest as
    in :class:`.sweep.Grid`.
    """

    about: str
    dataset: Literal["things_eeg2", "things_meg"]
    subjects: tuple[str, ...]
    channels: dict[str, str] = msgspec.field(default_factory=lambda: {"all": ""})
    tmax: float | None = None
    whitener: Whitening = "session"
    captions: dict[str, Captions] = {}
    targets: dict[str, str]
    methods: dict[str, Entry]
    protocols: tuple[Protocol, ...] = ("intra", "left_out")
    seeds: tuple[int, ...] = (0, 1, 2)
    simulated: Simulated

    def __post_init__(self) -> None:
        lacking = sorted({name for row in self.methods.values() for name in row.targets.values()} - set(self.targets))
        if lacking or set(self.targets) != set(self.simulated.targets):
            raise ConfigError(
                "targets of the table", got=", ".join(self.targets), allowed="all that rows and simulated name"
            )


def table(name: str) -> Table:
    """Read a table by name.

    Raises
    ------
    ConfigError
        There is none, or it is wrong.
    """
    if name not in NAMES:
        raise ConfigError("table", got=name, allowed=", ".join(NAMES))
    path = FOLDER / f"{name}.toml"
    return convert(read_toml(path), Table, f"table {path}")


def simulated(of: Table) -> Table:
    """Make the same table of simulated subjects: analytic encoders, the schedules and sizes it has for them."""
    stand_in = of.simulated
    rows = {}
    for name, row in of.methods.items():
        has_schedule = "schedule" in method(row.method).settings.__struct_fields__
        settings = merged(row.settings, {"schedule": stand_in.schedule} if has_schedule else {})
        settings = merged(settings, stand_in.settings.get(name, {}))
        rows[name] = msgspec.structs.replace(row, settings=settings)
    return msgspec.structs.replace(
        of,
        dataset="things_eeg2",
        subjects=tuple(f"sub-{i + 1:02d}" for i in range(stand_in.subjects)),
        tmax=stand_in.tmax,
        captions={},
        targets=stand_in.targets,
        methods=rows,
    )


def grid(of: Table, out: Path, resources: Resources) -> Grid:
    """Make the sweep over a table's rows, with the folders below ``out``."""
    rows = of.methods
    if len(of.channels) > 1:
        first = next(iter(of.channels))
        rows = {name: msgspec.structs.replace(row, stores=row.stores or first) for name, row in rows.items()}
    return Grid(
        stores={
            preparation: {subject: str(out / "stores" / preparation / subject) for subject in of.subjects}
            for preparation in of.channels
        },
        targets={name: str(out / "targets" / name) for name in of.targets},
        methods=rows,
        protocols=of.protocols,
        seeds=of.seeds,
        resources=resources,
    )


def reproduce(
    of: Table,
    root: Path,
    out: Path,
    *,
    layout: str | None = None,
    resources: Resources = Resources(),  # noqa: B008 - frozen
    execute: Executor | None = None,
    report: Report = silent,
) -> Swept:
    """Make a table.

    Parameters
    ----------
    of : Table
    root : Path
        Folder above the data set.
    out : Path
        Folder for all that is made.
    layout : str, optional
        Of the data set, where there are several below ``root``.
    resources : Resources
        Of each run.
    execute : callable, optional
        As in :func:`.sweep.run`; features and stores are always made here.
    report : callable

    Raises
    ------
    ConfigError
        Weights that are not there: which file to put where.
    ConfigError
        ``out`` holds a preparation of another table.
    DataError
        A subject that is not below ``root``.
    """
    sources = {
        preparation: {subject: _source(of, root, subject, layout, kept) for subject in of.subjects}
        for preparation, kept in of.channels.items()
    }
    _features(of, sources, out, resources.device, report)
    for preparation, subjects in sources.items():
        for subject, source in subjects.items():
            store = out / "stores" / preparation / subject
            if store.exists():
                known = Prepared(store).meta
                if (known.signal, known.items) != (source.signal, source.items):
                    raise ConfigError(f"{store} holds another preparation", do="give every table a folder of its own")
                continue
            whitens = any(isinstance(step, Whiten) for step in source.signal.steps)
            prepare(source, of.whitener if whitens else "pooled", store, _named(report, f"{preparation}, {subject}"))
    return run(grid(of, out, resources), out / "runs", execute, report)


def _named(report: Report, what: str) -> Report:
    return lambda line, done=0, total=0: report(f"{what}: {line}", done, total)


def _source(of: Table, root: Path, subject: str, layout: str | None, kept: str) -> Source:
    source = layouts.source(root, subject, dataset=of.dataset, layout=layout)
    if not kept and of.tmax is None:
        return source
    signal = source.signal
    names = tuple(name for name in signal.ch_names if re.search(kept, name))
    tmax = signal.tmax if of.tmax is None else of.tmax
    recipe = Recipe(signal.tmin, tmax, names, signal.filters, signal.steps)
    return layouts.source(root, subject, dataset=of.dataset, layout=layout, recipe=recipe)


def _features(of: Table, sources: _Sources, out: Path, device: str, report: Report) -> None:
    """Captions and target features of all stimuli; before the stores, since this is where weights can be missing."""
    every = [source for subjects in sources.values() for source in subjects.values()]
    items = list({item.id: item for source in every for part in source.items.values() for item in part}.values())
    images, files = Path(every[0].images), {}
    for name, captions in of.captions.items():
        files[name] = out / "captions" / f"{name}.tsv"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        if any(f"{{{name}}}" in spec for spec in of.targets.values()):
            captioner = Captioner(captions.model, captions.prompt, device=device)
            write(captioner, items, images, files[name], report)
    for name, spec in of.targets.items():
        for captions_of, file in files.items():
            spec = spec.replace(f"{{{captions_of}}}", str(file))
        compute(encoder(spec, items, device), items, images, out / "targets" / name, _named(report, name))


def simulate(of: Simulated, root: Path, report: Report = silent) -> None:
    """Write the simulated data set below ``root``, in the layout of THINGS-EEG2, unless it is there.

    Raises
    ------
    ConfigError
        Another one is.
    """
    told = msgspec.json.encode(msgspec.structs.replace(of, targets={}, schedule={}, settings={}, tmax=None))
    file = root / "simulated.json"
    if root.exists():
        if not file.exists() or file.read_bytes() != told:
            raise ConfigError(f"{root} holds another simulation", do="give every table a folder of its own")
        return
    report(f"simulating {of.subjects} subjects")
    world = World(0, n_train=of.n_train, images_per_concept=of.images_per_concept, n_test=of.n_test)
    partial = root.with_name(root.name + ".partial")
    things_layout.write(
        partial,
        [Subject(world, seed, distinctness=of.distinctness, shared=of.shared) for seed in range(of.subjects)],
        n_sessions=2,
        train_repetitions=of.train_repetitions,
        test_repetitions=of.test_repetitions,
    )
    (partial / file.name).write_bytes(told)
    partial.rename(root)
