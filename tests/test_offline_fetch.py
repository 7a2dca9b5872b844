"""Downloads from a local server: whole, cut off and resumed, changed, refused, wrong, and onto a full disk."""

from __future__ import annotations

import hashlib
import re
import resource
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from offline import cli
from offline.data import fetch
from offline.data.fetch import File
from streamdec.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Cuts each answer after ``cut`` bytes, but for the last of ``answers``; remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.cut, self.ranges = CONTENT, '"one"', [], []
        self.resumes, self.names_length, self.chunked = True, True, False

    def url(self, path: str = "/file.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        if self.path == "/gone.bin":
            self.send_error(404)
            return
        if self.path == "/redirect.bin":
            self.send_response(302)
            self.send_header("Location", "/file.bin")
            self.send_header("X-Linked-Etag", f'"{SHA256}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.resumes else 0
        if start and self.headers.get("If-Range") != server.etag:
            start = 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            if server.names_length:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", server.etag)
            self.end_headers()
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_whole(server: Server, tmp_path: Path) -> None:
    said = []
    file = File(server.url(), "a/b.bin", sha256=SHA256)
    assert fetch.fetch(file, tmp_path, lambda line, done=0, total=0: said.append((line, done, total))) == "sha256"
    assert (tmp_path / "a" / "b.bin").read_bytes() == CONTENT
    assert said[-1] == ("b.bin, MB", 3, 3)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]
    assert fetch.fetch(file, tmp_path) == "sha256"
    assert server.ranges == [None], "what is there is not asked for again"
    md5 = hashlib.md5(CONTENT).hexdigest()  # noqa: S324 - what some publishers state
    assert fetch.fetch(File(server.url(), "c.bin", md5=md5), tmp_path) == "md5"
    server.names_length = False
    assert fetch.fetch(File(server.url(), "d.bin"), tmp_path) == "no checksum published"
    assert (tmp_path / "d.bin").read_bytes() == CONTENT


def test_cut_off_answers_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cut = [1_000_000, 500_000, 7]
    assert fetch.fetch(File(server.url(), "a.bin", sha256=SHA256), tmp_path) == "sha256"
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500007-"]


def test_archive_made_on_the_way(server: Server, tmp_path: Path, monkeypatch) -> None:
    """As OSF sends it: in chunks, of unknown length, never resumed."""
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    server.chunked, server.cut = True, [2_000_000, 1_000_000]
    file = File(server.url(), "a.zip")
    with pytest.raises(DataError, match=r"ends after \d+ bytes; the same command starts anew"):
        fetch.fetch(file, tmp_path)
    assert not (tmp_path / "a.zip").exists()
    assert fetch.fetch(file, tmp_path) == "no checksum published"
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert set(server.ranges) == {None}


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = [1_000_000, 0]
    file = File(server.url(), "a.bin", sha256=SHA256)
    with pytest.raises(DataError, match="ends after 1000000 bytes; the same command goes on"):
        fetch.fetch(file, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert fetch.fetch(file, tmp_path) == "sha256"
    assert server.ranges[-1] == "bytes=1000000-"


@pytest.mark.parametrize("changed", [True, False])
def test_a_file_that_changed_or_a_server_that_cannot_resume_starts_anew(
    server: Server, tmp_path: Path, changed: bool
) -> None:
    server.cut = [1_000_000, 0]
    with pytest.raises(DataError):
        fetch.fetch(File(server.url(), "a.bin"), tmp_path)
    if changed:
        server.content, server.etag = CONTENT[::-1], '"two"'
    else:
        server.resumes = False
    fetch.fetch(File(server.url(), "a.bin"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == server.content


def test_killed_between_the_last_byte_and_the_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.tag").write_text(server.etag)
    assert fetch.fetch(File(server.url(), "a.bin", sha256=SHA256), tmp_path) == "sha256"
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_checksum_that_the_server_names(server: Server, tmp_path: Path) -> None:
    assert fetch.fetch(File(server.url("/redirect.bin"), "a.bin"), tmp_path) == "sha256"
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match=r"sha256 of .*b\.bin"):
        fetch.fetch(File(server.url("/redirect.bin"), "b.bin"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"sha256 of .*a\.bin; got {SHA256}; allowed: 00"):
        fetch.fetch(File(server.url(), "a.bin", sha256="0" * 64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_refusals(server: Server, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match="404 Not Found"):
        fetch.fetch(File(server.url("/gone.bin"), "a.bin"), tmp_path)
    port = server.server_port
    with pytest.raises(DataError, match=r"cannot reach .*put it at"):
        fetch.fetch(File(f"http://127.0.0.1:{1 if port != 1 else 2}/a.bin", "a.bin"), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(fetch.shutil, "disk_usage", lambda path: fetch.shutil._ntuple_diskusage(10, 10, 1_000_000))
        with pytest.raises(DataError, match=r"no room for .*got 1 MB; allowed: 3 MB or more"):
            fetch.fetch(File(server.url(), "a.bin"), tmp_path)
    (tmp_path / "plain").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        fetch.fetch(File(server.url(), "plain/a.bin"), tmp_path)


def test_disk_that_gets_full(server: Server, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*a\.bin; got File too large; make room"):
            fetch.fetch(File(server.url(), "a.bin", sha256=SHA256), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a.bin.part").stat().st_size <= 2_000_000
    assert fetch.fetch(File(server.url(), "a.bin", sha256=SHA256), tmp_path) == "sha256"
    assert server.ranges[-1] is not None


def test_known_data_sets() -> None:
    known = fetch.listing()
    for name, data_set in known.items():
        assert data_set.terms
        assert data_set.page.startswith("https://")
        for file in data_set.of():
            assert "{" not in file.url + file.path, name
    assert len(known["things_meg"].of()) == 20
    assert known["things_meg"].of(["sub-03"])[0].path.endswith("preprocessed_P3-epo.fif")
    assert known["things_eeg2_ubp"].of(["sub-10"])[1].url.endswith("sub-10/test.pt")
    with pytest.raises(ConfigError, match="sub-11"):
        known["things_eeg2_ubp"].of(["sub-11"])
    with pytest.raises(ConfigError, match="sub-01"):
        known["things_fmri"].of(["sub-01"])


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_command_line(server: Server, tmp_path: Path, capsys) -> None:
    listing = tmp_path / "own.toml"
    listing.write_text(f"""
[mine]
what = "a file"
terms = "be kind"
page = "https://example.org"
source = "the lab"
after = "unzip it"
subjects = ["sub-01", "sub-02"]
[[mine.files]]
url = "{server.url("/{subject}.bin")}"
path = "{{subject}}/a.bin"
sha256 = "{SHA256}"
""")
    own = ("--listing", listing)
    assert run("fetch") == 0
    assert "things_eeg2_official" in capsys.readouterr().out
    assert run("fetch", "mine", *own) == 0
    out = capsys.readouterr().out
    assert "terms: be kind" in out
    assert f"sub-02/a.bin  {server.url('/sub-02.bin')}  sha256 {SHA256}" in out
    assert run("fetch", "things_fmri") == 0
    assert "no checksum listed" in capsys.readouterr().out
    assert run("fetch", "mine", tmp_path / "data", *own) == 2
    assert "be kind" in capsys.readouterr().err
    assert not server.ranges
    assert run("fetch", "mine", tmp_path / "data", *own, "--accept-terms", "--subject", "sub-02") == 0
    assert "now unzip it" in capsys.readouterr().out
    assert (tmp_path / "data" / "sub-02" / "a.bin").read_bytes() == CONTENT
    assert run("fetch", "others", *own) == 2
    assert "allowed: mine" in capsys.readouterr().err
    listing.write_text(listing.read_text().replace("{subject}/a.bin", "../a.bin"))
    assert run("fetch", "mine", *own) == 2
    assert "relative path" in capsys.readouterr().err
