"""Every error a user can meet, one line each: what, what was got, what is allowed, what to do next.

::

    StreamdecError
    ├── ConfigError        a config, an option or a call is wrong            (exit code 2)
    ├── BundleError        a bundle is damaged, too new, tampered, offline-only
    ├── EngineError        an encoder cannot be loaded or run
    ├── StreamError        a stream cannot be used
    │   ├── StreamNotFound     none matches
    │   ├── StreamAmbiguous    several match
    │   └── StreamMismatch     it does not fit the bundle (channels, unit, rate, clock)
    ├── RecordingError     a recording cannot be read or written
    ├── CalibrationError   a block cannot calibrate a bundle
    ├── FeedError          the feed cannot be opened, read or understood
    └── DataError          a data set or a table on disk is not what it should be
"""

from __future__ import annotations


class StreamdecError(Exception):
    """Base of all errors raised for the user.

    Parameters
    ----------
    what : str
        What is wrong, with the name of the thing (file, key, stream).
    got, allowed : object, optional
        The value that was found and what would have been right.
    do : str, optional
        The next step for the user.
    """

    def __init__(self, what: str, *, got: object = None, allowed: object = None, do: str | None = None) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if do is not None:
            parts.append(do)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))
        self.what = what


class ConfigError(StreamdecError):
    """A config file, an option or a call is wrong."""


class BundleError(StreamdecError):
    """A bundle is damaged, too new, tampered with, or not meant for live use."""


class EngineError(StreamdecError):
    """An encoder cannot be loaded or run."""


class StreamError(StreamdecError):
    """A stream cannot be used."""


class StreamNotFound(StreamError):
    """No stream matches."""


class StreamAmbiguous(StreamError):
    """Several streams match."""


class StreamMismatch(StreamError):
    """A stream does not fit what it is needed for."""


class RecordingError(StreamdecError):
    """A recording cannot be read or written."""


class CalibrationError(StreamdecError):
    """A recorded block cannot calibrate a bundle."""


class FeedError(StreamdecError):
    """The feed cannot be opened, read or understood."""


class DataError(StreamdecError):
    """A data set or a table on disk is not what it should be."""
