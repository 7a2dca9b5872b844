"""The feed read by another language. Needs node and its package zeromq (where NODE_PATH finds it)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from feed_messages import gallery, one_of_each, onset, retrieval, session

from streamdec.feed import schema
from streamdec.feed.address import resolve
from streamdec.feed.publisher import FeedSettings, Publisher

SCRIPT = Path(__file__).parent / "helpers" / "feed_subscriber.cjs"


@pytest.fixture(scope="module")
def node() -> str:
    path = shutil.which("node")
    probe = [path or "", "-e", "require('zeromq')"]
    if path is None or subprocess.run(probe, cwd=SCRIPT.parent, capture_output=True, check=False).returncode:
        pytest.skip("node with its package zeromq is not there: npm install zeromq, and set NODE_PATH")
    return path


def test_node_subscriber_misses_nothing(node: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0", encoding="json"), "s1") as publisher:
        for message in one_of_each()[:4]:
            publisher.publish(message)
        with out.open("w") as file:
            process = subprocess.Popen([node, SCRIPT, *resolve(publisher.endpoint).endpoints], stdout=file)
        until = time.monotonic() + 30
        while not out.stat().st_size:  # it prints once it has joined
            assert process.poll() is None
            assert time.monotonic() < until
            publisher.publish(onset())
            publisher.serve()
            time.sleep(0.005)
        headers = [publisher.publish(message) for message in one_of_each()]
        headers.append(publisher.publish(gallery(b""), [os.urandom(70_000)]))
        headers.append(publisher.publish(retrieval(dims=3), [bytes(range(12))]))
        while out.stat().st_size < 70_000:  # pictures come by another socket than the end of the session
            assert time.monotonic() < until
            time.sleep(0.005)
        headers.append(publisher.publish(session("ended")))
        assert process.wait(20) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for topic in schema.TOPICS:
        seqs = [line["message"]["seq"] for line in lines if line["message"]["topic"] == topic]
        expected = [json.loads(header)["seq"] for header in headers if json.loads(header)["topic"] == topic]
        assert seqs[len(seqs) - len(expected) :] == expected
        if topic == "onset":
            assert seqs == list(range(seqs[0], seqs[-1] + 1))
    for line in lines:
        msgspec.convert(line["message"], schema.AnyMessage)
    (embedding,) = (line["payloads"] for line in lines if line["message"]["topic"] == "retrieval" and line["payloads"])
    assert base64.b64decode(embedding[0]) == bytes(range(12))
    pictures = [line["payloads"] for line in lines if line["message"]["topic"] == "gallery"][-1]
    assert len(base64.b64decode(pictures[0])) == 70_000
    assert lines[0]["message"]["state"] == "started"
