"""The doctor: on a rig with known faults, on a bare machine, and its verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from feeder import Feeder, Plan, write_script
from serving import streamdec
from small_bundle import N_IMAGES, NAMES, SFREQ, eeg_info, presentation, write_bundle

from streamdec.acquire.markers import TriggerSettings
from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.decode.generate.cost import Costs
from streamdec.doctor import rig as rig_module
from streamdec.doctor.examine import examine
from streamdec.doctor.finding import Finding, page, to_do, verdict
from streamdec.doctor.rehearsal import retrieval, tiers
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.intake import IntakeSettings
from streamdec.page.document import to_html
from streamdec.sessions.undecoded import any_intake
from streamdec.types import Chunk, Connection

LIGHT = 0.052  # s from marker to light; 13 samples


@dataclass
class Rig:
    bundle: Path
    plan: Plan

    @property
    def options(self) -> Sequence[object]:
        return self.bundle, "--eeg", f"name={self.plan.name}", "--markers", f"name={self.plan.name}-markers"


@pytest.fixture
def rig(stream_name: str, tmp_path: Path) -> Rig:
    """An amplifier with a light sensor, one electrode off, one of the bundle's channels missing, in large packets."""
    data, onsets, keys = presentation(600)
    light = np.zeros(data.shape[1], np.float32)
    for onset in onsets + round(LIGHT * SFREQ):
        light[onset : onset + 20] = 500
    light += np.random.default_rng(0).normal(0, 3, len(light)).astype(np.float32)
    script = write_script(tmp_path / "s.npz", np.vstack([data, light]), onsets, keys)
    labels = (*NAMES[:-1], "flat", "AUX")
    sources = (*range(len(NAMES) - 1), -1, len(NAMES))
    plan = Plan(str(script), stream_name, labels, sources, sfreq=SFREQ, true=SFREQ)
    return Rig(write_bundle(tmp_path / "b.zip"), plan)


@pytest.mark.lsl
def test_a_rig_with_known_faults(rig: Rig, tmp_path: Path) -> None:
    out, config = tmp_path / "rig.html", tmp_path / "rig.toml"
    config.write_text(f'bundle = "{rig.bundle}"\nrecord = "{tmp_path}"\n')
    with Feeder(rig.plan):
        done = streamdec(
            "doctor", "--config", config, *rig.options[1:], "--seconds", 6, "--photodiode", "AUX", "--out", out
        )
    assert (done.returncode, done.stderr) == (0, "")
    found = [line.split(maxsplit=2) for line in done.stdout.partition("\n\n")[0].splitlines()]
    told = {part: [text for _, p, text in found if p == part] for _, part, _ in found}
    warned = [f"{part}: {text}" for level, part, text in found if level == "warning"]
    parts = "network processor bundle streams clock signal markers photodiode budgets disk"
    assert set(told) >= set(parts.split())
    assert any(text.startswith("signal: 7 of 8 channels of the bundle are there, not PO8") for text in warned)
    assert any(text.startswith("signal: flat channels: flat") for text in warned)
    (light,) = (text for text in warned if text.startswith("photodiode"))
    measured = re.search(r"takes: ([\d.]+) ms", light)
    assert measured is not None
    assert abs(float(measured[1]) - 1e3 * LIGHT) < 3
    assert any("0 gaps, 0 samples missing" in text for text in told["clock"])
    assert any(re.match(r"lost samples are noticed from \d+ in a row on, \d+ ms", text) for text in told["clock"])
    (rate,) = (re.search(r"effective rate ([\d.]+) Hz", text) for text in told["clock"] if "effective" in text)
    assert rate is not None
    assert abs(float(rate[1]) - SFREQ) < 1
    assert any(f"decision among {N_IMAGES}, 9 channels at 250 Hz" in text for text in told["budgets"])
    assert f"verdict: ready, with {len(warned)} warnings" in done.stdout
    html = out.read_text()
    HTMLParser().feed(html)
    assert f"ready, with {len(warned)} warnings" in html
    assert "streamdec calibrate" in html
    assert f"with {rig.bundle.name}." in html


@pytest.mark.lsl
def test_a_bare_machine_is_not_ready_and_its_decoder_is_measured_all_the_same(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b.zip")
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "another") as another:
        config = Config(bundle=str(path), feed=FeedSettings(endpoint=another.endpoint))
        found = list(examine(config, 1.0))
    fatal = [each.text for each in found if each.fatal]
    assert len(fatal) == 2
    assert "is in use" in fatal[0]
    assert "no LSL stream" in fatal[1] or "no eeg stream" in fatal[1]
    assert any(each.part == "budgets" and "50" in each.text for each in found)
    assert verdict(found).startswith("not ready: 2 things")


@pytest.mark.lsl
def test_a_channel_that_is_not_there(rig: Rig) -> None:
    with Feeder(rig.plan):
        done = streamdec("doctor", *rig.options, "--photodiode", "diode", "--seconds", 1)
    assert done.returncode == 2
    assert "--photodiode; got 'diode'; allowed: O1, Oz" in done.stderr


def test_the_whole_loop_is_rehearsed_at_the_streams_size(tmp_path: Path) -> None:
    bundle = bundles.read(write_bundle(tmp_path / "b"))
    names = (*NAMES, *(f"EXG{i}" for i in range(56)))
    info = eeg_info(n_chans=64, ch_names=names, ch_types=("EEG",) * 64, units=("volts",) * 64)
    decision, load = retrieval(bundle, Config(), info)
    assert f"decision among {N_IMAGES}, 64 channels at 250 Hz" in decision.text
    assert "worst" in decision.text
    assert "of 50" in decision.text
    assert not load.fatal
    (refused,) = retrieval(bundle, Config(), eeg_info(sfreq=1000.0))
    assert (refused.level, refused.part) == ("warning", "budgets")


def test_a_stall_that_ended_is_a_warning_and_one_that_did_not_is_fatal() -> None:
    heard = rig_module._Heard(eeg_info(), Config(), any_intake(eeg_info(), IntakeSettings()))
    for state in ("connected", "stalled", "resumed", "stalled"):
        heard.take(Connection("eeg", state, 0.0, "no sample for 0.3 s"))  # type: ignore[arg-type]
    (lasting,) = rig_module._connections(heard)
    assert (lasting.level, lasting.text) == ("fatal", "eeg stream stalled: no sample for 0.3 s")
    heard.take(Connection("eeg", "resumed", 0.0, "after 0.5 s"))
    (over,) = rig_module._connections(heard)
    assert over.level == "warning"
    assert "broke 2 times, first stalled" in over.text


def test_without_a_bundle_a_trigger_channel_counts_too() -> None:
    eeg = eeg_info(n_chans=9, ch_names=(*eeg_info().ch_names, "TRIG"), ch_types=(), units=())
    config = Config(intake=IntakeSettings(trigger=TriggerSettings("TRIG")))
    heard = rig_module._Heard(eeg, config, any_intake(eeg, config.intake))
    data = np.zeros((9, 100), np.float32)
    data[8, 40:60] = 7
    heard.take(Chunk(data, np.arange(100) / SFREQ, 1.0))
    assert [onset.text for onset in heard.onsets] == ["7"]


def test_tiers_that_cost_more_than_their_budget(tmp_path: Path) -> None:
    costs = Costs(tmp_path, "0" * 64)
    for _ in range(20):
        costs.of("llm", "cpu", "here").add(0.5, 5, 0.1)  # 0.1 s for the first unit
        costs.of("latent", "cpu", "here").add(0.9)
    costs.save()
    llm, latent = tiers(Costs(tmp_path, "0" * 64), {"caption": 0.3, "reconstruction": 0.8})
    assert llm.level == "ok"
    assert "95 % of 20 jobs within 100 ms, 100 for each further step; budget 300 ms" in llm.text
    assert latent.level == "warning"
    assert "generate.reconstruction" in latent.do


def test_verdict_and_page() -> None:
    good = Finding("clock", "ok", "jitter of the stamps 0.10 ms")
    warned = Finding("signal", "warning", "flat channels: <Oz>", "check their electrodes")
    fatal = Finding("streams", "fatal", "no LSL stream in sight")
    assert verdict([good]) == "ready"
    assert verdict([good, warned]) == "ready, with 1 warning"
    assert verdict([good, warned, fatal]) == "not ready: 1 thing to put right first, 1 warning"
    assert to_do([good, warned, fatal]) == [
        "1. streams: no LSL stream in sight",
        "2. signal: flat channels: <Oz>; check their electrodes",
    ]
    html = to_html(page([good, warned, fatal], "about"), "made by")
    assert "&lt;Oz&gt;" in html
    assert html.index("no LSL stream") < html.index("jitter")
    assert '<p class="note">not ready' in html
    assert '<p class="note">ready, with' in to_html(page([good, warned], "about"), "made by")
    assert '<p class="note good">ready</p>' in to_html(page([good], "about"), "made by")


def test_out_is_checked() -> None:
    done = streamdec("doctor", "--out", "rig.pdf")
    assert done.returncode == 2
    assert ".html or .txt" in done.stderr
