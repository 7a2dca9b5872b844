"""Generator folders: opened once every byte is verified, written by giving a folder of files its manifest.

::

    generator.json         what it is (Generator), with the sha256 of every file below
    ...                    networks (ONNX), arrays (safetensors), sentences (JSON), folders of models

generator.json itself is sealed by nothing: who keeps a large model elsewhere writes there where it is. Models of
transformers and diffusers are opened from safetensors alone, without code of theirs and without a download.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec

from ...errors import BundleError
from ..archive import Folder
from ..manifest import Manifest
from .spec import SCHEMA, Generator

MANIFEST = "generator.json"
MAX_BYTES = 256 << 30  # an SDXL is 7 GB, a language model of 7 B 15 GB
_MAX_JSON_BYTES = 64 << 20

# owner/name on the hub, or a name alone
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")


class _Schema(msgspec.Struct, frozen=True):
    schema: int


class OpenGenerator:
    """A verified generator.

    Attributes
    ----------
    path : Path
    hash : str
        sha256 of its manifest, which holds the sha256 of everything else: it names the generator.
    manifest : Generator
    """

    def __init__(self, files: Folder, digest: str, manifest: Generator) -> None:
        self.path = files.path
        self.hash = digest
        self.manifest = manifest
        self._files = files

    def __repr__(self) -> str:
        return f"OpenGenerator({self.path.name}, {self.manifest.dim} dims, {self.hash[:12]})"

    def read(self, name: str) -> bytes:
        """Read a file that the manifest lists; its hash is checked again.

        Raises
        ------
        BundleError
            It is not listed, or was changed since.
        """
        with _refused(self.path):
            if name not in self.manifest.files:
                raise BundleError("a file is missing", got=repr(name), allowed="a file that the manifest lists")
            return self._files.load(name, self.manifest.files[name])

    def model(self, name: str, parts: Sequence[str]) -> Path:
        """Find a model of transformers or diffusers.

        Parameters
        ----------
        name : str
            A folder of the generator, an absolute path, or a name on the hub: then what an earlier download left on
            this machine.
        parts : sequence of str
            Files it must have, such as "unet/config.json".

        Returns
        -------
        Path
            Folder with all of them.

        Raises
        ------
        BundleError
            It is not on this machine; says which file to put where.
        """
        with _refused(self.path):
            inside = name.rstrip("/")
            if any(file.startswith(f"{inside}/") for file in self.manifest.files):
                folder, hub = self.path / inside, ""
            elif Path(name).is_absolute():
                folder, hub = Path(name), ""
            elif _HUB.fullmatch(name) and ".." not in name:
                folder, hub = _downloaded(name, parts[0]), name
            else:
                raise BundleError(
                    "a model", got=repr(name), allowed="a folder of the generator, an absolute path, or a hub name"
                )
            for part in parts:
                if not (folder / part).is_file():
                    do = f"bring the model's files: {', '.join(parts)} and its .safetensors weights"
                    if hub:
                        do = (
                            f"with a network: hf download {hub}; without: run it with --local-dir FOLDER elsewhere, "
                            f"bring FOLDER here and write its absolute path in {MANIFEST}"
                        )
                    raise BundleError(f"model {name} is not on this machine", got=f"no {folder / part}", do=do)
            return folder


def open_generator(path: str | os.PathLike[str], bundle: Manifest | None = None) -> OpenGenerator:
    """Open a generator, having verified every byte of it.

    Parameters
    ----------
    path : path
        Its folder.
    bundle : Manifest, optional
        Of the bundle whose embeddings it is for.

    Raises
    ------
    BundleError
        It is no generator, damaged, changed, of a newer schema, inconsistent, or for another embedding space.
    """
    path = Path(path)
    with _refused(path):
        if not path.is_dir():
            raise BundleError("it is no folder", do="give the folder that holds " + MANIFEST)
        files = Folder(path, MAX_BYTES)
        if MANIFEST not in files.sizes:
            raise BundleError(
                "it is no generator", got=f"no {MANIFEST} in it", do="streamdec-train generator makes one"
            )
        raw = files.read(MANIFEST, _MAX_JSON_BYTES)
        manifest = _decode(raw)
        _check(files, manifest)
        if bundle is not None:
            _fits(manifest, bundle)
        return OpenGenerator(files, hashlib.sha256(raw).hexdigest(), manifest)


def write_generator(path: str | os.PathLike[str], manifest: Generator) -> OpenGenerator:
    """Make a generator of a folder that holds all its files: hash them, write the manifest, and open it.

    Parameters
    ----------
    path : path
        The folder. A manifest that is there already gives way.
    manifest : Generator
        Its ``files`` are filled in here.

    Raises
    ------
    BundleError
        A file that it names is not there, or is not what it should be.
    """
    path = Path(path)
    with _refused(path):
        files = Folder(path, MAX_BYTES)
        hashes = {name: _digest(files, name) for name in sorted(files.sizes) if name != MANIFEST}
        sealed = msgspec.structs.replace(manifest, files=hashes)
        _references(sealed)
        part = path.parent / f".{MANIFEST}.{uuid4().hex}"  # beside it: what is inside is listed
        try:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=2))
            part.replace(path / MANIFEST)
        except OSError as error:
            raise BundleError("it cannot be written", got=error) from error
        finally:
            part.unlink(missing_ok=True)
    return open_generator(path)


def _decode(raw: bytes) -> Generator:
    try:
        schema = msgspec.json.decode(raw, type=_Schema).schema
        if schema > SCHEMA:
            raise BundleError("its schema is newer", got=schema, allowed=f"up to {SCHEMA}", do="update streamdec")
        return msgspec.json.decode(raw, type=Generator)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(MANIFEST, got=str(error), allowed="what its schema says") from error


def _check(files: Folder, manifest: Generator) -> None:
    if manifest.dim < 1 or not manifest.space:
        raise BundleError(
            "its space", got=f"{manifest.space!r}, {manifest.dim} dims", allowed="a name, and 1 dimension or more"
        )
    listed, present = manifest.files.keys(), files.sizes.keys() - {MANIFEST}
    if missing := listed - present:
        raise BundleError("a file is missing", got=min(missing), do="get it anew")
    if extra := present - listed:
        raise BundleError("a file that the manifest does not list", got=min(extra), do="remove it")
    _references(manifest)
    for name in sorted(listed):
        files.verify(name, manifest.files[name])


def _references(manifest: Generator) -> None:
    """Every file that a tier names is listed; models may be elsewhere."""
    bank, llm, latent, diffusion = manifest.bank, manifest.llm, manifest.latent, manifest.diffusion
    wanted = [manifest.query]
    if bank is not None:
        wanted += [bank.features, bank.sentences, bank.adapter]
    if llm is not None:
        wanted += [llm.projector]
    if latent is not None:
        wanted += [latent.network]
    if diffusion is not None:
        wanted += [diffusion.adapter, diffusion.prompt, diffusion.conditioner]
    for name in filter(None, wanted):
        if name not in manifest.files:
            raise BundleError("a file is missing", got=repr(name), allowed="a file of the folder, listed with its hash")


def _fits(manifest: Generator, bundle: Manifest) -> None:
    dim = bundle.heads[-1].dim
    if manifest.dim != dim:
        raise BundleError("it is for another bundle", got=f"{manifest.dim} dims", allowed=f"the bundle's {dim}")
    if not bundle.space:
        raise BundleError("the bundle does not name its embedding space", do="export the bundle again")
    if manifest.space != bundle.space:
        raise BundleError(
            "it is for another bundle",
            got=f"embedding space {manifest.space}",
            allowed=f"the bundle's: {bundle.space}",
            do="make a generator for this bundle",
        )


def _downloaded(name: str, part: str) -> Path:
    """Folder of a hub model in this machine's download cache, as huggingface_hub keeps it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    found = try_to_load_from_cache(name, part)
    if isinstance(found, str):
        return Path(found.removesuffix(part))
    return Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"


def _digest(files: Folder, name: str) -> str:
    with files.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered file is meant


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Name the generator in every error."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"generator {path.name}: {error}") from error
