"""What a stranger can reach of a session, and what he can do to it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from feeder import Feeder, Plan, write_script
from serving import COMMAND, Serving, streamdec
from small_bundle import NAMES, SFREQ, presentation, write_bundle

from streamdec.access import is_loopback
from streamdec.feed.address import resolve

FUZZ = Path(__file__).parents[1] / "tools" / "fuzz_feed.py"


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """TCP sockets on which a process and its children listen."""
    found = []
    for each in (process, *process.children(recursive=True)):
        found += [(c.laddr.ip, c.laddr.port) for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return found


def own_address() -> str:
    """Address of this machine on its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            end.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine is on no network")
        return str(end.getsockname()[0])


@pytest.mark.lsl
def test_a_default_session_listens_on_loopback_only(stream_name: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b.zip")
    script = write_script(tmp_path / "s.npz", *presentation(600))
    plan = Plan(str(script), stream_name, NAMES, tuple(range(len(NAMES))), sfreq=SFREQ, true=SFREQ)
    eeg, markers = f"name={stream_name}", f"name={stream_name}-markers"
    with Feeder(plan), Serving(bundle, "--eeg", eeg, "--markers", markers) as serving:
        serving.session("started")
        open_ports = listening(psutil.Process(serving.process.pid))
        feed = {int(endpoint.rpartition(":")[2]) for endpoint in resolve(serving.endpoint).endpoints}
        assert {port for _, port in open_ports} == feed
        assert all(is_loopback(host) for host, _ in open_ports)
        outside = own_address()
        for port in feed:
            with socket.socket() as end:
                assert end.connect_ex(("127.0.0.1", port)) == 0
            with socket.socket() as end:
                assert end.connect_ex((outside, port)) != 0


@pytest.mark.parametrize(
    "wide", ['[feed]\nendpoint = "tcp://0.0.0.0:5650"', '[generate]\nlisten = "tcp://192.0.2.1:5660"']
)
def test_listening_wider_needs_keys(tmp_path: Path, wide: str) -> None:
    config = tmp_path / "wide.toml"
    config.write_text(wide)
    done = streamdec("serve", "bundle.zip", "--config", config)
    assert done.returncode == 2
    assert "can be reached from other machines, and there are no keys" in done.stderr
    assert "streamdec keys" in done.stderr


@pytest.mark.lsl
@pytest.mark.slow
def test_hostile_frames_change_nothing() -> None:
    """Some thousands here; `python tools/fuzz_feed.py` sends 150 000."""
    done = subprocess.run(
        [sys.executable, FUZZ, "--frames", "6000"], capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lsl
def test_a_demo_that_is_ended_leaves_no_process() -> None:
    with subprocess.Popen([*COMMAND, "demo", "--headless"], stdout=subprocess.DEVNULL) as process:
        demo, until = psutil.Process(process.pid), time.monotonic() + 60
        while len(children := demo.children(recursive=True)) < 2:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert gone
