"""The tables: every one can be run; a small one of simulated subjects, from the data to the figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest

from offline import cli, reproduce, sweep
from offline.data.store import Item, Prepared
from offline.methods.registry import method
from offline.reproduce import Simulated, Table
from offline.sweep import Entry, Resources
from offline.targets.registry import KINDS, encoder
from streamdec.errors import ConfigError

ITEMS = [Item(f"train/{i}", f"thing {i}", f"concept {i}") for i in range(4)]
SMALL = Table(
    about="Nothing published.",
    dataset="things_eeg2",
    subjects=("sub-01", "sub-02"),
    channels={"all": "", "posterior": "^[OP]"},
    targets={"semantic": "open_clip:RN50/openai", "pixels": "pixels"},
    methods={
        "ridge": Entry(method="ridge", targets={"image": "semantic"}),
        "ridge-17": Entry(method="ridge", targets={"image": "pixels"}, stores="posterior", protocols=("left_out",)),
    },
    protocols=("intra",),
    seeds=(0,),
    simulated=Simulated(
        targets={"semantic": "attributes", "pixels": "pixels@size=4"},
        subjects=2,
        n_train=8,
        images_per_concept=2,
        n_test=6,
        train_repetitions=1,
        test_repetitions=2,
        tmax=0.6,
    ),
)


@pytest.mark.parametrize("name", reproduce.NAMES)
def test_table_can_be_run(name: str) -> None:
    table = reproduce.table(name)
    assert table.seeds == (0, 1, 2)
    for of in (table, reproduce.simulated(table)):
        cells = sweep.cells(reproduce.grid(of, Path("out"), Resources()))
        protocols = [protocol for row in of.methods.values() for protocol in row.protocols or of.protocols]
        folds = sum(1 if protocol == "joint" else len(of.subjects) for protocol in protocols)
        assert len(cells) == 3 * folds
        for cell in cells:  # as every table says
            assert cell.settings["validation"] == {"by": "concept", "share": 0.05}
        # Nothing is prepared or computed that no row reads.
        assert {Path(path).parent.name for cell in cells for path in cell.train + cell.test} == set(of.channels)
        assert {Path(path).name for cell in cells for path in cell.targets.values()} == set(of.targets)
        for spec in "+".join(of.targets.values()).split("+"):
            assert re.split("[:@]", spec)[0] in KINDS
    for spec in table.simulated.targets.values():
        assert encoder(spec, ITEMS).name == spec  # makes it: no weights are needed


def test_rows_differ_as_they_say() -> None:
    cells = sweep.cells(reproduce.grid(reproduce.table("neuroalign-table4"), Path(), Resources()))
    rows = {cell.name.partition("/")[0]: cell for cell in cells}
    whole = rows["neuroalign"]
    assert whole.settings == msgspec.json.decode(msgspec.json.encode(method("neuroalign").settings()))
    changed = {
        name: {key for key in cell.settings if cell.settings[key] != whole.settings[key]}
        | {role for role in cell.targets if cell.targets[role] != whole.targets[role]}
        for name, cell in rows.items()
    }
    assert changed == {
        "neuroalign": set(),
        "without-vse": {"image"},
        "without-sga": {"guidance"},
        "without-dla": {"adjustment"},
    }


def test_the_row_without_text_lacks_nothing_but_text() -> None:
    cells = sweep.cells(reproduce.grid(reproduce.table("neuroalign-table5"), Path(), Resources()))
    rows = {cell.name.partition("/")[0]: cell for cell in cells}
    assert len(rows) == 11
    for name, cell in rows.items():
        assert cell.settings == rows["none"].settings
        assert set(cell.targets) - set(rows["none"].targets) == (set() if name == "none" else {"text"})


def test_simulated_table_changes_schedules_and_targets_alone() -> None:
    table = reproduce.table("hvf-table1")
    made = reproduce.simulated(table)
    cells = {cell.name: cell for cell in sweep.cells(reproduce.grid(made, Path(), Resources()))}
    settings = cells["hvf/left_out/sub-03/seed-2"].settings
    published = msgspec.json.decode(msgspec.json.encode(method("hvf").settings()))
    assert {key for key in settings if settings[key] != published[key]} == {"schedule"}
    assert settings["schedule"]["cosine"]
    assert settings["schedule"]["n_epochs_train"] == table.simulated.schedule["n_epochs_train"]


def test_wrong_table() -> None:
    with pytest.raises(ConfigError, match=r"table; got table-9; allowed: .*hvf-"):
        reproduce.table("table-9")
    with pytest.raises(ConfigError, match="targets of the table"):
        msgspec.convert(msgspec.to_builtins(SMALL) | {"targets": {"pixels": "pixels"}}, Table)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("table")
    reproduce.simulate(SMALL.simulated, out / "simulated")
    return out


def test_from_the_data_to_the_figures(made: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reproduce, "table", lambda name: SMALL)
    assert cli.main(["reproduce", "small", str(made), "--simulated"]) == 0
    shown = capsys.readouterr()
    assert "simulated small: Nothing published." in shown.out
    assert "simulated data" in shown.out
    assert "4 cells, 4 evaluations" in shown.out
    assert all(line.startswith("simulated: ") for line in shown.err.splitlines())
    lines = (made / "runs" / "results.jsonl").read_bytes().splitlines()
    found = {result.cell: result for result in (msgspec.json.decode(line, type=sweep.Result) for line in lines)}
    assert set(found) == {
        *(f"ridge/intra/{subject}/seed-0" for subject in ("sub-01", "sub-02")),
        *(f"ridge-17/left_out/{subject}/seed-0" for subject in ("sub-01", "sub-02")),
    }
    assert all(result.simulated and result.averaged.n_candidates == 6 for result in found.values())
    whole, part = (Prepared(made / "stores" / name / "sub-01").meta for name in ("all", "posterior"))
    assert (whole.shape, part.shape) == ((63, 150), (17, 150))  # to 0.6 s
    assert all(name[0] in "OP" for name in part.signal.ch_names)
    assert "whitener of its own" in whole.offline_only
    stamp = (made / "stores" / "all" / "sub-01" / "meta.json").stat().st_mtime_ns
    page = made / "report.html"
    assert cli.main(["reproduce", "small", str(made), "--simulated", "--report", str(page)]) == 0
    assert (made / "stores" / "all" / "sub-01" / "meta.json").stat().st_mtime_ns == stamp
    assert f"{page.name}: 4 runs" in capsys.readouterr().out.replace("\n", "")
    written = page.read_text(encoding="utf-8")
    assert "ridge-17" in written
    assert "simulated" in written

    monkeypatch.setenv("COLUMNS", "60")
    long = msgspec.structs.replace(SMALL, methods={"ridge-without-anything-else": SMALL.methods["ridge"]})
    monkeypatch.setattr(reproduce, "table", lambda name: long)
    assert cli.main(["reproduce", "small", str(made), "--simulated"]) == 0
    shown = capsys.readouterr().out
    row = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert "ridge-without-anything-else" in row, "a long name is folded, not cut"

    other = msgspec.structs.replace(SMALL, channels={"all": "^O"})
    with pytest.raises(ConfigError, match="holds another preparation"):
        reproduce.reproduce(reproduce.simulated(other), made / "simulated", made)
    smaller = msgspec.structs.replace(SMALL.simulated, distinctness=2.0)
    with pytest.raises(ConfigError, match="holds another simulation"):
        reproduce.simulate(smaller, made / "simulated")


def test_what_a_report_lacks_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reproduce, "table", lambda name: SMALL)
    monkeypatch.setitem(sys.modules, "offline.report.write", None)  # as if an import of its had failed
    out = tmp_path / "out"
    assert cli.main(["reproduce", "small", str(out), "--simulated", "--report", str(tmp_path / "r.html")]) == 2
    assert "is not installed" in capsys.readouterr().err
    assert not out.exists()


def test_weights_that_are_not_there_are_named_before_anything_is_made(made: Path, tmp_path) -> None:
    with pytest.raises(ConfigError, match="RN50"):
        reproduce.reproduce(SMALL, made / "simulated", tmp_path / "out")
    assert not (tmp_path / "out" / "stores").exists()


def test_data_or_simulated(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "hvf-table1", "out"])
    assert "one of the arguments --root --simulated is required" in capsys.readouterr().err
    assert cli.main(["reproduce", "hvf-table1", "out", "--root", "nowhere"]) == 1
    assert "no sub-01 of things_eeg2 below nowhere" in capsys.readouterr().err
