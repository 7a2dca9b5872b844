"""README and site: every command is run, or parsed where running needs hardware; the site loads nothing from afar.

What the tags say stands in :mod:`doc_blocks`.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from doc_blocks import ROOT, SITE, Block, blocks, commands, pages

import offline.cli
import streamdec.cli
from offline import sweep
from offline.data.prepare import Recipe
from offline.data.recording import RecordingSettings
from offline.generation import config as generation
from offline.methods.registry import method
from streamdec.config import convert, load, read_toml

BLOCKS = [block for page in pages() for block in blocks(page)]
SCENARIOS = list(dict.fromkeys(block.scenario for block in BLOCKS if block.scenario))
PORT = "5650"
"""Of the feed, as the pages have it; a scenario's is another."""


def ids(chosen: list[Block]) -> list[str]:
    return [block.where for block in chosen]


def of(*does: str) -> list[Block]:
    return [block for block in BLOCKS if block.do in does]


def test_every_block_is_tagged() -> None:
    assert BLOCKS
    allowed = {"run", "start", "stop", "file", "config", "parse"}
    wrong = [block.where for block in BLOCKS if block.kind not in ("text", "json") and block.do not in allowed]
    assert not wrong, f"blocks without a tag: {wrong}"
    unsaid = [block.where for block in of("parse") if len(block.rest) < 4]
    assert not unsaid, f"parse needs a reason: {unsaid}"


# --- parsed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("parse"), ids=ids(of("parse")))
def test_parsed(block: Block, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if block.kind == "python":
        check_python(block.body)
        return
    if block.kind == "js":
        (tmp_path / "block.mjs").write_text(block.body, encoding="utf-8")
        subprocess.run([shutil.which("node") or pytest.skip("no node"), "--check", tmp_path / "block.mjs"], check=True)
        return
    assert block.kind == "sh", block.kind
    for line in commands(block):
        for part in re.split(r"&&|\||;|&$", line):
            check_command(shlex.split(re.sub(r"<\(|[<>]\s*\S+", "", part)))
    assert "error" not in capsys.readouterr().err


def check_command(words: list[str]) -> None:
    """The program, its options and the repository's files are there."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    for word in words:
        if re.match(r"(configs|tools|tests|docs|streamdec|offline)/", word):
            assert (ROOT / word).exists(), f"no {word}"
    program, arguments = words[0], words[1:]
    if program in ("streamdec", "streamdec-train"):
        parser = streamdec.cli.parser() if program == "streamdec" else offline.cli.parser()
        if arguments not in (["--help"], ["--version"]):
            parser.parse_args([each for each in arguments if each != "..."])
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for wanted in re.findall(r"\.\[(.+?)\]", " ".join(arguments)):
            assert set(wanted.split(",")) <= extras.keys(), wanted
    elif program == "python":
        path = Path(*arguments[1].split(".")).with_suffix(".py") if arguments[0] == "-m" else Path(arguments[0])
        if arguments[:2] == ["-m", "streamdec"]:
            check_command(["streamdec", *arguments[2:]])
            return
        path = path if (ROOT / path).exists() else path.with_suffix("") / "__main__.py"
        source = (ROOT / path).read_text(encoding="utf-8")
        for option in (word for word in arguments[1:] if word.startswith("--")):
            assert f'"{option.split("=")[0]}"' in source, f"{path} has no {option}"
    else:
        assert program in {"cd", "git", "mkdir", "mkdocs", "node", "npm", "npx", "pytest", "ssh", "tools/check"}, (
            program
        )


def check_python(body: str) -> None:
    """It is Python, and what it imports of ours is there."""
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("streamdec", "offline", "models"):
            module = __import__(node.module or "", fromlist=["*"])
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("block", of("config"), ids=ids(of("config")))
def test_configs_are_read(block: Block, tmp_path: Path) -> None:
    kind, _, name = block.rest.partition(" ")
    path = tmp_path / "some.toml"
    path.write_text(block.body, encoding="utf-8")
    read_config(kind, name, path)


def read_config(kind: str, name: str, path: Path) -> None:
    match kind:
        case "live":
            load(path)
        case "recording":
            convert(read_toml(path), RecordingSettings, "config")
        case "recipe":
            convert(read_toml(path), Recipe, "config")
        case "method":
            method(name).configured(read_toml(path), "config")
        case "sweep":
            sweep.cells(sweep.load(path))
        case "generator":
            generation.read(path)
        case _:
            raise AssertionError(f"config of what? {kind}")


# --- run -------------------------------------------------------------------------------------------------------------


def free_row(n: int) -> str:
    """Find so many free ports in a row; below those that the system gives away, as they wait a while to be used."""
    for first in random.SystemRandom().sample(range(30_000, 32_000), 100):
        with ExitStack() as row, suppress(OSError):
            for port in range(first, first + n):
                row.enter_context(socket.create_server(("127.0.0.1", port)))
            return str(first)
    pytest.fail("no free ports")


class Started(NamedTuple):
    """A program that runs beside others: where it stands, its command, its output."""

    where: str
    command: str
    process: subprocess.Popen[str]
    log: Path


class Scenario:
    """A folder, programs on the path, and what was started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Started] = []
        self.port = free_row(3)
        (folder / ".bin").mkdir()
        train = "from offline.cli import main"
        live = (
            "from streamdec.feed import address\n"
            f"address.DEFAULT = address.DEFAULT.replace('{PORT}', '{self.port}')\nfrom streamdec.cli import main"
        )
        self._program("streamdec", f"#!{sys.executable}\nimport sys\n{live}\nsys.exit(main())\n")
        self._program("streamdec-train", f"#!{sys.executable}\nimport sys\n{train}\nsys.exit(main())\n")
        self._program("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.environment = {
            **os.environ,
            "PATH": f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "COLUMNS": "120",
            "SDL_VIDEODRIVER": "dummy",  # a screen that nobody sees
        }

    def _program(self, name: str, text: str) -> None:
        path = self.folder / ".bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def do(self, block: Block) -> None:
        match block.do:
            case "file":
                path = self.folder / block.rest.split(";")[0].split()[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._text(block.body), encoding="utf-8")
                kind, _, name = block.option("as").partition(" ")
                if kind:
                    read_config(kind, name, path)
            case "run":
                self._run(block)
            case "start":
                self._start(block)
            case "stop":
                self.stop(block.option("only"))

    def _text(self, body: str) -> str:
        return body.replace(PORT, self.port)

    def _command(self, block: Block) -> list[str]:
        if block.kind == "python":
            return [sys.executable, "-c", self._text(block.body)]
        lines = [self._text(line) for line in commands(block)]
        if more := block.option("add"):
            lines[-1] = f"{lines[-1]} {self._text(more)}"
        if block.do == "start":
            lines[-1] = f"exec {lines[-1]}"
        return ["bash", "-euc", "\n".join(lines)]

    def _run(self, block: Block) -> None:
        done = subprocess.run(
            self._command(block), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{block.where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"

    def _start(self, block: Block) -> None:
        log = self.folder / f".log-{block.where.replace('/', '-')}"
        with log.open("w") as out:
            process = subprocess.Popen(
                self._command(block), cwd=self.folder, env=self.environment, stdout=out, stderr=out, text=True
            )
        self.started.append(Started(block.where, commands(block)[-1], process, log))
        until, patience = block.option("until"), time.monotonic() + 60
        while until not in log.read_text():
            assert process.poll() is None, f"{block.where}: it ended\n{log.read_text()}"
            assert time.monotonic() < patience, f"{block.where}: it never said {until!r}\n{log.read_text()}"
            time.sleep(0.02)

    def stop(self, only: str = "") -> None:
        """Ctrl-C for what was started, the newest first; or for the commands that begin with ``only``."""
        for started in [each for each in reversed(self.started) if each.command.startswith(only)]:
            self.started.remove(started)
            started.process.send_signal(signal.SIGINT)
            code = started.process.wait(30)
            assert code == 0, f"{started.where}: exit code {code}\n{started.log.read_text()}"

    def close(self) -> None:
        for started in self.started:
            started.process.kill()
            started.process.wait()


@pytest.fixture
def scenario() -> Iterator[Scenario]:
    with tempfile.TemporaryDirectory(prefix="streamdec-docs-") as folder:
        made = Scenario(Path(folder))
        yield made
        made.close()


@pytest.mark.lsl
@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_run(name: str, scenario: Scenario) -> None:
    for block in BLOCKS:
        if block.scenario == name:
            scenario.do(block)
    assert not scenario.started, "a scenario ends with a stop"


# --- messages and the built site -------------------------------------------------------------------------------------


def test_quoted_messages_are_real() -> None:
    """What troubleshooting quotes is said by the code: every piece between two ``…`` or ``;`` is a text of it."""
    said = set()
    for package in ("streamdec", "offline"):
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            said |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    corpus = " ".join("\n".join(said).split())
    quoted = [block for block in BLOCKS if block.page.stem == "troubleshooting" and block.kind == "text"]
    assert quoted
    for block in quoted:
        for line in block.body.splitlines():
            for piece in re.split(r"…|;|\bgot\b|\ballowed:", line):
                piece = piece.strip()
                assert piece in corpus, f"{block.where}: nobody says {piece!r}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="the site's own packages: pip install '.[docs]'")
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", SITE / "mkdocs.yml", "-d", built]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


@pytest.mark.slow
def test_pages_load_nothing_from_afar_and_fit_a_phone(site: Path) -> None:
    """In a browser, from a server of this machine: every page, without an error and without a scroll bar below it."""
    browsers = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 30
    handler = partial(Silent, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, browsers.sync_playwright() as play:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        errors: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        for page in pages:
            tab.goto(here + page)
            wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{page} is {wide} pixels too wide for a phone"
        browser.close()
        server.shutdown()
    assert not errors
    assert [url for url in asked if not url.startswith((here, "data:"))] == []


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
