"""The outlet: a stream of ours."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pylsl

from ...errors import StreamError
from ...types import Float64, StreamInfo
from ..header import write_header


class LslOutlet:
    """A stream of ours.

    Parameters
    ----------
    info : StreamInfo
        What it says of itself. Where ``header`` is given, its ``desc`` element is sent verbatim.

    Raises
    ------
    StreamError
        liblsl cannot open it.
    """

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        described = pylsl.StreamInfo(info.name, info.type, info.n_chans, info.sfreq, info.dtype, info.source_id)
        for child in ElementTree.fromstring(write_header(info)).find("desc") or ():  # noqa: S314 - our own
            _append(described.desc(), child)
        try:
            self._outlet = pylsl.StreamOutlet(described)
        except RuntimeError as error:
            raise StreamError(f"LSL outlet {info.name!r}", got=error) from error

    def push(self, data: npt.NDArray[Any] | list[str], stamps: Float64 | float) -> None:
        """Send samples.

        Parameters
        ----------
        data : ndarray, shape (n_chans, n_times), or list of str
            Numbers, or for a string stream of one channel its n_times texts.
        stamps : ndarray, shape (n_times,), float64, or float
            LSL clock; one number is the last sample's, the receiver deduces the others from the nominal rate.
        """
        samples = data if isinstance(data, list) else np.ascontiguousarray(data.T)
        self._outlet.push_chunk(samples, stamps if isinstance(stamps, float | int) else stamps.tolist())

    def have_consumers(self) -> bool:
        """Whether anybody listens."""
        return bool(self._outlet.have_consumers())

    def close(self) -> None:
        """Take the stream away. Idempotent."""
        self._outlet = None


def _append(parent: Any, element: ElementTree.Element) -> None:
    if not len(element):
        parent.append_child_value(element.tag, element.text or "")
        return
    node = parent.append_child(element.tag)
    for child in element:
        _append(node, child)
