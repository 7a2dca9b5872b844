"""Channel names, aliases and order: maps a stream's channels onto the ones that are wanted.

Missing and bad channels are interpolated by spherical splines, with a matrix made once per set of them. It is
applied to epochs, not to chunks: filters are linear, so the result is the same, it costs less, and a product of one
fixed shape does not depend on how the samples came in packets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from numpy.polynomial.legendre import legval

from ..errors import StreamMismatch
from ..types import Float32, Float64

# The names of the 10-20 system before 1991 that 10-10 renamed.
_OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}

# "EEG Fp1-REF", "Fp1-LE", "Fp1.." (the EDF habit), "EEG:Fp1", "C3-A2": the electrode's name and what is put around
# it.
_DECORATED = re.compile(r"(?:EEG[\s_:.-]*)?(\w+?)(?:[\s_:-]+(?:REF|LE|AR|AVG|CAR|A1|A2|M1|M2))?\.*", re.IGNORECASE)


@cache
def _positions() -> dict[str, tuple[float, float, float]]:
    text = resources.files(__package__).joinpath("positions.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return {name: (float(x), float(y), float(z)) for name, x, y, z in rows}


@cache
def _spellings() -> dict[str, str]:
    return {name.upper(): name for name in _positions()} | _OLD_NAMES


def canonical(name: str) -> str:
    """Give an electrode its one spelling.

    Case, old names (T3, T4, T5, T6 are T7, T8, P7, P8) and decoration ("EEG Fp1-REF", "Fp1.") fall away from names
    of the 10-05 system; any other name is only stripped and upper-cased.
    """
    text = name.strip()
    match = _DECORATED.fullmatch(text)
    known = _spellings().get(match[1].upper()) if match else None
    return known or text.upper()


def has_position(name: str) -> bool:
    """Tell whether ``name`` is an electrode of the 10-05 system."""
    return canonical(name) in _positions()


def positions(names: Sequence[str]) -> Float64:
    """Look up electrode positions of the 10-05 system on the unit sphere.

    Parameters
    ----------
    names : sequence of str
        Electrodes in any spelling :func:`canonical` knows.

    Returns
    -------
    array of shape (n_chans, 3) float64
        x right, y front, z up, unit length.

    Raises
    ------
    StreamMismatch
        A name is not in the 10-05 system.
    """
    unknown = [name for name in names if not has_position(name)]
    if unknown:
        raise StreamMismatch(
            "electrode position",
            got=", ".join(unknown),
            allowed="names of the 10-05 system",
            do="rename these channels, or choose a bundle without them",
        )
    return np.array([_positions()[canonical(name)] for name in names], dtype=np.float64).reshape(-1, 3)


def spherical_spline(
    from_xyz: Float64, to_xyz: Float64, *, stiffness: int = 4, n_terms: int = 50, smoothing: float = 1e-5
) -> Float64:
    """Make the matrix that interpolates potentials on a sphere.

    Parameters
    ----------
    from_xyz, to_xyz : array of shape (n_from, 3), (n_to, 3) float64
        Electrode positions as seen from the sphere's centre, of any length above 0.
    stiffness : int
        Order m of the spline.
    n_terms : int
        Legendre polynomials summed.
    smoothing : float
        Added to the diagonal of the spline's system.

    Returns
    -------
    array of shape (n_to, n_from) float64
        ``matrix @ potentials`` are the potentials at ``to_xyz``.

    References
    ----------
    Perrin, Pernier, Bertrand, Echallier (1989), Spherical splines for scalp potential and current density mapping,
    Electroencephalography and Clinical Neurophysiology 72(2), equations 1 to 3. The defaults are mne's.
    """
    among = _kernel(from_xyz, from_xyz, stiffness, n_terms)
    return _spline(among, _kernel(from_xyz, to_xyz, stiffness, n_terms), smoothing)


def _kernel(a_xyz: Float64, b_xyz: Float64, stiffness: int = 4, n_terms: int = 50) -> Float64:
    """Give the spline's function of the angle between all pairs of two sets of electrodes, (n_a, n_b) float64."""
    a = a_xyz / np.linalg.norm(a_xyz, axis=1, keepdims=True)
    b = b_xyz / np.linalg.norm(b_xyz, axis=1, keepdims=True)
    n = np.arange(1, n_terms + 1, dtype=np.float64)
    series = np.concatenate([[0.0], (2 * n + 1) / (4 * np.pi * (n * (n + 1)) ** stiffness)])
    return np.asarray(legval(a @ b.T, series), np.float64)


def _spline(among: Float64, toward: Float64, smoothing: float = 1e-5) -> Float64:
    """Solve for the matrix (n_to, n_from), of the kernels (n_from, n_from) and (n_from, n_to)."""
    n_from, n_to = toward.shape
    system = np.ones((n_from + 1, n_from + 1))
    system[:-1, :-1] = among + smoothing * np.eye(n_from)
    system[-1, -1] = 0.0
    wanted = np.ones((n_from + 1, n_to))
    wanted[:-1] = toward
    return np.asarray(np.linalg.solve(system, wanted)[:-1].T, np.float64)


def interpolate_bad(ch_names: Sequence[str], bad: Collection[str]) -> Float32:
    """Make the matrix that fills in bad or missing channels.

    Parameters
    ----------
    ch_names : sequence of str
        All channels, in order.
    bad : collection of str
        Those of them that must not be used.

    Returns
    -------
    array of shape (n_chans, n_good) float32, read-only
        From the good channels, in their order, to all. The last 64 different sets of bad channels are remembered; a
        new one costs 0.2 ms for 63 channels, 4 ms for 256, the first one of these ``ch_names`` 2 and 16 ms.

    Raises
    ------
    StreamMismatch
        A bad channel, or every good one, has no known position.
    """
    return _fill_in(tuple(ch_names), frozenset(bad))


@lru_cache(maxsize=8)
def _all_pairs(ch_names: tuple[str, ...]) -> Float64:
    """Give the kernel of all pairs of channels, (n_chans, n_chans) float64; NaN where a position is not known."""
    known = [row for row, name in enumerate(ch_names) if has_position(name)]
    xyz = positions([ch_names[row] for row in known])
    kernel = np.full((len(ch_names), len(ch_names)), np.nan)
    kernel[np.ix_(known, known)] = _kernel(xyz, xyz)
    return kernel


@lru_cache(maxsize=64)
def _fill_in(ch_names: tuple[str, ...], bad: frozenset[str]) -> Float32:
    kernel = _all_pairs(ch_names)
    good = [row for row, name in enumerate(ch_names) if name not in bad]
    lost = [row for row, name in enumerate(ch_names) if name in bad]
    columns = [column for column, row in enumerate(good) if not np.isnan(kernel[row, row])]
    names = [ch_names[row] for row in lost]
    if lost and not columns:
        raise StreamMismatch(
            f"interpolation of {', '.join(names)}",
            got="no good channel with a known position",
            allowed="at least one electrode of the 10-05 system",
        )
    matrix = np.zeros((len(ch_names), len(good)), dtype=np.float32)
    matrix[good, np.arange(len(good))] = 1.0
    if lost:
        positions(names)  # they have to be known
        sources = [good[column] for column in columns]
        spline = _spline(kernel[np.ix_(sources, sources)], kernel[np.ix_(sources, lost)])
        matrix[np.ix_(lost, columns)] = spline
    matrix.flags.writeable = False
    return matrix


@dataclass(frozen=True, slots=True)
class ChannelMap:
    """Where the wanted channels are in a stream.

    Parameters
    ----------
    picks : array of shape (n_present,) intp
        Index in the stream of each wanted channel that it has, in the wanted order.
    missing : tuple of str
        The wanted channels that it does not have.
    """

    picks: npt.NDArray[np.intp]
    missing: tuple[str, ...] = ()


def map_channels(
    stream_names: Sequence[str], wanted: Sequence[str], max_interpolated: int, positional: bool = False
) -> ChannelMap:
    """Find the wanted channels in a stream.

    Parameters
    ----------
    stream_names : sequence of str
        The stream's channel names, in its order; "" where it gives none.
    wanted : sequence of str
        The channels to deliver.
    max_interpolated : int
        How many of them may be missing and be interpolated.
    positional : bool
        Take the stream's first channels as the wanted ones, whatever their names.

    Returns
    -------
    ChannelMap
        By name in any spelling :func:`canonical` knows; by position only if ``positional``.

    Raises
    ------
    StreamMismatch
        Too many channels are missing, one is there twice, or one to interpolate has no known position.
    """
    keys = [canonical(name) for name in wanted]
    if len(set(keys)) < len(keys):
        raise StreamMismatch("wanted channels", got=", ".join(wanted), allowed="each electrode once")
    if positional:
        if len(stream_names) < len(wanted):
            raise StreamMismatch(
                "channels by position", got=f"{len(stream_names)} channels", allowed=f"at least {len(wanted)}"
            )
        return ChannelMap(np.arange(len(wanted), dtype=np.intp))

    found: dict[str, list[int]] = {key: [] for key in keys}
    for index, name in enumerate(stream_names):
        found.get(canonical(name), []).append(index)
    doubled = [stream_names[index] for indices in found.values() if len(indices) > 1 for index in indices]
    if doubled:
        raise StreamMismatch(
            "channel names of the stream",
            got=f"several channels for one electrode: {', '.join(doubled)}",
            allowed="each wanted electrode once",
            do="rename them in the acquisition software",
        )
    missing = tuple(name for key, name in zip(keys, wanted, strict=True) if not found[key])
    if len(missing) > max_interpolated and not any(stream_names):
        raise StreamMismatch(
            "channel names of the stream",
            got=f"none for {len(stream_names)} channels",
            allowed=", ".join(wanted),
            do="name them in the acquisition software, or, where they come in this order, set intake.positional",
        )
    if len(missing) > max_interpolated:
        raise StreamMismatch(
            f"{len(missing)} of {len(wanted)} channels are not in the stream: {', '.join(missing)}",
            got=", ".join(filter(None, stream_names)),
            allowed=f"at most {max_interpolated} to interpolate",
            do="correct the channel names in the acquisition software, or allow more interpolated channels",
        )
    interpolate_bad(wanted, missing)  # a position that is not known is an error now, not at the first epoch
    return ChannelMap(np.array([found[key][0] for key in keys if found[key]], dtype=np.intp), missing)
