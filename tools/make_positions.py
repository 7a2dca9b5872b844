"""Write the electrode positions that streamdec ships: ``streamdec/signal/positions.tsv``.

mne's template of the 10-05 system on the Colin27 head, seen from the centre of the sphere that mne fits to it (the
origin it interpolates about), scaled to the unit sphere. Axes of the head frame: x right, y front, z up. T3 to T6
are left out: they are other names of T7, T8, P7 and P8.

    python tools/make_positions.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mne
import numpy as np

TARGET = Path(__file__).parents[1] / "streamdec" / "signal" / "positions.tsv"


def table() -> str:
    """Make the text of the file: a header line, then name and x, y, z on the unit sphere."""
    # renamed in mne 1.13
    template = next(name for name in ("colin27_1005", "standard_1005") if name in mne.channels.get_builtin_montages())
    montage = mne.channels.make_standard_montage(template)
    info = mne.create_info(montage.ch_names, 1000.0, "eeg", verbose="error")
    info.set_montage(montage)
    _, origin, _ = mne.bem.fit_sphere_to_headshape(info, dig_kinds=("eeg",), units="m", verbose="error")
    lines = ["name\tx\ty\tz"]
    for channel in info["chs"]:
        if channel["ch_name"] not in {"T3", "T4", "T5", "T6"}:
            ray = channel["loc"][:3] - origin
            x, y, z = ray / np.linalg.norm(ray)
            lines.append(f"{channel['ch_name']}\t{x:.6f}\t{y:.6f}\t{z:.6f}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the file, or with ``--check`` say whether it is what would be written."""
    parser = argparse.ArgumentParser(description="write the electrode positions that streamdec ships")
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 where it differs")
    if not parser.parse_args().check:
        TARGET.write_text(table(), encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != table():
        print(f"{TARGET.name} differs: run python tools/make_positions.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
