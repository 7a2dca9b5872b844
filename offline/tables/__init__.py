"""Published tables: which rows, on which data, aligned to what. Read by :mod:`offline.reproduce`."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
