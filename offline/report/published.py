"""Published figures, for the column beside ours. Nothing here was measured by this program.

THINGS-EEG2 and THINGS-MEG, 200-way, top-1 and top-5 in percent, means over the subjects, all test repetitions averaged
into each query (80 in EEG, 12 in MEG). Protocols differ from ours and from each other where ``how`` says so.
"""

from __future__ import annotations

import msgspec

N_CANDIDATES = 200


class Published(msgspec.Struct, frozen=True):
    """``intra`` and ``left_out`` as (top-1, top-5) in percent, None where not published.

    ``class_centres`` whether candidates were means of other images of the concepts, and not the stimuli.
    """

    dataset: str
    method: str
    name: str
    intra: tuple[float | None, float | None]
    left_out: tuple[float | None, float | None]
    source: str
    how: str = ""
    class_centres: bool = False


_NEUROALIGN = "NeuroAlign's paper"
_HVF = "Brain-HIVE's paper (ICLR 2026)"

PUBLISHED: tuple[Published, ...] = (
    Published(
        "things_eeg2",
        "nice",
        "NICE",
        (16.1, 43.6),
        (6.2, 21.4),
        "Song et al. 2024, arXiv 2308.13234",
        "chosen on validation",
        class_centres=True,
    ),
    Published(
        "things_eeg2",
        "atm",
        "ATM-S",
        (28.5, 60.4),
        (11.8, 33.7),
        "Li et al. 2024, arXiv 2403.07721",
        "trained on single epochs; pass chosen on the test set",
    ),
    Published(
        "things_eeg2",
        "ubp",
        "UBP",
        (50.9, 79.7),
        (12.4, 33.4),
        "Wu et al. 2025, arXiv 2503.04207",
        "last pass (intra-subject)",
    ),
    Published(
        "things_eeg2",
        "neuroalign",
        "NeuroAlign",
        (48.1, 78.1),
        (14.5, 36.4),
        _NEUROALIGN,
        "chosen by validation loss",
    ),
    Published(
        "things_eeg2",
        "neuroclip",
        "NeuroCLIP",
        (63.2, None),
        (17.0, 40.3),
        "Wang et al. 2025, arXiv 2511.09250",
        "left out: as later papers quote it",
    ),
    Published(
        "things_eeg2", "hvf", "HVF", (75.7, 94.6), (20.0, 44.1), _HVF, "last pass; left out: chosen on the test set"
    ),
    Published("things_meg", "ubp", "UBP", (26.7, 55.2), (2.2, 10.4), "Wu et al. 2025, arXiv 2503.04207"),
    Published(
        "things_meg",
        "neuroalign",
        "NeuroAlign",
        (26.5, 53.3),
        (3.9, 13.1),
        _NEUROALIGN,
        "chosen by validation loss",
    ),
    Published("things_meg", "hvf", "HVF", (33.7, 60.5), (5.4, 15.2), _HVF),
)


def published(dataset: str) -> dict[str, Published]:
    """Figures of a data set by method; a store of it may say more behind its name, as in things_eeg2_100hz."""
    return {row.method: row for row in PUBLISHED if dataset == row.dataset or dataset.startswith(f"{row.dataset}_")}
