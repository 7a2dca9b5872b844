"""Run folders and checkpoints: safetensors and JSON, written whole or not at all. Opening one runs no code.

A run folder holds ``run.json`` (method, resolved settings, seed, commit, data and target fingerprints),
``history.jsonl`` (one line per pass), ``resume.safetensors`` (training state after the last finished pass), and once
fitted ``encoder.safetensors`` and ``fitted.json``, ``tensorboard/``, and ``evaluations/SUBJECT.json``,
``transductive/SUBJECT.json`` and ``time_windows/SUBJECT-MODE.json``; SUBJECT.STORE where another store was tested.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from streamdec.decode.manifest import Calibration
from streamdec.errors import ConfigError, DataError

_T = TypeVar("_T")
Arrays = dict[str, npt.NDArray[Any]]


class RunMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run is: the same of everything here gives the same encoder on a processor, and nearly the same on a GPU.

    ``prepared`` a folder per subject and ``targets`` one per role, with ``data`` and ``features`` their fingerprints;
    ``subjects`` as the stores name them, () in runs of before; ``versions`` of Python and the packages that compute;
    ``device`` it was started on, a GPU by its model, and ``processes`` that trained it together.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    prepared: tuple[str, ...]
    data: tuple[str, ...]
    targets: dict[str, str]
    features: dict[str, str]
    commit: str
    versions: dict[str, str]
    subjects: tuple[str, ...] = ()
    device: str = ""
    processes: int = 1


class FittedMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What fitting found: ``calibration`` of similarity to probability, ``notes`` such as the chosen alpha."""

    calibration: Calibration
    notes: dict[str, Any] = {}


class RunFolder:
    """A run on disk.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def encoder(self) -> Path:
        """The trained encoder."""
        return self.path / "encoder.safetensors"

    @property
    def resume(self) -> Path:
        """The training state after the last finished pass."""
        return self.path / "resume.safetensors"

    def start(self, meta: RunMeta) -> None:
        """Make the folder, or go on in one that was started with the same settings, data and seed.

        Raises
        ------
        ConfigError
            It holds another run.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not self.check(meta):
            self.write("run.json", meta)

    def check(self, meta: RunMeta) -> bool:
        """Tell whether it was started; with the same settings, data and seed.

        What was refused before its first pass left nothing but its description, and gives way.

        Raises
        ------
        ConfigError
            It holds another run.
        """
        if not any((self.path / name).exists() for name in (self.resume.name, self.encoder.name)):
            return False
        started = self.read("run.json", RunMeta)
        for field in ("method", "settings", "seed", "data", "features"):
            got, was = getattr(meta, field), getattr(started, field)
            if got != was:
                raise ConfigError(
                    f"{self.path} holds another run", got=f"{field} {got}", allowed=was, do="name another folder"
                )
        return True

    def write(self, name: str, record: msgspec.Struct) -> None:
        """Write a record as JSON."""
        path = self.path / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            replace(path, msgspec.json.format(msgspec.json.encode(record), indent=1))

    def read(self, name: str, kind: type[_T]) -> _T:
        """Read a record.

        Raises
        ------
        DataError
            It is not there, or not what it should be.
        """
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError) as error:
            raise DataError(f"{self.path / name}", got=str(error), do="fit it first: streamdec-train fit") from error

    def keep_evaluation(self, name: str, record: msgspec.Struct, kind: str = "evaluations") -> None:
        """Write a record of the test ``name``, a subject's, into the folder of its kind."""
        self.write(self.evaluation(name, kind), record)

    def evaluation(self, name: str, kind: str = "evaluations") -> str:
        """Name the file of such a record, below the run."""
        return f"{kind}/{Path(name).name or 'test'}.json"

    def log(self, entry: Mapping[str, float]) -> None:
        """Append one line to the history."""
        with (self.path / "history.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")


def save(path: Path, arrays: Mapping[str, npt.NDArray[Any]], state: Any = None) -> None:
    """Write arrays, and a JSON state beside them, as one safetensors file.

    Raises
    ------
    DataError
        It cannot be written, such as on a full disk; the file that was there stays.
    """
    partial = path.with_name(path.name + ".partial")
    metadata = {"state": msgspec.json.encode(state).decode()}
    with writing(path):
        try:
            write_arrays(partial, arrays, metadata)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that all may read who may read any new file: left alone, it is its owner's only."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path, metadata)
    path.chmod(mode)


def load(path: Path) -> tuple[Arrays, Any]:
    """Read what :func:`save` wrote.

    Raises
    ------
    DataError
        The file is not there, or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            state = msgspec.json.decode((file.metadata() or {}).get("state", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, msgspec.DecodeError) as error:
        raise DataError(f"{path}", got=str(error), do="fit it again") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line that something cannot be written, such as on a full disk.

    Raises
    ------
    DataError
        Instead of what the system or safetensors raised.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be written",
            got=getattr(error, "strerror", None) or error,
            do="make room, or name another folder; the same command goes on where it was",
        ) from error


def replace(path: Path, content: bytes) -> None:
    """Write a file, all or nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


@cache
def commit() -> str:
    """Commit of the checkout that runs, with "+" when it is changed; "" outside of one."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)  # noqa: S603, S607
    return done.stdout.strip()


def without_folders(value: Any) -> Any:
    """Keep the names of files and folders in a config, and not where they were on the machine that made it."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, str):
        kind, colon, rest = value.rpartition(":")  # of a target encoder, such as open_clip_text:FOLDER
        return f"{kind}{colon}{Path(rest).name}" if rest.startswith("/") else value
    return value


@cache
def versions() -> dict[str, str]:
    """Python and the packages that compute."""
    found = {"python": platform.python_version()}
    for package in ("streamdec", "numpy", "scipy", "torch", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
