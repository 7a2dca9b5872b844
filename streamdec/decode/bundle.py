"""Bundles: a decoder sealed in a folder or one .zip. Reading runs no code of its maker and checks before it believes.

::

    manifest.json          what it is (Manifest), with the sha256 of every file below
    manifest.sha256        the manifest's own hash, as sha256sum writes it
    arrays.safetensors     whitener and other arrays the chain needs; "0.5/whitener" that of the head at 0.5 s alone;
                           what calibration needs: "evoked" (n_chans, n_times) mean and "covariance" of the training
                           epochs behind the chain; and what it fitted: "0.5/adaptation.offset", ".left", ".right"
    gallery.safetensors    features (G, D) float32
    gallery.json           id, label and thumbnail of each candidate
    thumbnails/...         png, jpg or webp
    *.onnx                 one encoder per head
    *.safetensors          the trained arrays behind an encoder, to compile it from (optional)

The hashes find damage and tampering by anyone who does not rewrite them all; they do not say who made the bundle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ..errors import BundleError, StreamdecError
from ..signal.chain import Chain
from .adapt import NAMES as ADAPTATION
from .adapt import Adaptation
from .archive import Archive, open_archive, write_archive
from .gallery import Gallery
from .manifest import SCHEMA, Calibrated, Calibration, Head, Manifest, MarkerLatency, Parity

__all__ = ["Bundle", "Calibrated", "Calibration", "Head", "Manifest", "MarkerLatency", "Parity", "read", "write"]

MANIFEST, SEAL, ARRAYS, FEATURES, CANDIDATES = (
    "manifest.json",
    "manifest.sha256",
    "arrays.safetensors",
    "gallery.safetensors",
    "gallery.json",
)

MAX_JSON_BYTES = 64 << 20

_T = TypeVar("_T")


class _Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    label: str
    thumbnail: str = ""


class _Schema(msgspec.Struct, frozen=True):
    schema: int


class Bundle:
    """A verified bundle. Encoders and thumbnails stay on disk and are verified again when they are asked for.

    Attributes
    ----------
    path : Path
    hash : str
        sha256 of its manifest, which holds the sha256 of everything else: it names the bundle.
    manifest : Manifest
    arrays : dict of str to array
        What the chain's steps refer to, read-only.
    gallery : Gallery
    """

    def __init__(
        self,
        files: Archive,
        digest: str,
        manifest: Manifest,
        arrays: dict[str, npt.NDArray[Any]],
        gallery: Gallery,
        thumbnails: dict[str, str],
    ) -> None:
        self.path = files.path
        self.hash = digest
        self.manifest = manifest
        self.arrays = arrays
        self.gallery = gallery
        self._files = files
        self._thumbnails = thumbnails

    def __repr__(self) -> str:
        return f"Bundle({self.path.name}, {self.manifest.method}, {self.gallery!r}, {self.hash[:12]})"

    def chain(self, head: Head) -> Chain:
        """Make the epoch steps before a head: arrays of its own come before those for all.

        Raises
        ------
        ConfigError
            A step does not fit.
        """
        own = head.array("")
        arrays = self.arrays | {n.removeprefix(own): array for n, array in self.arrays.items() if n.startswith(own)}
        return Chain(self.manifest.signal.until(head.horizon), arrays)

    def array(self, head: Head, name: str) -> npt.NDArray[Any] | None:
        """Give an array of a head, or, where it has none of its own, of all; None where there is none."""
        return self.arrays.get(head.array(name), self.arrays.get(name))

    def adaptation(self, head: Head) -> Adaptation | None:
        """Give what a head's embeddings are adapted to a person by, None where they are not.

        Raises
        ------
        BundleError
            Its arrays do not go together.
        """
        found = [self.arrays.get(head.array(name)) for name in ADAPTATION]
        offset, left, right = found
        if offset is None or left is None or right is None:
            return None
        if offset.shape != (head.dim,):
            raise BundleError(ADAPTATION[0], got=f"shape {offset.shape}", allowed=f"({head.dim},)")
        return Adaptation(offset, left, right)

    def encoder(self, head: Head) -> bytes:
        """Read the ONNX model of one of the manifest's heads."""
        return self._files.load(head.encoder, self.manifest.files[head.encoder])

    def weights(self, head: Head) -> bytes:
        """Read the trained network's arrays, a safetensors file.

        Raises
        ------
        BundleError
            There is none.
        """
        if head.weights not in self.manifest.files:
            raise BundleError(f"bundle {self.path.name}", got=f"no {head.weights}", do="export it again")
        return self._files.load(head.weights, self.manifest.files[head.weights])

    def thumbnail(self, name: str) -> bytes | None:
        """Read the picture (PNG, JPEG or WebP) of the candidate with this id, None where there is none."""
        file = self._thumbnails.get(name)
        if file is None:
            return None
        return self._files.load(file, self.manifest.files[file])


def read(path: str | os.PathLike[str], *, live: bool = True) -> Bundle:
    """Open a bundle, having verified every byte of it.

    Parameters
    ----------
    path : path
        A folder or a .zip.
    live : bool
        Refuse a bundle that is marked for offline use only.

    Raises
    ------
    BundleError
        It is no bundle, damaged, changed, of a newer schema, unsafe to unpack, inconsistent, or not for live use.
    """
    path = Path(path)
    with _refused(path):
        files = open_archive(path)
        raw, digest = _read_manifest(files)
        manifest = _decode(raw, Manifest, MANIFEST)
        if live and manifest.offline_only:
            raise BundleError(
                "it is for offline use only",
                got=manifest.offline_only,
                do="export one that was trained through the live signal chain",
            )
        return _read_content(files, manifest, digest)


def write(
    path: str | os.PathLike[str],
    manifest: Manifest,
    arrays: Mapping[str, npt.NDArray[Any]],
    gallery: Gallery,
    encoders: Mapping[str, bytes],
    thumbnails: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a bundle, all or nothing: it appears under its name once it is complete and :func:`read` takes it.

    The same content gives the same bytes.

    Parameters
    ----------
    path : path
        A new file (.zip) or a new folder (any other name).
    manifest : Manifest
        Its ``files`` and ``gallery`` are filled in here.
    arrays : mapping of str to array
        What the chain's steps refer to.
    gallery : Gallery
    encoders : mapping of str to bytes
        The ONNX file of every head, by the name the head gives it; beside it may be the head's weights.
    thumbnails : mapping of str to bytes, optional
        PNG, JPEG or WebP by candidate id.

    Raises
    ------
    BundleError
        The path exists, or the parts do not fit each other.
    """
    path = Path(path)
    if path.exists():
        raise BundleError(f"bundle {path.name}", got="it exists", do="remove it first, or choose another name")
    wanted = {head.encoder for head in manifest.heads}
    if not wanted <= encoders.keys() <= wanted | ({head.weights for head in manifest.heads} - {ARRAYS, FEATURES}):
        raise BundleError("encoders", got=sorted(encoders), allowed=f"what the heads name: {sorted(wanted)}")
    entries = [_Candidate(name, label) for name, label in zip(gallery.ids, gallery.labels, strict=True)]
    contents = dict(encoders)
    for i, (name, picture) in enumerate((thumbnails or {}).items()):
        at = gallery.index_of(name)
        if at is None:
            raise BundleError(f"thumbnail of {name!r}", allowed="ids of the gallery")
        file = f"thumbnails/{i:06d}.{_suffix(name, picture)}"
        entries[at] = msgspec.structs.replace(entries[at], thumbnail=file)
        contents[file] = picture
    contents[ARRAYS] = safetensors.numpy.save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    contents[FEATURES] = safetensors.numpy.save({"features": gallery.features})
    contents[CANDIDATES] = msgspec.json.encode(entries)
    hashes = {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}
    raw = msgspec.json.format(
        msgspec.json.encode(msgspec.structs.replace(manifest, gallery=gallery.kind, files=hashes)), indent=2
    )
    contents = {MANIFEST: raw, SEAL: _seal(hashlib.sha256(raw).hexdigest())} | {name: contents[name] for name in hashes}

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        write_archive(part, contents, zipped=path.suffix == ".zip")
        read(part, live=False)
        part.rename(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
    return path


def _read_manifest(files: Archive) -> tuple[bytes, str]:
    """Read the manifest's bytes and their hash; check the hash and the schema."""
    if MANIFEST not in files.sizes:
        raise BundleError(
            "it is no bundle", got=f"no {MANIFEST} at its top", do="give the folder or .zip that an export wrote"
        )
    raw = files.read(MANIFEST, MAX_JSON_BYTES)
    digest = hashlib.sha256(raw).hexdigest()
    if SEAL not in files.sizes or files.read(SEAL, MAX_JSON_BYTES) != _seal(digest):
        raise BundleError(
            MANIFEST, got=f"a hash that {SEAL} does not confirm", do="it was changed or damaged: get it anew"
        )
    schema = _decode(raw, _Schema, MANIFEST).schema
    if schema > SCHEMA:
        raise BundleError("its schema is newer", got=schema, allowed=f"up to {SCHEMA}", do="update streamdec")
    return raw, digest


def _read_content(files: Archive, manifest: Manifest, digest: str) -> Bundle:
    listed, present = manifest.files.keys(), files.sizes.keys() - {MANIFEST, SEAL}
    needed = {ARRAYS, FEATURES, CANDIDATES} | {head.encoder for head in manifest.heads}
    if missing := (listed | needed) - present:
        raise BundleError("a file is missing", got=min(missing), do="get the bundle anew")
    if extra := present - listed:
        raise BundleError("a file that the manifest does not list", got=min(extra), do="remove it")
    for name in sorted(listed - {ARRAYS, FEATURES, CANDIDATES}):
        files.verify(name, manifest.files[name])

    arrays = _tensors(ARRAYS, files.load(ARRAYS, manifest.files[ARRAYS]))
    if absent := set(manifest.array_names) - arrays.keys():
        raise BundleError(
            ARRAYS,
            got=f"no array {min(absent)!r}",
            allowed=f"what the signal's steps name: {', '.join(manifest.array_names)}",
        )
    tensors = _tensors(FEATURES, files.load(FEATURES, manifest.files[FEATURES]))
    features = tensors.get("features")
    dim = manifest.heads[-1].dim
    if (
        features is None
        or len(tensors) > 1
        or features.dtype != np.float32
        or features.ndim != 2
        or features.shape[1] != dim
        or not len(features)
    ):
        got = {key: f"{tensor.dtype} {tensor.shape}" for key, tensor in tensors.items()}
        raise BundleError(FEATURES, got=got, allowed=f"one array 'features', float32 (1 or more candidates, {dim})")
    candidates = _decode(
        files.load(CANDIDATES, manifest.files[CANDIDATES], MAX_JSON_BYTES), list[_Candidate], CANDIDATES
    )
    thumbnails = {c.id: c.thumbnail for c in candidates if c.thumbnail}
    for name in thumbnails.values():
        if name not in listed:
            raise BundleError(f"thumbnail {name!r}", allowed="a file that the manifest lists")
    try:
        gallery = Gallery(features, [c.id for c in candidates], [c.label for c in candidates], manifest.gallery)
    except StreamdecError as error:
        raise BundleError(f"its gallery: {error}") from error
    return Bundle(files, digest, manifest, arrays, gallery, thumbnails)


def _tensors(name: str, data: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        tensors: dict[str, npt.NDArray[Any]] = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(name, got=str(error), allowed="safetensors that numpy can hold") from error
    for key, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise BundleError(f"{name}, array {key!r}", got="NaN or infinity", allowed="finite values")
        tensor.flags.writeable = False
    return tensors


def _decode(raw: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(name, got=str(error), allowed="what its schema says") from error


def _seal(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()


def _suffix(name: str, picture: bytes) -> str:
    if picture.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if picture.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "webp"
    raise BundleError(f"thumbnail of {name!r}", got=repr(picture[:8]), allowed="PNG, JPEG or WebP")


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Name the bundle in every error."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"bundle {path.name}: {error}") from error
