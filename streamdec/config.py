"""Typed configuration of the live side, read from TOML. Unknown keys, wrong types and wrong values fail at load."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_origin

import msgspec

from .acquire.query import StreamQuery
from .decode.compiled import CompiledKind
from .decode.engine import Device
from .decode.evidence import EvidenceSettings
from .decode.generate.client import GenerateSettings
from .errors import ConfigError
from .feed.publisher import FeedSettings
from .intake import IntakeSettings
from .session import SessionSettings

T = TypeVar("T")
EngineKind: TypeAlias = Literal["onnx", CompiledKind]


class InletSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which streams to read.

    ``eeg`` and ``markers`` how to find them; ``wait`` seconds to look for them before giving up, 0 waits for ever;
    ``stall`` seconds without a sample after which the stream counts as stalled.
    """

    eeg: StreamQuery = StreamQuery(type="EEG")
    markers: StreamQuery = StreamQuery(type="Markers")
    wait: float = 30.0
    stall: float = 0.25


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How encoders run.

    ``kind`` "onnx", which every bundle brings, or what ``streamdec-train compile`` made on this machine: "aoti",
    "tensorrt-fp32", "tensorrt-fp16"; where it does not fit any more, ONNX runs on the CPU and the feed says why.
    ``threads`` within one operation; ``device`` "cpu" or "cuda" (extra ``gpu``); ``cuda_graph`` launch a compiled
    engine as one recorded CUDA graph; ``cache`` folder of compiled engines, "" for the user's own.
    """

    kind: EngineKind = "onnx"
    threads: int = 1
    device: Device = "cpu"
    cuda_graph: bool = False
    cache: str = ""

    def __post_init__(self) -> None:
        if self.kind.startswith("tensorrt") and self.device != "cuda":
            raise ConfigError(f"engine.device with engine.kind {self.kind!r}", got=repr(self.device), allowed="'cuda'")
        if self.cuda_graph and (self.kind == "onnx" or self.device != "cuda"):
            raise ConfigError(
                "engine.cuda_graph",
                got=f"engine.kind {self.kind!r} on {self.device!r}",
                allowed="a compiled engine on 'cuda'",
            )


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole live side: one table per part.

    ``record`` a folder, in which each session is recorded in one of its own. It and ``bundle``, ``feed.keys``,
    ``engine.cache``, ``generate.generator``, ``generate.keys`` and ``generate.costs`` are relative to the config's
    folder.
    """

    bundle: str = ""
    record: str = ""
    inlet: InletSettings = InletSettings()
    intake: IntakeSettings = IntakeSettings()
    engine: EngineSettings = EngineSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    session: SessionSettings = SessionSettings()
    feed: FeedSettings = FeedSettings()
    generate: GenerateSettings = GenerateSettings()


def configured(options: object) -> Config:
    """Read the config file of a command, with what the command line says on top.

    Parameters
    ----------
    options : argparse.Namespace
        ``config``, ``bundle``, ``record``, ``generator``, ``eeg``, ``markers`` and ``endpoint`` count, where the
        command has them.
    """
    replace = msgspec.structs.replace
    config = load(getattr(options, "config", None))
    if bundle := getattr(options, "bundle", None):
        config = replace(config, bundle=bundle)
    if record := getattr(options, "record", None):
        config = replace(config, record=str(record))
    if generator := getattr(options, "generator", None):
        config = replace(config, generate=replace(config.generate, generator=str(generator)))
    for role in ("eeg", "markers"):
        if text := getattr(options, role, None):
            config = replace(config, inlet=replace(config.inlet, **{role: query(text)}))
    if endpoint := getattr(options, "endpoint", None):
        config = replace(config, feed=replace(config.feed, endpoint=endpoint))
    return config


def query(text: str) -> StreamQuery:
    """Read a stream query: ``key=value[,key=value]``, or a bare name.

    Raises
    ------
    ConfigError
        An unknown key.
    """
    if "=" not in text:
        return StreamQuery(name=text)
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    return convert(pairs, StreamQuery, f"stream query {text!r}")


def load(path: Path | None) -> Config:
    """Read a TOML config; None gives the defaults.

    Raises
    ------
    ConfigError
        Not readable, not TOML, an unknown key, a wrong type or value: with file, key, what was got and what is allowed.
    """
    if path is None:
        return Config()
    fields = read_toml(path)
    paths = {
        "": ("bundle", "record"),
        "feed": ("keys",),
        "engine": ("cache",),
        "generate": ("generator", "keys", "costs"),
    }
    for table, key in ((fields.get(name) if name else fields, key) for name, keys in paths.items() for key in keys):
        if isinstance(table, dict) and isinstance(table.get(key), str) and table[key]:
            table[key] = str(path.parent / table[key])
    return convert(fields, Config, f"config {path}")


def read_toml(path: Path) -> dict[str, Any]:
    """TOML file -> plain dictionaries.

    Raises
    ------
    ConfigError
        Not readable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}", got=error.strerror, do="name a TOML file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not TOML", got=str(error)) from error


def convert(fields: dict[str, Any], kind: type[T], where: str) -> T:
    """Plain dictionaries -> typed settings, strictly.

    Raises
    ------
    ConfigError
        Naming the key, what is allowed there and what was got.
    """
    _refuse_unknown(fields, kind, where, "")
    try:
        return msgspec.convert(fields, kind)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise ConfigError(f"{where}: {error.__cause__}") from error
        what, _, place = str(error).partition(" - at `$.")
        raise ConfigError(f"{where}, key {place.rstrip('`') or 'at the top'}", got=what) from error


def _refuse_unknown(fields: dict[str, Any], kind: Any, where: str, prefix: str) -> None:
    """Msgspec names the unknown key but not the known ones; a user needs both."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in fields.items():
        if key not in known:
            raise ConfigError(f"{where}, unknown key {prefix + key}", allowed=", ".join(sorted(known)))
        named = get_origin(known[key]) is dict and isinstance(value, dict)
        nested = {f"{prefix}{key}.{name}.": one for name, one in value.items()} if named else {f"{prefix}{key}.": value}
        for option in getattr(known[key], "__args__", (known[key],)):
            for below, one in nested.items():
                if isinstance(one, dict) and isinstance(option, type) and issubclass(option, msgspec.Struct):
                    _refuse_unknown(one, option, where, below)
