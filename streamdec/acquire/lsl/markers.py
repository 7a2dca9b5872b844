"""A marker stream: what comes over it, and an inlet for it alone."""

from __future__ import annotations

from typing import Any

from pylsl.util import LostError

from ...errors import StreamdecError
from ...types import Marker
from ..query import StreamQuery
from .library import Offset, local_clock
from .link import Contact, Link, Refusal

_MAX_MARKERS = 64


def pull_markers(inlet: Any, now: float, offset: float = 0.0) -> list[Marker]:
    """Take what has come, stamped by the sender's clock plus ``offset`` s; never waits.

    Raises
    ------
    LostError
        The source is gone.
    """
    rows, stamps = inlet.pull_chunk(0.0, _MAX_MARKERS, as_numpy=True)
    stamps = stamps + offset
    return [Marker(_text(row), stamp, now) for row, stamp in zip(rows.tolist(), stamps.tolist(), strict=True)]


def _text(values: list[Any]) -> str:
    """Text of one marker; several channels are joined by commas. Bytes that are no UTF-8 are replaced."""
    return ",".join(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)


class LslMarkers:
    """A marker stream alone, for programs that take no EEG in.

    Parameters
    ----------
    query : StreamQuery
        Which one. It is looked for until it is there, and again whenever it is lost.

    Raises
    ------
    ConfigError
        The query is none.
    """

    def __init__(self, query: StreamQuery) -> None:
        query.xpath()
        self._link = Link("markers", query, 360.0)
        self._offset = 0.0
        self._link.seek()

    @property
    def connected(self) -> bool:
        """Whether the stream is being read, as far as :meth:`pull` has seen."""
        return self._link.ready

    def pull(self) -> list[Marker]:
        """Take what has come, stamped on the LSL clock by the offset measured at the connection; never waits.

        Raises
        ------
        StreamAmbiguous
            Several streams match.
        """
        link = self._link
        while not link.news.empty():
            item = link.news.get()
            if isinstance(item, StreamdecError):
                raise item
            if isinstance(item, Contact):
                link.adopt(item)
            elif isinstance(item, Offset):
                link.measured, self._offset = item.measured, item.value
            elif isinstance(item, Refusal):
                link.drop()
        if not link.ready:
            return []
        try:
            return pull_markers(link.inlet, local_clock(), self._offset)
        except LostError:
            link.drop()
            link.seek()
            return []

    def close(self) -> None:
        """Let go of the stream. Idempotent."""
        self._link.close()
