"""The feed read by another language: the TypeScript subscriber, built with npm's packages, in a Node process."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from feed_messages import gallery, one_of_each, onset, retrieval, session

from streamdec import feed
from streamdec.access import make_keys
from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher

CLIENT = Path(feed.__file__).parent / "clients" / "node"
PRINTER = Path(__file__).parent / "helpers" / "print_feed.ts"
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, built: packages as the lock file has them, from the npm registry; types checked."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not there")
    folder = tmp_path_factory.mktemp("node")
    for path in (*CLIENT.glob("*.json"), *CLIENT.glob("*.ts"), PRINTER):
        shutil.copy(path, folder)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode and any(f"code {code}" in done.stderr for code in OFFLINE):
        pytest.skip("the npm registry cannot be reached")
    assert done.returncode == 0, done.stderr
    built = compiled(folder)
    assert built.returncode == 0, built.stdout
    return folder


def compiled(folder: Path) -> subprocess.CompletedProcess[str]:
    compiler = ["node", "node_modules/typescript/bin/tsc"]
    return subprocess.run(compiler, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


class Printing:
    """The printer, and what it has printed so far."""

    def __init__(self, client: Path, out: Path, *arguments: object) -> None:
        self._out = out
        command = ["node", str(client / "build" / "print_feed.js"), *map(str, arguments)]
        with out.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file)

    def lines(self) -> list[Any]:
        text = self._out.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def until(self, found: Callable[[list[Any]], bool], *publishers: Publisher) -> None:
        end = time.monotonic() + 30
        while not found(self.lines()):
            assert self.process.poll() is None
            assert time.monotonic() < end, self.lines()
            for publisher in publishers:
                publisher.serve()
            time.sleep(0.005)


@contextmanager
def printing(client: Path, tmp_path: Path, *arguments: object) -> Iterator[Printing]:
    printer = Printing(client, tmp_path / "out", *arguments)
    try:
        yield printer
    finally:
        printer.process.kill()
        printer.process.wait(10)


def has(topic: str, n: int = 1) -> Callable[[list[Any]], bool]:
    return lambda lines: sum(line["message"]["topic"] == topic for line in lines) >= n


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_everything_arrives_once_and_in_order(client: Path, tmp_path: Path, encoding: str) -> None:
    settings = FeedSettings(endpoint="tcp://127.0.0.1:0", encoding=encoding)  # type: ignore[arg-type]
    with Publisher(settings, "s1") as publisher:
        for message in one_of_each()[:4]:
            publisher.publish(message)
        with printing(client, tmp_path, publisher.endpoint, 1) as printer:
            while not printer.lines():  # it prints once it has joined
                publisher.publish(onset())
                publisher.serve()
                time.sleep(0.005)
                assert printer.process.poll() is None
            headers = [publisher.publish(message) for message in one_of_each()]
            headers.append(publisher.publish(gallery(b""), [os.urandom(70_000)]))
            headers.append(publisher.publish(retrieval(dims=3), [bytes(range(12))]))
            printer.until(has("gallery", 2), publisher)  # pictures come by another socket than the session's end
            headers.append(publisher.publish(session("ended")))
            assert printer.process.wait(20) == 0
        *lines, last = printer.lines()
    assert last == {"gaps": {}, "garbage": 0}
    sent = [json.loads(header) for header in headers]
    for topic in schema.TOPICS:
        messages = [line["message"] for line in lines if line["message"]["topic"] == topic]
        expected = [message for message in sent if message["topic"] == topic]
        assert messages[len(messages) - len(expected) :] == expected
        seqs = [message["seq"] for message in messages]
        assert seqs == (list(range(seqs[0], seqs[-1] + 1)) if topic == "onset" else sorted(set(seqs)))
    for line in lines:
        msgspec.convert(line["message"], schema.AnyMessage)
    (embedding,) = (line["payloads"] for line in lines if line["message"]["topic"] == "retrieval" and line["payloads"])
    assert base64.b64decode(embedding[0]) == bytes(range(12))
    pictures = [line["payloads"] for line in lines if line["message"]["topic"] == "gallery"][-1]
    assert len(base64.b64decode(pictures[0])) == 70_000
    assert lines[0]["message"]["state"] == "started"
    assert not lines[0]["fresh"]


def test_what_is_missed_is_counted_and_the_last_of_it_fetched(client: Path, tmp_path: Path) -> None:
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "s1") as publisher:
        publisher.publish(session("started"))
        publisher.publish(onset("first"))
        with printing(client, tmp_path, publisher.endpoint, 1) as printer:
            printer.until(has("onset"), publisher)
            real = publisher._results
            with zmq.Context() as context, context.socket(zmq.PUB) as publisher._results:
                for key in ("lost", "lost too"):  # they reach no subscriber, as when a queue is full
                    publisher.publish(onset(key))
            publisher._results = real
            printer.until(has("onset", 2), publisher)
            publisher.publish(session("ended"))
            assert printer.process.wait(20) == 0
        *lines, last = printer.lines()
    onsets = [line for line in lines if line["message"]["topic"] == "onset"]
    assert [(line["message"]["key"], line["fresh"]) for line in onsets] == [("first", False), ("lost too", False)]
    assert last == {"gaps": {"onset": 2}, "garbage": 0}


def test_restart_is_followed_and_keys_open_an_encrypted_feed(client: Path, tmp_path: Path) -> None:
    (folder,) = make_keys(tmp_path / "keys", ["node"])
    settings = FeedSettings(endpoint="tcp://127.0.0.1:0", keys=str(tmp_path / "keys"))
    with Publisher(settings, "s1") as first:
        first.publish(session("started"))
        with printing(client, tmp_path, first.endpoint, 2, folder) as printer:
            printer.until(has("session"), first)
            first.publish(session("ended"))
            printer.until(has("session", 2), first)
            first.close()
            again = FeedSettings(endpoint=first.endpoint, keys=settings.keys)
            with Publisher(again, "s2") as second:
                second.publish(session("started"))
                printer.until(has("session", 3), second)
                second.publish(session("ended"))
                assert printer.process.wait(20) == 0
        *lines, last = printer.lines()
    assert [(line["message"]["session"], line["message"]["state"]) for line in lines] == [
        ("s1", "started"), ("s1", "ended"), ("s2", "started"), ("s2", "ended"),
    ]  # fmt: skip
    assert last == {"gaps": {}, "garbage": 0}


def test_example(client: Path, tmp_path: Path) -> None:
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "s1") as publisher:
        publisher.publish(session("started"))
        publisher.publish(retrieval("cat"))
        command = ["node", str(client / "build" / "decisions.js"), publisher.endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            end, said = time.monotonic() + 30, b""
            while not said.endswith(b"\n") and time.monotonic() < end:
                publisher.serve()
                said += process.stdout.read() or b""
                time.sleep(0.005)
            publisher.publish(session("ended"))
            assert process.wait(20) == 0
    assert said.decode() == "cat rank 1: label cat (0.25), 5.0 ms\n"


def test_types_know_each_field(client: Path, tmp_path: Path) -> None:
    """What is not in the schema does not compile; what is, and is narrowed to the topic asked for, does."""
    folder = tmp_path / "typed"
    shutil.copytree(client, folder, symlinks=True, ignore=shutil.ignore_patterns("build"))
    program = (
        'import {{ Subscriber }} from "./subscriber.js";\nfor await (const one of new Subscriber("", ["{}"])) {}\n'
    )
    (folder / "good.ts").write_text(program.format("caption", "one.message.text.trim();"))
    (folder / "bad.ts").write_text(program.format("retrieval", "one.message.text;"))
    built = compiled(folder)
    assert built.returncode != 0
    assert built.stdout.splitlines()[0].startswith("bad.ts(2,")
    assert "'text' does not exist on type 'Retrieval'" in built.stdout
    assert "good.ts" not in built.stdout
