"""Real EEG: each of 20 people left out once, first against second picture (tools/uci_objects.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from offline.data.store import Prepared
from offline.methods.ridge import RIDGE

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "uci_objects.py"
    spec = importlib.util.spec_from_file_location("uci_objects", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["uci_objects"] = module
    spec.loader.exec_module(module)
    return module


def test_stores_hold_one_subject_in_one_part(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    """The samples are the file's, in a tenth of microvolts, and what is tested is in no training part."""
    folder = data / "eeg" / "uci_objects"
    recordings = tool.Recordings(folder)
    stores = tool.prepared(recordings, tool.Candidate(256.0, 0.5, {}), tmp_path)
    with np.load(next(folder.glob("*.npz"))) as file:
        eeg = [i for i, name in enumerate(file["ch"]) if name not in ("X", "Y", "nd")]
        for subject in recordings.subjects[::7]:
            rows = (file["subj"] == subject) & (file["cond"] != "S2 match")
            for part in ("train", "test"):
                store = Prepared(stores / f"{subject}-{part}")
                assert list(store.meta.items) == [part]
                assert store.meta.offline_only
                found = store.part(part)
                np.testing.assert_allclose(found.epochs, file["X"][rows][:, eeg, :128] / 10, atol=1e-3)
                np.testing.assert_array_equal([found.items[i].id for i in found.rows.item], file["cond"][rows])


@pytest.mark.slow
def test_ridge_on_people_it_never_saw(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    """The bar is what a regression found without this project, 0.83; here for one window and rate, nothing chosen."""
    recordings = tool.Recordings(data / "eeg" / "uci_objects")
    stores = tool.prepared(recordings, tool.Candidate(32.0, 1.0, {}), tmp_path)
    areas = []
    for subject in recordings.subjects:
        task = tool.Task(tmp_path / subject, stores, RIDGE.name, {}, recordings.subjects, (subject,))
        (found,) = tool.run(task)
        assert (found.protocol, found.subject, found.single.n_queries) == ("left_out", subject, 20)
        areas.append(tool.area(found))
    assert np.mean(areas) >= 0.83
