"""The dashboard's server: what goes out to browsers, who may look, and what bad guests can do to it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web
from bad_guests import attack
from browser import Dashboard, Feed
from feed_messages import caption, gallery, one_of_each, onset, reconstruction, retrieval, session, signal, stats
from prometheus_client.parser import text_string_to_metric_families

from streamdec import child
from streamdec.access import make_keys
from streamdec.dashboard import server
from streamdec.dashboard.gate import Gate, read_token
from streamdec.dashboard.hub import Hub
from streamdec.dashboard.metrics import Metrics
from streamdec.dashboard.packet import pack, packet
from streamdec.dashboard.scalp import Scalp
from streamdec.errors import ConfigError
from streamdec.feed import schema
from streamdec.feed.wire import Received
from streamdec.signal.montage import positions, spherical_spline

VENDOR = Path(server.__file__).parent / "static" / "vendor"
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - of these tests


def unpack(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    size = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + size])
    at, blobs = 4 + size, []
    for length in header["blobs"]:
        blobs.append(data[at : at + length])
        at += length
    assert at == len(data)
    return header, blobs


class Numbered:
    """Numbers messages as a publisher does, and hands them to a hub."""

    def __init__(self, hub: Hub, name: str = "s1") -> None:
        self.hub, self.name, self.seqs = hub, name, dict.fromkeys((*schema.TOPICS, *schema.ON_DEMAND), 0)

    def take(self, *messages: schema.AnyMessage, payloads: tuple[Any, ...] = (), now: float = 0.0) -> None:
        for message in messages:
            self.seqs[message.topic] += 1
            numbered = msgspec.structs.replace(message, session=self.name, seq=self.seqs[message.topic])
            self.hub.take(Received(numbered, payloads), now)


class Page:
    """A browser that reads everything, or nothing while ``asleep``."""

    def __init__(self, hub: Hub) -> None:
        self.got: list[tuple[dict[str, Any], list[bytes]]] = []
        self.browser = hub.join()
        self.asleep = False

    async def send_bytes(self, data: bytes) -> None:
        while self.asleep:
            await asyncio.sleep(0.001)
        self.got.append(unpack(data))

    async def read(self) -> None:
        """Take what is queued by now."""
        writing = asyncio.create_task(self.browser.write(self))
        while self.browser._queue:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    def topics(self) -> list[str]:
        return [header["topic"] for header, _ in self.got]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_packets_hold_what_they_were_made_of() -> None:
    header, blobs = unpack(pack({"topic": "x", "text": "ü"}, b"abc", np.arange(3, dtype=np.float32)))
    assert header["text"] == "ü"
    assert blobs[0] == b"abc"
    assert np.frombuffer(blobs[1], "<f4").tolist() == [0, 1, 2]


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: message.topic)
def test_headers_are_those_of_the_feed(message: schema.AnyMessage) -> None:
    header, _ = unpack(packet(Received(message, (b"\x89PNG",) * len(getattr(message, "payloads", ())))).data)
    expected = msgspec.to_builtins(message)
    expected.pop("payloads", None)
    assert {name: header[name] for name in expected} == json.loads(msgspec.json.encode(expected))


def test_embeddings_and_stream_headers_stay_behind() -> None:
    sent = packet(Received(retrieval("a", 512), (np.zeros(512, np.float32),)))
    assert len(sent.data) < 1500
    assert sent.pictures == ("a", "a", "other")
    described = msgspec.structs.replace(
        session("connected", stream="eeg"), eeg=schema.StreamInfo("amp", "EEG", 2, 1e3, "float32", header="<x/>" * 9999)
    )
    assert len(packet(Received(described)).data) < 1500


def test_a_reconstruction_from_the_gallery_goes_without_its_copy() -> None:
    made = Received(reconstruction("a", source="g1"), (b"\x89PNG",))
    assert unpack(packet(made).data)[1] == [b"\x89PNG"]
    assert unpack(packet(made, {"g1": b""}).data)[1] == []


def test_who_comes_late_gets_the_session_and_the_last_minutes() -> None:
    async def scenario() -> None:
        hub = Hub()
        feed = Numbered(hub)
        feed.take(session("started"))
        feed.take(gallery(b"p0", b"p1"), payloads=(b"p0", b"p1"))
        feed.take(retrieval("old"), now=0.0)
        feed.take(retrieval("id1"), caption("id1", partial=True), caption("id1"), stats(), now=1000.0)
        feed.take(signal(), payloads=(np.ones((2, 3), np.float32),), now=1000.0)
        page = Page(hub)
        await page.read()
        assert page.topics() == [
            "begin",
            "session",
            "picture",
            "retrieval",
            "caption",
            "stats",
            "montage",
            "signal",
            "link",
        ]
        picture, blobs = page.got[2]
        assert (picture["id"], picture["label"], blobs) == ("id1", "label 1", [b"p1"])
        assert not page.got[4][0]["partial"]
        feed.take(retrieval("id1"), retrieval("id0"))
        await page.read()
        assert page.topics()[9:] == ["retrieval", "picture", "retrieval"]

    run(scenario())


def test_the_start_is_known_however_often_a_stream_breaks() -> None:
    async def scenario() -> None:
        hub = Hub()
        feed = Numbered(hub)
        feed.take(session("started"))
        for _ in range(300):
            feed.take(session("gap"))
        page = Page(hub)
        await page.read()
        states = [header["state"] for header, _ in page.got if header["topic"] == "session"]
        assert states == ["started"] + ["gap"] * 200

    run(scenario())


def test_the_last_minutes_are_bounded() -> None:
    hub = Hub()
    feed = Numbered(hub)
    for i in range(600):
        feed.take(reconstruction(f"{i}"), payloads=(bytes(50_000),), now=i / 5)
    assert hub._recent_bytes <= 8 << 20
    assert hub._recent_bytes == sum(len(one.data) for _, one in hub._recent)
    assert 100 < len(hub._recent) < 200


def test_a_slow_page_loses_its_own_messages_and_is_told() -> None:
    async def scenario() -> None:
        hub = Hub()
        feed = Numbered(hub)
        slow, quick = Page(hub), Page(hub)
        await quick.read()
        feed.take(session("started"), session("gap", stream="eeg"))
        for i in range(2000):
            feed.take(onset(f"{i}"))
            await quick.read() if i % 100 == 0 else None
        await quick.read()
        await slow.read()
        assert [header["key"] for header, _ in quick.got if header["topic"] == "onset"] == [f"{i}" for i in range(2000)]
        kept = [int(header["key"]) for header, _ in slow.got if header["topic"] == "onset"]
        assert kept == list(range(2000 - len(kept), 2000))
        assert 450 < len(kept) <= 502
        (told,) = [header["n"] for header, _ in slow.got if header["topic"] == "lost"]
        assert told == slow.browser.lost >= 2000 - len(kept)
        states = [header["state"] for header, _ in slow.got if header["topic"] == "session"]
        assert states == ["started", "gap"]
        hub.leave(slow.browser)
        assert hub.lost == told
        assert quick.browser.lost == 0

    run(scenario())


def test_another_session_begins_from_nothing() -> None:
    async def scenario() -> None:
        hub = Hub()
        Numbered(hub, "s1").take(session("started"), retrieval("a"), stats())
        page = Page(hub)
        await page.read()
        Numbered(hub, "s2").take(session("started"))
        assert hub.stats is None
        late = Page(hub)
        for one in (page, late):
            await one.read()
            at = max(i for i, (header, _) in enumerate(one.got) if header["topic"] == "begin")
            assert one.got[at][0]["session"] == "s2"
            assert one.topics()[at:].count("session") == 1
            assert "retrieval" not in one.topics()[at:]

    run(scenario())


# --- the EEG ---------------------------------------------------------------------------------------------------------


def scoped(data: np.ndarray, names: tuple[str, ...], time_: float, **more: Any) -> tuple[schema.Signal, np.ndarray]:
    return schema.Signal(time=time_, sfreq=100.0, ch_names=names, **more), data.astype(np.float32)


def test_the_evoked_is_the_mean_of_clean_epochs() -> None:
    names = ("Fz", "Cz", "Oz", "Pz", "C3")
    rng = np.random.default_rng(0)
    data = rng.normal(0, 10, (5, 1500))
    response = 20 * np.exp(-(((np.arange(80) - 17) / 5) ** 2))
    onsets = 100 + 70 * np.arange(15)
    for at in onsets:
        data[2, at : at + 80] += response
    scalp = Scalp(names, 100.0)
    filtered = []
    for first in range(0, 1500, 10):
        packets = scalp.signal(*scoped(data[:, first : first + 10], names, 50 + first / 100))
        filtered.append(np.frombuffer(unpack(packets[-1].data)[1][0], "<f4").reshape(5, -1))
        for at in onsets[(onsets + 100 >= first) & (onsets + 100 < first + 10)]:
            decided = "rejected" if at == onsets[3] else "decided"
            scalp.ended(schema.Epoch(key="a", onset_time=50 + at / 100, outcome=decided))
    evoked = scalp.evoked()
    assert evoked is not None
    header, (blob,) = unpack(evoked.data)
    mean = np.frombuffer(blob, "<f4").reshape(5, -1)
    whole = np.concatenate(filtered, axis=1).astype(np.float64)
    epochs = [whole[:, at - 10 : at + 80] for at in np.delete(onsets, 3)]
    expected = np.mean([epoch - epoch[:, :10].mean(axis=1, keepdims=True) for epoch in epochs], axis=0)
    assert (header["n"], header["tmin"], header["rows"]) == (14, -0.1, 5)
    np.testing.assert_allclose(mean, expected, atol=1e-3)
    assert abs(int(mean[2].argmax()) - 10 - 17) <= 1


def test_onsets_between_two_samples_are_put_on_the_line_between_them() -> None:
    names = ("Fz",)
    scalp = Scalp(names, 100.0)
    ramp = np.arange(400.0)[None]
    for first in range(0, 400, 10):
        scalp.signal(*scoped(np.sin(ramp[:, first : first + 10] / 20), names, first / 100))
        if first == 200:
            scalp.ended(schema.Epoch(key="a", onset_time=1.0 + 0.0037, outcome="decided"))
    evoked = scalp.evoked()
    assert evoked is not None
    mean = np.frombuffer(unpack(evoked.data)[1][0], "<f4")
    smooth = np.interp(100.37 + np.arange(-10, 80), np.arange(400), scalp_filtered(np.sin(ramp / 20)))
    np.testing.assert_allclose(mean, smooth - smooth[:10].mean(), atol=1e-4)


def scalp_filtered(data: np.ndarray) -> np.ndarray:
    """A first-order high-pass at 0.5 Hz, settled on its first sample: written again, naively."""
    k = math.tan(math.pi * 0.5 / 100)
    gain, pole = 1 / (1 + k), (1 - k) / (1 + k)
    out, last_in, last_out = [], data[0, 0], 0.0
    for value in data[0]:
        last_out = gain * (value - last_in) + pole * last_out
        last_in = value
        out.append(last_out)
    return np.array(out)


def test_gaps_and_bad_channels_stay_out_of_the_evoked() -> None:
    names = ("Fz", "Cz")
    scalp = Scalp(names, 100.0)
    rng = np.random.default_rng(0)
    for first in range(0, 300, 10):
        scalp.signal(*scoped(rng.normal(size=(2, 10)), names, first / 100))
    scalp.ended(schema.Epoch(key="a", onset_time=2.9, outcome="decided"))  # its window is not complete
    for first in range(0, 300, 10):
        scalp.signal(*scoped(rng.normal(size=(2, 10)), names, 9.0 + first / 100, bad={"Cz": "flat"}))
    assert scalp.evoked() is None
    scalp.ended(schema.Epoch(key="a", onset_time=10.5, outcome="decided"))
    scalp.signal(*scoped(rng.normal(size=(2, 10)), names, 12.0, bad={"Cz": "flat"}))
    evoked = scalp.evoked()
    assert evoked is not None
    header, (blob,) = unpack(evoked.data)
    mean = np.frombuffer(blob, "<f4").reshape(2, -1)
    assert header["n"] == 1
    assert np.isfinite(mean[0]).all()
    assert np.isnan(mean[1]).all()


def test_the_scalp_map_goes_through_the_good_electrodes() -> None:
    names = ("Fz", "Cz", "Pz", "C3", "C4", "T7", "EXG1")
    scalp = Scalp(names, 100.0)
    packets = scalp.signal(*scoped(np.zeros((7, 10)), names, 0.0, bad={"T7": "railed"}))
    header, (blob,) = unpack(packets[0].data)
    assert header["sources"] == [0, 1, 2, 3, 4]
    assert header["xy"][6] is None
    assert header["xy"][1] == pytest.approx([0, 0], abs=0.1)
    assert header["xy"][0][1] > 0.3 > -0.3 > header["xy"][2][1]
    assert header["xy"][4][0] > 0.3
    matrix = np.frombuffer(blob, "<f4").reshape(len(header["inside"]), 5)
    values = np.array([1.0, -2.0, 3.0, 0.5, -1.0])
    side = np.linspace(-1, 1, header["grid"])
    for name, value in zip(names[:5], values, strict=True):
        x, y = header["xy"][names.index(name)]
        row, column = np.abs(side[::-1] - y).argmin(), np.abs(side - x).argmin()
        point = header["inside"].index(row * header["grid"] + column)
        assert float(matrix[point] @ values) == pytest.approx(value, abs=0.35)
    top = spherical_spline(positions(names[:5]), np.array([[0.0, 0.0, 1.0]])) @ values
    middle = header["inside"].index(22 * header["grid"] + 22)
    assert float(matrix[middle] @ values) == pytest.approx(float(top[0]), abs=0.2)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_statistics() -> None:
    hub = Hub()
    made = {"caption": schema.Generation(requests=9, answered={"bank": 3, "llm": 4}, dropped=2, superseded=1, met=6)}
    said = msgspec.structs.replace(
        stats(),
        counts=schema.Counts(markers=12, ignored=2, onsets=10, decided=8, rejected=1, open=1, samples=5000, gaps=1),
        generation=made,
        workers={"caption-1": "ready"},
        missed=2,
        memory=10**8,
    )
    Numbered(hub).take(session("started", bundle="b", method="nice"), said)
    hub.link(0.5, 7, 0)
    families = list(text_string_to_metric_families(Metrics(hub).text().decode()))
    found = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    assert found[("streamdec_epochs_total", ("outcome", "decided"))] == 8
    assert found[("streamdec_markers_refused_total", ("reason", "ignored"))] == 2
    assert found[("streamdec_latency_seconds", ("quantile", "0.99"), ("stage", "total"))] == 0.003
    assert found[("streamdec_latency_seconds_count", ("stage", "total"))] == 1
    assert found[("streamdec_deadline_missed_total", ("kind", "retrieval"))] == 2
    assert found[("streamdec_deadline_missed_total", ("kind", "caption"))] == 1
    assert found[("streamdec_generated_total", ("kind", "caption"), ("tier", "llm"))] == 4
    assert found[("streamdec_worker_state", ("state", "ready"), ("worker", "caption-1"))] == 1
    assert found[("streamdec_resident_memory_bytes",)] == 10**8
    assert found[("streamdec_dashboard_missed_messages_total",)] == 7
    assert found[("streamdec_up",)] == 1
    hub.link(60.0, 7, 0)
    assert b"streamdec_up 0.0" in Metrics(hub).text()


# --- who may look ----------------------------------------------------------------------------------------------------


def test_wider_than_loopback_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token"):
        Gate("0.0.0.0")  # noqa: S104
    assert Gate("0.0.0.0", TOKEN).locked  # noqa: S104
    assert not Gate("127.0.0.1").locked
    made = read_token(tmp_path / "token")
    assert len(made) >= 32
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert read_token(tmp_path / "token") == made
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(ConfigError, match="16"):
        read_token(tmp_path / "short")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:5680", True), ("localhost:5680", True), ("[::1]:5680", True), ("192.168.1.7:5680", True),
        ("evil.example", False), ("evil.example:5680", False), ("", False), ("127.0.0.1.evil.example", False),
        ("[::1", False), ("127.0.0.1@evil.example", False),
    ],
)  # fmt: skip
def test_names_of_others_are_turned_away(host: str, known: bool) -> None:
    assert Gate("127.0.0.1").knows(host) is known


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        (None, True), ("http://127.0.0.1:5680", True), ("https://127.0.0.1:5680", True),
        ("http://127.0.0.1:5681", False), ("http://evil.example", False), ("null", False), ("", False),
        ("file://127.0.0.1:5680", False), ("http://[", False),
    ],
)  # fmt: skip
def test_pages_of_others_are_turned_away(origin: str | None, same: bool) -> None:
    headers = {"Host": "127.0.0.1:5680"} | ({} if origin is None else {"Origin": origin})
    assert Gate("127.0.0.1").same_origin(headers) is same


Scenario = Callable[[str, ClientSession, Hub], Coroutine[Any, Any, None]]


def serving(scenario: Scenario, token: str = "") -> None:
    async def around() -> None:
        hub = Hub()
        runner = server.Dashboard(hub, Gate("127.0.0.1", token)).runner()
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with ClientSession() as client:
                await scenario(f"http://127.0.0.1:{runner.addresses[0][1]}", client, hub)
        finally:
            await runner.cleanup()

    run(around())


def test_the_page_is_served_from_here_alone() -> None:
    async def scenario(url: str, client: ClientSession, hub: Hub) -> None:
        for path, file in server.files().items():
            async with client.get(url + path) as answer:
                assert answer.status == 200
                assert await answer.read() == file.body
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert "http" not in policy
                tag = answer.headers["ETag"]
            async with client.get(url + path, headers={"If-None-Match": tag}) as answer:
                assert answer.status == 304
        async with client.get(url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 421
        async with client.get(url, headers={"Expect": "x"}) as answer:
            assert answer.status == 417
        for method in ("post", "put", "delete", "options"):
            async with client.request(method, url + "/") as answer:
                assert answer.status == 405

    serving(scenario)


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/js/../../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd", "/etc/passwd",
        "/js/%2e%2e/%2e%2e/gate.py", "/js/..\\..\\gate.py", "/vendor/README.md", "/js/", "/.", "/%00",
        "/js/main.js%00.css",
    ],
)  # fmt: skip
def test_no_other_file_can_be_had(path: str) -> None:
    async def scenario(url: str, client: ClientSession, hub: Hub) -> None:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.0 400", b"HTTP/1.1 400"))
        assert b"import" not in answer

    serving(scenario)


def test_the_socket_says_what_the_feed_says_and_takes_nothing() -> None:
    async def scenario(url: str, client: ClientSession, hub: Hub) -> None:
        Numbered(hub).take(session("started"), retrieval("a"))
        async with client.ws_connect(f"{url}/ws", origin=url) as page:
            got = [unpack(await page.receive_bytes())[0]["topic"] for _ in range(4)]
            assert got == ["hello", "begin", "session", "retrieval"]
            assert len(hub.browsers) == 1
            await page.send_str('{"topic": "session", "state": "ended"}')
            while (message := await page.receive()).type is WSMsgType.BINARY:
                pass
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)
        while hub.browsers:
            await asyncio.sleep(0.01)
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect(f"{url}/ws", origin="http://evil.example")
        async with client.ws_connect(f"{url}/ws") as page:
            await page.receive_bytes()
            await page.send_bytes(bytes(4096))  # more than a page may send
            while (message := await page.receive()).type is WSMsgType.BINARY:
                pass
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1009)

    serving(scenario)


def test_the_token_opens_and_nothing_else_does() -> None:
    async def scenario(url: str, client: ClientSession, hub: Hub) -> None:
        Numbered(hub).take(session("started"), stats())
        for wrong in ("", TOKEN[:-1], TOKEN + " ", "ü" * 20, "\ud800".encode("utf-8", "surrogatepass").hex()):
            async with client.ws_connect(f"{url}/ws", origin=url) as page:
                header, _ = unpack(await page.receive_bytes())
                assert header["locked"]
                await page.send_str(wrong)
                message = await page.receive()
                assert (message.type, message.data) == (WSMsgType.CLOSE, 4401)
        assert not hub.browsers
        async with client.ws_connect(f"{url}/ws", origin=url) as page:
            await page.receive_bytes()
            await page.send_str(TOKEN)
            assert unpack(await page.receive_bytes())[0]["topic"] == "begin"
        for headers, status in (
            ({}, 401), ({"Authorization": "Bearer x"}, 401), ({"Authorization": f"Basic {TOKEN}"}, 401),
            ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ):  # fmt: skip
            async with client.get(f"{url}/metrics", headers=headers) as answer:
                assert answer.status == status
                assert (b"streamdec_onsets_total" in await answer.read()) == (status == 200)

    serving(scenario, TOKEN)


def test_the_number_of_pages_is_bounded() -> None:
    async def scenario(url: str, client: ClientSession, hub: Hub) -> None:
        pages = [await client.ws_connect(f"{url}/ws") for _ in range(32)]
        while len(hub.browsers) < 32:
            await asyncio.sleep(0.01)
        with pytest.raises(WSServerHandshakeError, match="503"):
            await client.ws_connect(f"{url}/ws")
        for page in pages:
            await page.close()

    serving(scenario)


# --- beside a session ------------------------------------------------------------------------------------------------


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
        return str(answer.read().decode())


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))) == 0


def test_a_child_shows_the_feed_and_ends_with_its_stack() -> None:
    with Feed() as feed:
        feed.say(session("started", bundle="b", method="nice"))
        with ExitStack() as stack:
            line = child.start(stack, "dashboard", feed.endpoint)
            url = line.removeprefix("dashboard at ")
            until = time.monotonic() + 20
            while 'bundle="b"' not in get(f"{url}metrics"):
                assert time.monotonic() < until
        assert not listens(url)


def test_a_child_ends_with_the_process_that_started_it() -> None:
    with Feed() as feed:
        parent = subprocess.Popen([sys.executable, "-c", CHILD, feed.endpoint], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        url = parent.stdout.readline().strip().removeprefix("dashboard at ")
        assert "streamdec_up" in get(f"{url}metrics")
        parent.kill()
        parent.communicate()
        until = time.monotonic() + 20
        while listens(url):
            assert time.monotonic() < until
            time.sleep(0.05)


CHILD = """
import sys, time
from contextlib import ExitStack
from streamdec import child
print(child.start(ExitStack(), "dashboard", sys.argv[1]), flush=True)
time.sleep(60)
"""


def test_an_encrypted_feed_needs_a_client_named_dashboard(tmp_path: Path) -> None:
    make_keys(tmp_path, ["somebody"])
    with ExitStack() as stack, pytest.raises(ConfigError, match=r"streamdec keys .* dashboard"):
        child.start(stack, "dashboard", "tcp://127.0.0.1:5650", str(tmp_path))


def test_a_port_in_use_is_an_error_only_where_it_was_asked_for() -> None:
    with Feed() as feed, Dashboard(feed.endpoint) as first:
        command = [
            sys.executable,
            "-m",
            "streamdec",
            "dashboard",
            "--endpoint",
            feed.endpoint,
            "--port",
            str(first.port),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "--port" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_vendored_libraries_are_as_published() -> None:
    listed = dict(reversed(line.split("  ")) for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    present = {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}
    assert present == {*listed, "SHA256SUMS", "README.md"}
    for name, digest in listed.items():
        assert sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_nothing_is_loaded_from_elsewhere() -> None:
    ours = [
        path
        for path in VENDOR.parent.rglob("*")
        if path.suffix in (".html", ".css", ".js") and VENDOR not in path.parents
    ]
    assert len(ours) > 10
    for path in ours:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path
        assert "https://" not in text, path
        assert "style=" not in text, path  # the page's policy forbids it


@pytest.mark.timeout(3600)
def test_bad_guests_change_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Malformed and oversized frames and requests over raw sockets; a page that looks on misses nothing.

    STREAMDEC_FUZZ=100000 sends so many.
    """
    n = int(os.environ.get("STREAMDEC_FUZZ", "3000"))
    with Feed() as feed, Dashboard(feed.endpoint) as dashboard:
        process = psutil.Process(dashboard.process.pid)
        feed.say(session("started", bundle="b"))

        async def scenario() -> None:
            url = dashboard.url.rstrip("/")
            async with ClientSession() as client, client.ws_connect(f"{url}/ws", origin=url) as page:
                seen: list[dict[str, Any]] = []

                async def read() -> None:
                    while True:
                        seen.append(unpack(await page.receive_bytes())[0])

                async def until(condition: Callable[[], bool]) -> None:
                    while not condition():
                        assert not reading.done(), reading.exception()
                        await asyncio.sleep(0.01)

                reading = asyncio.create_task(read())
                await until(lambda: any(header["topic"] == "session" for header in seen))
                await attack(dashboard.port, 1000, seed=1)
                before = process.memory_info().rss
                sent = await attack(dashboard.port, n, seed=0)
                assert sent >= n
                for i in range(20):
                    feed.say(onset(f"{i}"))
                await until(lambda: sum(header["topic"] == "onset" for header in seen) == 20)
                assert not [header for header in seen if header["topic"] == "lost"]
                async with client.get(f"{url}/metrics") as answer:
                    figures = (await answer.read()).decode()
                assert "streamdec_dashboard_missed_messages_total 0.0" in figures
                assert process.memory_info().rss - before < 30 << 20
                while "streamdec_dashboard_browsers 1.0" not in figures:
                    await asyncio.sleep(0.05)
                    async with client.get(f"{url}/metrics") as answer:
                        figures = (await answer.read()).decode()
                reading.cancel()

        asyncio.run(asyncio.wait_for(scenario(), 3500))
        assert dashboard.close() == 0
        assert capfd.readouterr().err == ""  # not a word of what guests said
