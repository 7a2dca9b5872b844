"""Public files by their address: resumed where they were cut off, checked where a checksum is published.

What can be fetched stands in ``files.toml`` beside this file, with where each address is from; another such file serves
for a mirror.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import msgspec

from streamdec.config import convert, read_toml
from streamdec.errors import ConfigError, DataError

from ..progress import Report, silent

LISTING = Path(__file__).with_name("files.toml")

_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_MB = 1_000_000
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its address, its place below the destination, and its checksum, "" where none is published.

    Where ``{subject}`` (sub-01) or ``{number}`` (1) stand in them, there is one per subject.
    """

    url: str
    path: str
    sha256: str = ""
    md5: str = ""


class DataSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What can be fetched under one name.

    ``what`` it is; ``terms`` to be accepted; ``page`` for people; ``source`` where the addresses are from; ``after``
    what is left to do by hand.
    """

    what: str
    terms: str
    page: str
    source: str
    files: tuple[File, ...]
    subjects: tuple[str, ...] = ()
    after: str = ""

    def of(self, subjects: Sequence[str] = ()) -> tuple[File, ...]:
        """Files of some subjects, of all when none are named.

        Raises
        ------
        ConfigError
            There is no such subject.
        """
        unknown = [subject for subject in subjects if subject not in self.subjects]
        if unknown:
            raise ConfigError(
                "subject", got=", ".join(unknown), allowed=", ".join(self.subjects) or "none: one file for all"
            )
        found = []
        for file in self.files:
            for subject in subjects or self.subjects if "{" in file.url else ("",):
                named = {"subject": subject, "number": subject.rpartition("-")[2].lstrip("0")}
                found.append(
                    msgspec.structs.replace(file, url=file.url.format(**named), path=file.path.format(**named))
                )
        return tuple(found)


def listing(path: Path = LISTING) -> dict[str, DataSet]:
    """Read what can be fetched.

    Raises
    ------
    ConfigError
        The file is not what it should be.
    """
    found = {name: convert(fields, DataSet, f"listing {path}, {name}") for name, fields in read_toml(path).items()}
    for file in (file for data_set in found.values() for file in data_set.files):
        place = PurePosixPath(file.path)
        if place.is_absolute() or ".." in place.parts or not file.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"listing {path}", got=f"{file.url} to {file.path}", allowed="http(s), to a relative path"
            )
    return found


def fetch(file: File, folder: Path, report: Report = silent) -> str:
    """Get one file, or the rest of it.

    A try that brought bytes and was cut off is followed by another. What has come stays beside the file as ``.part``.

    Parameters
    ----------
    file : File
    folder : Path
        Gets ``file.path``.
    report : callable
        Told of megabytes.

    Returns
    -------
    str
        How it was checked: "sha256", "md5", or "no checksum published".

    Raises
    ------
    DataError
        The server refuses, there is no network, the disk is full, or the checksum is another.
    """
    target = folder / file.path
    part, tag = (target.with_name(target.name + suffix) for suffix in (".part", ".part.tag"))
    _writing(target, lambda: target.parent.mkdir(parents=True, exist_ok=True))
    if target.exists():
        return _check(target, file, "")
    published = ""
    whole = False
    while not whole:
        before = _size(part)
        whole, published = _try(file, target, part, tag, report)
        if not whole and _size(part) <= before:
            do = "the same command goes on there" if tag.exists() else "the same command starts anew"
            raise DataError(f"{file.url} ends after {_size(part)} bytes", do=do)
    try:
        checked = _check(part, file, published)
    except DataError:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise
    part.rename(target)
    tag.unlink(missing_ok=True)
    return checked


def _try(file: File, target: Path, part: Path, tag: Path, report: Report) -> tuple[bool, str]:
    """Ask once; return whether the file is whole, and the sha256 that the server names."""
    have = _size(part) if tag.exists() else 0
    redirect = _Redirect()
    headers = {"User-Agent": "streamdec-train", "Accept-Encoding": "identity"}
    if have:
        # the rest of what we have, or, where the file has changed since, all of the new one
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    request = urllib.request.Request(file.url, headers=headers)  # noqa: S310 - listing() lets http(s) through alone
    try:
        with urllib.request.build_opener(redirect).open(request, timeout=_TIMEOUT) as answer:
            if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else 0
            free = shutil.disk_usage(part.parent).free
            if total - have > free:
                raise DataError(
                    f"no room for {target}",
                    got=f"{free / _MB:.0f} MB",
                    allowed=f"{(total - have) / _MB:.0f} MB or more",
                )
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            weak = not validator or validator.startswith("W/")
            _writing(target, lambda: tag.unlink(missing_ok=True) if weak else tag.write_text(validator))
            with _writing(target, lambda: part.open("r+b" if have else "wb")) as out:
                out.seek(have)
                try:
                    while chunk := answer.read(_CHUNK):
                        _writing(target, lambda chunk=chunk: out.write(chunk))
                        have += len(chunk)
                        report(f"{target.name}, MB", have // _MB, total // _MB)
                    cut = bool(total) and have < total
                except (http.client.HTTPException, ConnectionError, TimeoutError):
                    cut = True
                _writing(target, out.flush)
            return not cut, redirect.sha256
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to ask for
            return True, redirect.sha256
        raise DataError(
            f"{file.url}", got=f"{error.code} {error.reason}", do="see its page, or get it by hand"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException) as error:
        said = getattr(error, "reason", error)
        raise DataError(
            f"cannot reach {file.url}", got=str(said), do=f"get it by hand and put it at {target}"
        ) from error
    except OSError as error:  # a connection that was cut; files raise DataError
        raise DataError(f"{file.url} broke off", got=str(error), do="the same command goes on there") from error


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows, and keeps the sha256 that Hugging Face names on the way, as ``X-Linked-Etag`` of a large file."""

    sha256 = ""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        if match := _SHA256.fullmatch(headers.get("X-Linked-Etag", "")):
            self.sha256 = match[1]
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(path: Path, file: File, published: str) -> str:
    for kind, wanted in (("sha256", file.sha256 or published), ("md5", file.md5)):
        if not wanted:
            continue
        with path.open("rb") as content:
            found = hashlib.file_digest(content, kind).hexdigest()
        if found != wanted.lower():
            what = f"{kind} of {path.with_name(Path(file.path).name)}"
            raise DataError(what, got=found, allowed=wanted, do="delete what is there and fetch it again")
        return kind
    return "no checksum published"


def _writing(target: Path, act: Any) -> Any:
    try:
        return act()
    except OSError as error:
        raise DataError(
            f"cannot write {target}", got=error.strerror or str(error), do="make room; the same command goes on"
        ) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
