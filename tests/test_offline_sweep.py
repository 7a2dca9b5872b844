"""Sweeps: what a grid means, resuming after a kill, failures; on Ray as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
import tiny_store
import torch

from offline import cli, sweep
from offline.checkpoint import RunFolder, RunMeta
from offline.evaluate import Evaluation
from offline.report.gather import gather
from offline.sweep import Grid, Resources, Result
from streamdec.errors import ConfigError, StreamdecError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
SUBJECTS = ("sub-01", "sub-02", "sub-03")
GRID = """
protocols = ["intra", "left_out"]
seeds = [0, 1]
[stores.tiny]
sub-01 = "sub-01"
sub-02 = "sub-02"
sub-03 = "sub-03"
[targets]
known = "sub-01-targets"
[methods.ridge]
method = "ridge"
targets = { image = "known" }
[methods.nice]
method = "nice"
targets = { image = "known" }
settings = { schedule = { n_epochs_train = 2, batch_size = 32 } }
"""
N_CELLS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    for subject in SUBJECTS:
        tiny_store.make(made / subject, subject=subject, noise=2.0)
    (made / "grid.toml").write_text(GRID)
    return made


@pytest.fixture
def grid(folder: Path) -> Grid:
    """Ridge alone, intra: 6 cells."""
    whole = sweep.load(folder / "grid.toml")
    return msgspec.structs.replace(whole, methods={"ridge": whole.methods["ridge"]}, protocols=("intra",))


def results(out: Path) -> list[Result]:
    return [msgspec.json.decode(line, type=Result) for line in (out / "results.jsonl").read_bytes().splitlines()]


def test_cells_of_a_grid(folder: Path) -> None:
    whole = sweep.load(folder / "grid.toml")
    made = {cell.name: cell for cell in sweep.cells(whole)}
    assert len(made) == N_CELLS == 2 * 2 * len(SUBJECTS) * 2
    cell = made["nice/left_out/sub-02/seed-1"]
    assert cell.train == tuple(str(folder / name) for name in ("sub-01", "sub-03"))
    assert cell.test == (str(folder / "sub-02"),)
    assert cell.targets == {"image": str(folder / "sub-01-targets")}
    assert cell.seed == 1
    # What the row does not name is the method's own, below its schedule too.
    schedule = cell.settings["schedule"]
    assert (schedule["n_epochs_train"], schedule["learning_rate"], schedule["betas"]) == (2, 2e-4, [0.5, 0.999])
    joint = msgspec.structs.replace(whole, protocols=("joint",))
    assert [len(cell.train) for cell in sweep.cells(joint)] == [3] * 4


@pytest.mark.parametrize(
    ("was", "wrong", "says"),
    [
        ("seeds", "seed", "unknown key seed; allowed: methods"),
        ('method = "ridge"', 'method = "rigde"', "method; got rigde; allowed: atm"),
        (
            'method = "ridge"',
            'method = "ridge"\nsubject = 1',
            r"unknown key methods\.ridge\.subject; allowed: method",
        ),
        ("n_epochs_train", "n_passes", r"methods\.nice\.settings, unknown key schedule\.n_passes"),
        (
            '{ image = "known" }',
            '{ image = "unknown" }',
            r"ridge\.targets\.image; got unknown; allowed: known",
        ),
        ('{ image = "known" }', '{ text = "known" }', "target features of ridge; got text; allowed: image"),
        ('method = "ridge"', 'method = "ridge"\nstores = "big"', r"methods\.ridge\.stores; got big; allowed: tiny"),
        ("[methods.ridge]", '[methods."a/b"]', "name in a grid; got a/b"),
        ("left_out", "left-out", "key protocols"),
        ("protocols", "resources = { cpus = 0 }\nprotocols", "resources; got .*cpus above 0"),
        ("protocols", "retries = -1\nprotocols", "retries -1; allowed: 0 or more"),
        ("seeds = [", "seeds = [-1, ", r"seeds \(-1, .*; allowed: 0 or more"),
    ],
)
def test_wrong_grid(folder: Path, tmp_path, was: str, wrong: str, says: str) -> None:
    (tmp_path / "grid.toml").write_text(GRID.replace(was, wrong, 1))
    with pytest.raises(ConfigError, match=says):
        sweep.cells(sweep.load(tmp_path / "grid.toml"))


def test_one_subject_cannot_be_left_out(grid: Grid) -> None:
    one = msgspec.structs.replace(grid, stores={"tiny": {"sub-01": "x"}}, protocols=("left_out",))
    with pytest.raises(ConfigError, match="left_out; got 1 subjects"):
        sweep.cells(one)


def test_what_is_finished_is_not_done_again(grid: Grid, tmp_path) -> None:
    done: list[str] = []

    def execute(todo, out, report):
        while todo:
            cell, attempt = todo.popleft()
            done.append(cell.name)
            yield cell, attempt, sweep.attempt_at(cell, out, "cpu")

    swept = sweep.run(grid, tmp_path, execute)
    assert done == [cell.name for cell in sweep.cells(grid)] == [result.cell for result in swept.results]
    assert list(swept.results) == results(tmp_path)
    first = swept.results[0]
    kept = msgspec.json.decode((tmp_path / first.cell / "evaluations" / "sub-01.json").read_bytes(), type=Evaluation)
    assert (first.protocol, first.subject, first.averaged) == ("intra", "sub-01", kept.averaged)
    assert not list(tmp_path.rglob("resume.safetensors"))
    done.clear()
    (tmp_path / "ridge/intra/sub-02/seed-1/evaluations/sub-02.json").unlink()
    assert sweep.run(grid, tmp_path, execute) == swept
    assert done == ["ridge/intra/sub-02/seed-1"]
    assert sorted(result.cell for result in results(tmp_path)) == sorted(result.cell for result in swept.results)


def test_other_settings_in_the_same_folder_are_refused(grid: Grid, tmp_path) -> None:
    sweep.run(msgspec.structs.replace(grid, seeds=(0,)), tmp_path)
    row = msgspec.structs.replace(grid.methods["ridge"], settings={"per_feature": False})
    with pytest.raises(ConfigError, match="holds another run"):
        sweep.run(msgspec.structs.replace(grid, methods={"ridge": row}), tmp_path)


def test_what_no_cell_could_do_is_refused_before_any(grid: Grid, folder: Path, tmp_path) -> None:
    out = tmp_path / "out"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device cuda"):
            sweep.run(msgspec.structs.replace(grid, resources=Resources(gpus=1)), out)
    tiny_store.make(folder / "wide", subject="sub-09", n_chans=5)
    tiny_store.make(folder / "more", subject="sub-04", n_train=61)
    own = grid.stores["tiny"]
    for subject, protocol, said in (
        ("wide", "left_out", r"shape of .*wide; got \(5, "),
        ("more", "intra", r"sub-01-targets; got no row for 'train60'"),
    ):
        stores = {"tiny": own | {subject: str(folder / subject)}}
        with pytest.raises(StreamdecError, match=said):
            sweep.run(msgspec.structs.replace(grid, stores=stores, protocols=(protocol,)), out)
    assert not out.exists()


def test_failures_are_counted_and_the_others_go_on(grid: Grid, tmp_path) -> None:
    flaky = {"ridge/intra/sub-01/seed-1": 1, "ridge/intra/sub-03/seed-0": 9}
    lines: list[str] = []

    def execute(todo, out, report):
        while todo:
            cell, attempt = todo.popleft()
            error = "the power went" if attempt <= flaky.get(cell.name, 0) else sweep.attempt_at(cell, out, "cpu")
            yield cell, attempt, error

    retried = msgspec.structs.replace(grid, retries=2)
    swept = sweep.run(retried, tmp_path, execute, lambda line, done=0, total=0: lines.append(f"{done}/{total} {line}"))
    assert swept.failures == {"ridge/intra/sub-03/seed-0": sweep.Failure(3, "the power went")}
    assert len(swept.results) == 5
    assert "1/6 ridge/intra/sub-01/seed-1: the power went; attempt 2 follows" in lines
    assert lines[-1] == "6/6 ridge/intra/sub-03/seed-0: the power went; given up"
    assert msgspec.json.decode((tmp_path / "failures.json").read_bytes()).keys() == swept.failures.keys()
    flaky.clear()
    assert len(sweep.run(retried, tmp_path, execute).results) == 6
    assert not (tmp_path / "failures.json").exists()


def test_added_goes_on_from_left_out(folder: Path, tmp_path) -> None:
    whole = sweep.load(folder / "grid.toml")
    small = {"width": 16, "n_layers": 1, "n_hidden": 16, "n_heads": 2, "schedule": {"n_epochs_train": 1}}
    row = sweep.Entry(
        method="mused", targets={"image": "known"}, settings=small, protocols=("added", "left_out"), stores="tiny"
    )
    grid = msgspec.structs.replace(whole, methods={"mused": row}, seeds=(0,), retries=0)
    cells = {cell.name: cell for cell in sweep.cells(grid)}
    added = cells["mused/added/sub-02/seed-0"]
    assert added.base == "mused/left_out/sub-02/seed-0"
    assert added.train == added.test == (str(folder / "sub-02"),)
    swept = sweep.run(grid, tmp_path / "whole")
    assert [result.cell for result in swept.results] == list(cells)
    kept = RunFolder(tmp_path / "whole" / added.name).read("run.json", RunMeta).settings["base"]
    assert kept == str(tmp_path / "whole" / added.base)
    done: list[str] = []

    def fails(todo, out, report):
        while todo:
            cell, attempt = todo.popleft()
            done.append(cell.name)
            yield cell, attempt, "the power went"

    swept = sweep.run(grid, tmp_path / "failed", fails)
    assert done == [name for name in cells if "left_out" in name]
    assert swept.failures["mused/added/sub-01/seed-0"] == sweep.Failure(0, "mused/left_out/sub-01/seed-0 failed")
    for protocols, of in ((("added",), "mused"), (("added", "left_out"), "ridge")):
        wrong = msgspec.structs.replace(row, protocols=protocols, method=of, settings={})
        with pytest.raises(ConfigError, match="protocol added; allowed: with left_out"):
            sweep.cells(msgspec.structs.replace(grid, methods={"row": wrong}))


def test_unforeseen_error_is_kept_in_full(grid: Grid, tmp_path) -> None:
    cell = msgspec.structs.replace(sweep.cells(grid)[0], method="none")
    assert "got none" in sweep.attempt_at(cell, tmp_path, "cpu")
    cell = msgspec.structs.replace(sweep.cells(grid)[0], seed=None)
    said = sweep.attempt_at(cell, tmp_path, "cpu")
    assert said.startswith("ValidationError") or "Error" in said
    assert "\n" not in said
    assert "Traceback" in (tmp_path / cell.name / "error.txt").read_text()


def test_command(folder: Path, tmp_path, capsys) -> None:
    text = GRID.replace("seeds = [0, 1]", "seeds = [0]").replace('["intra", "left_out"]', '["joint"]')
    (folder / "joint.toml").write_text(text[: text.index("[methods.nice]")])
    assert cli.main(["sweep", str(folder / "joint.toml"), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "simulated data tiny" in shown
    assert "1 cells, 3 evaluations" in shown
    assert [(result.cell, result.subject) for result in results(tmp_path)] == [
        ("ridge/joint/seed-0", s) for s in SUBJECTS
    ]
    (folder / "sub-01-targets").rename(folder / "away")
    try:
        assert cli.main(["sweep", str(folder / "joint.toml"), str(tmp_path)]) == 1
    finally:
        (folder / "away").rename(folder / "sub-01-targets")
    assert "holds no target features" in capsys.readouterr().err


@needs_ray
@pytest.mark.slow
def test_killed_on_ray_and_resumed(folder: Path, tmp_path, capsys) -> None:
    """The driver is killed without a warning once some cells are finished; the same command does the others."""
    out, config, n_cells = tmp_path / "runs", folder / "one_seed.toml", N_CELLS // 2
    config.write_text(GRID.replace("seeds = [0, 1]", "seeds = [0]"))
    command = [sys.executable, "-m", "offline.cli", "sweep", config, out, "--ray", "auto"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while len(list(out.rglob("evaluations/*.json"))) < 3:
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"ended by itself: {driver.wait(0.05)}")
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("evaluations/*.json")}
    assert 3 <= len(before) < n_cells
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{n_cells} cells, {n_cells} evaluations" in again.stdout
    found = results(out)
    wanted = [cell.name for cell in sweep.cells(sweep.load(config))]
    assert sorted(result.cell for result in found) == sorted(wanted)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    for result in found:
        meta = RunFolder(out / result.cell).read("run.json", RunMeta)
        assert (meta.method, meta.seed, meta.data) == (result.method, result.seed, result.data)
    entries = [entry for of in gather([out]).data_sets for variant in of.variants for entry in variant.entries]
    assert len({entry.run.path for entry in entries}) == len(entries) == n_cells


@needs_ray
def test_what_no_machine_has_is_refused(folder: Path, tmp_path) -> None:
    from offline.on_ray import on_ray

    grid = sweep.load(folder / "grid.toml")
    with pytest.raises(ConfigError, match=r"resources of a cell.*what one machine has"):
        sweep.run(grid, tmp_path, on_ray("auto", Resources(cpus=1000)))
    for nowhere in ("127.0.0.1:1", "there"):
        with pytest.raises(ConfigError, match="HOST:PORT of a cluster that runs"):
            sweep.run(grid, tmp_path, on_ray(nowhere, Resources()))
