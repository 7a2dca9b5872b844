"""Compute the lead field that the simulated subject ships with: a spherical head and dipoles below named electrodes.

Run ``python tools/make_leadfield.py``; it writes streamdec/simulate/leadfield.safetensors. Needs mne. The result is the
same on every run; it only changes when this file does.
"""

from __future__ import annotations

import json
from pathlib import Path

import mne
import numpy as np
from safetensors.numpy import save_file

from streamdec.simulate.leadfield import CH_NAMES, FILE, REFERENCE

N_BRAIN = 64
CORTEX, DEEP = 0.80, 0.55  # of the electrode's distance from the sphere's centre; the inner skull is at 0.90

UP = np.array([0.0, 0.0, 1.0])
EYES_LOWER = np.array([0.0, 0.0, -0.04])  # m, from the forehead electrodes

# Group -> (electrode that the dipole lies below, orientation). "radial" points outwards, "up" along the scalp.
SOURCES: dict[str, list[tuple[str, str]]] = {
    "occipital": [(name, "radial") for name in ("O1", "Oz", "O2", "PO3", "POz", "PO4", "PO7", "PO8")]
    + [(name, "up") for name in ("O1", "O2", "PO7", "PO8")],
    "temporal": [(name, "radial") for name in ("P7", "P8", "TP7", "TP8", "TP9", "TP10", "P5", "P6")]
    + [(name, "up") for name in ("P7", "P8", "TP7", "TP8")],
    "alpha": [(name, "radial") for name in ("O1", "O2", "PO3", "PO4", "P3", "P4")],
    "eyes": [("Fp1", "radial"), ("Fp2", "radial")],
}


def dipoles(electrodes: dict[str, np.ndarray], centre: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Group, position (n, 3) m and unit orientation (n, 3) of every dipole, in the head frame."""
    groups, positions, orientations = [], [], []
    scale = np.mean([np.linalg.norm(place - centre) for place in electrodes.values()])
    for group, sources in SOURCES.items():
        for name, direction in sources:
            below = electrodes[name] - centre + EYES_LOWER * (group == "eyes")
            outward = below / np.linalg.norm(below)
            up = UP - (UP @ outward) * outward
            groups.append(group)
            positions.append(centre + CORTEX * scale * outward)
            orientations.append(outward if direction == "radial" else up / np.linalg.norm(up))
    # A Fibonacci lattice over the upper two thirds of the sphere, alternately cortical and deep, oriented at random.
    rng = np.random.default_rng(0)
    height = np.linspace(0.98, -0.35, N_BRAIN)
    azimuth = np.pi * (3 - np.sqrt(5)) * np.arange(N_BRAIN)
    ring = np.sqrt(1 - height**2)
    unit = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=1)
    depth = np.where(np.arange(N_BRAIN) % 2, CORTEX, DEEP)
    random = rng.standard_normal((N_BRAIN, 3))
    groups += ["brain"] * N_BRAIN
    positions += list(centre + scale * depth[:, None] * unit)
    orientations += list(random / np.linalg.norm(random, axis=1, keepdims=True))
    return groups, np.array(positions), np.array(orientations)


def main() -> None:
    """Compute and write."""
    mne.set_log_level("error")
    names = [*CH_NAMES, REFERENCE]
    info = mne.create_info(names, 1000.0, "eeg")
    info.set_montage("standard_1005")
    sphere = mne.make_sphere_model("auto", "auto", info)
    electrodes = {ch["ch_name"]: ch["loc"][:3] for ch in info["chs"]}
    groups, positions, orientations = dipoles(electrodes, np.asarray(sphere["r0"]))
    space = mne.setup_volume_source_space(pos={"rr": positions, "nn": orientations}, sphere=sphere, mindist=0.0)
    forward = mne.make_forward_solution(info, None, space, sphere, meg=False, eeg=True, mindist=0.0)
    if forward["nsource"] != len(positions):
        raise SystemExit(f"{len(positions) - forward['nsource']} dipoles lie outside the inner skull")
    free = forward["sol"]["data"].reshape(len(names), len(positions), 3)  # V per Am, rows as in the info
    gain = np.einsum("csk,sk->cs", free, orientations) * 1e-3  # microvolt per nAm
    gain = gain[: len(CH_NAMES)] - gain[len(CH_NAMES) :]
    # One metadata key: safetensors writes several in an order that changes from run to run.
    about = {"ch_names": CH_NAMES, "groups": groups, "reference": REFERENCE, "mne": mne.__version__}
    arrays = {"gain": np.ascontiguousarray(gain, np.float32), "positions": positions.astype(np.float32)}
    save_file(arrays, Path(str(FILE)), metadata={"about": json.dumps(about)})
    print(f"{FILE}: {gain.shape[0]} channels, {gain.shape[1]} dipoles, rms {np.sqrt((gain**2).mean()):.3f} uV/nAm")


if __name__ == "__main__":
    main()
