"""The lead field of a spherical head: what a dipole below the scalp adds to each of 63 channels.

Computed once by tools/make_leadfield.py with MNE-Python's four-shell sphere model and shipped as an array. Channels
stand in the order in which NICE and its successors feed them to their encoders; the reference is Fz, as in
THINGS-EEG2.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import as_file, files
from typing import Literal, TypeAlias

import numpy as np
from safetensors import safe_open

from ..types import Float32

Group: TypeAlias = Literal["occipital", "temporal", "alpha", "eyes", "brain"]

FILE = files(__package__) / "leadfield.safetensors"
REFERENCE = "Fz"
# fmt: off
# fmt: off
CH_NAMES: tuple[str, ...] = (
    "Fp1", "Fp2", "AF7", "AF3", "AFz", "AF4", "AF8", "F7", "F5", "F3", "F1", "F2", "F4", "F6", "F8", "FT9", "FT7",
    "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "FT8", "FT10", "T7", "C5", "C3", "C1", "Cz", "C2", "C4",
    "C6", "T8", "TP9", "TP7", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "TP8", "TP10", "P7", "P5", "P3",
    "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2",
)
# fmt: on
# fmt: on
"""The 63 channels, in the rows' order of everything simulated."""


@cache
def _load() -> tuple[Float32, Float32, tuple[str, ...]]:
    with as_file(FILE) as path, safe_open(path, framework="numpy") as file:
        groups = tuple(json.loads(file.metadata()["about"])["groups"])
        gain, positions = file.get_tensor("gain"), file.get_tensor("positions")
    for array in (gain, positions):
        array.flags.writeable = False
    return gain, positions, groups


def gain(group: Group) -> Float32:
    """Give the lead field of a group of dipoles: (63, n_dipoles) float32, microvolt per nAm, referenced to Fz."""
    every, _, groups = _load()
    picked: Float32 = every[:, np.array(groups) == group]
    return picked


def positions(group: Group) -> Float32:
    """Tell where the dipoles are: (n_dipoles, 3) float32, metres, head frame (x right, y front, z up)."""
    _, every, groups = _load()
    picked: Float32 = every[np.array(groups) == group]
    return picked
