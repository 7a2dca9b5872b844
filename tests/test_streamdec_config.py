"""Config: every key checked at load, with file, key, what was got and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdec.cli import main
from streamdec.config import Config, load
from streamdec.errors import ConfigError

ROOT = Path(__file__).parents[1]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "live.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_is_the_defaults() -> None:
    assert load(None) == Config()


def test_shipped_configs_load() -> None:
    shipped = sorted((ROOT / "configs" / "live").glob("*.toml"))
    assert shipped
    for path in shipped:
        config = load(path)
        assert Path(config.bundle).parent == path.parent


def test_paths_are_relative_to_the_config(tmp_path: Path) -> None:
    text = 'bundle = "b.zip"\nrecord = "/out/session.xdf"\n[feed]\nkeys = "keys"\n[engine]\ncache = "compiled"\n'
    config = load(write(tmp_path, text))
    assert (config.bundle, config.record) == (str(tmp_path / "b.zip"), "/out/session.xdf")
    assert (config.feed.keys, config.engine.cache) == (str(tmp_path / "keys"), str(tmp_path / "compiled"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bundel = 'x'", ["unknown key bundel", "bundle", "record"]),
        ("[inlet]\nwiat = 3", ["unknown key inlet.wiat", "wait"]),
        ("[inlet.eeg]\nnme = 'x'", ["unknown key inlet.eeg.nme", "source_id"]),
        ("[intake.trigger]\nchannel = 'stim'\nmsk = 1", ["unknown key intake.trigger.msk", "mask"]),
        ("[session]\ntop_k = 'five'", ["session.top_k", "int"]),
        ("[session]\nbudget = '50 ms'", ["session.budget", "float"]),
        ("[session]\nbudget = 0.0", ["session.budget", "more than 0"]),
        ("[session]\nbudget = -1.0", ["session.budget", "more than 0"]),
        ("[session]\ntop_k = 0", ["session.top_k", "1 or more"]),
        ("[evidence]\nstop_probability = 2.0", ["stop_probability", "2.0"]),
        ("[feed]\nendpoint = 'tcp://0.0.0.0:5650'", ["0.0.0.0", "keys"]),  # noqa: S104 - it must be refused
        ("[intake.markers]\npattern = '('", ["pattern"]),
        ("bundle = ", ["not TOML"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, says: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in [*says, "live.toml"]:
        assert word in message


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, "bundle = 'b.zip'\nrecord = 's.xdf'"))
    assert config.bundle == str(tmp_path / "b.zip")
    assert config.record == str(tmp_path / "s.xdf")


@pytest.mark.parametrize(
    "options",
    [
        ("replay", "r.xdf", "--eeg", "amp"),
        ("replay", "r.xdf", "--markers", "stimulus"),
        ("replay", "r.xdf", "--config", "c.toml"),
        ("replay", "r.xdf", "--bundle", "b.zip", "--wait", "5"),
        ("calibrate", "b.zip", "r.xdf", "--out", "n.zip", "--photodiode", "AUX", "--latency", "0.05"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text("[session]\ntop_k = 3\n", encoding="utf-8")
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"streamdec: {'--photodiode' if '--latency' in options else options[-2]}")
    assert said.count("\n") == 1
