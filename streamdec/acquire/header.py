"""A stream's XML header <-> StreamInfo, as LSL sends it and XDF stores it."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from ..errors import StreamError
from ..types import StreamInfo

FORMATS = ("float32", "double64", "string", "int32", "int16", "int8", "int64")

_MOST_CHANNELS = 1 << 16  # a damaged header must not reserve all memory

_COUNT = re.compile(r"(<channel_count>)[^<]*(</channel_count>)")
_FORMAT = re.compile(r"(<channel_format>)[^<]*(</channel_format>)")


def read_header(xml: str) -> StreamInfo:
    """Read a header.

    Labels stand under ``label`` or ``name``. A header may describe fewer channels than there are, or more: missing
    entries are "", surplus ones are left out.

    Parameters
    ----------
    xml : str
        The ``info`` element with all its children.

    Returns
    -------
    StreamInfo
        ``header`` is ``xml``, verbatim.

    Raises
    ------
    StreamError
        It is no XML, or names no channel count, or a channel format or a rate that does not exist.
    """
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (expat refuses entity bombs, and loads nothing from outside)
        n_chans = int(root.findtext("channel_count", ""))
        sfreq = float(root.findtext("nominal_srate", "0"))
    except (ElementTree.ParseError, ValueError) as error:
        raise StreamError("stream header", got=error, allowed="XML with channel_count and nominal_srate") from error
    dtype = _text(root, "channel_format")
    if dtype not in FORMATS:
        raise StreamError("channel format of a stream header", got=dtype or "none", allowed=", ".join(FORMATS))
    if not (0 <= n_chans <= _MOST_CHANNELS and 0 <= sfreq < float("inf")):
        allowed = f"0 to {_MOST_CHANNELS} channels, 0 or more Hz"
        raise StreamError("stream header", got=f"{n_chans} channels at {sfreq} Hz", allowed=allowed)
    channels = root.findall("desc/channels/channel")[:n_chans]
    blank = ("",) * (n_chans - len(channels))
    return StreamInfo(
        name=_text(root, "name"),
        type=_text(root, "type"),
        n_chans=n_chans,
        sfreq=sfreq,
        dtype=dtype,
        source_id=_text(root, "source_id"),
        uid=_text(root, "uid"),
        hostname=_text(root, "hostname"),
        ch_names=tuple(_text(channel, "label") or _text(channel, "name") for channel in channels) + blank,
        ch_types=tuple(_text(channel, "type") for channel in channels) + blank,
        units=tuple(_text(channel, "unit") for channel in channels) + blank,
        header=xml,
    )


def write_header(info: StreamInfo, dtype: str | None = None, n_chans: int | None = None) -> str:
    """Return the header of a stream: its own, verbatim, or one made from what ``info`` says.

    Parameters
    ----------
    info : StreamInfo
        The stream.
    dtype, n_chans : optional
        The channel format and count to state where they are not the stream's: a recorder stores what it was handed.
    """
    dtype = info.dtype if dtype is None else dtype
    n_chans = info.n_chans if n_chans is None else n_chans
    if info.header:
        stated = _FORMAT.sub(rf"\g<1>{dtype}\g<2>", info.header, count=1)
        return _COUNT.sub(rf"\g<1>{n_chans}\g<2>", stated, count=1)
    channels = "".join(
        f"<channel><label>{_escape(name)}</label><unit>{_escape(unit)}</unit><type>{_escape(kind)}</type></channel>"
        for name, unit, kind in zip(
            _padded(info.ch_names, info), _padded(info.units, info), _padded(info.ch_types, info), strict=True
        )
    )
    desc = f"<channels>{channels}</channels>" if any((*info.ch_names, *info.units, *info.ch_types)) else ""
    return (
        f'<?xml version="1.0"?><info><name>{_escape(info.name)}</name><type>{_escape(info.type)}</type>'
        f"<channel_count>{n_chans}</channel_count><nominal_srate>{info.sfreq!r}</nominal_srate>"
        f"<channel_format>{dtype}</channel_format><source_id>{_escape(info.source_id)}</source_id>"
        f"<uid>{_escape(info.uid)}</uid><hostname>{_escape(info.hostname)}</hostname><desc>{desc}</desc></info>"
    )


# XML 1.0 has no way to write these characters.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escape(text: str) -> str:
    return escape(_FORBIDDEN.sub("�", text))


def _text(element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    return "" if text == "None" else text


def _padded(entries: tuple[str, ...], info: StreamInfo) -> tuple[str, ...]:
    return entries[: info.n_chans] + ("",) * (info.n_chans - len(entries))
