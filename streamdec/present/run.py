"""Puts a presentation together and runs it: table, screen, markers, log, account."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec

from .. import __version__
from ..acquire.lsl.outlet import LslOutlet
from ..errors import DataError
from ..types import StreamInfo
from . import log as logs
from .plan import PresentSettings, frames, sequences
from .screen import PygameScreen, decoded
from .show import Show
from .table import read_table, table_of, write_table

TABLE, LOG, ABOUT = "table.tsv", "log.tsv", "present.json"
"""What lies in the folder afterwards."""

_MANY = 1000  # images that take seconds to read
_LINGER = 0.3  # s; liblsl closes without sending what is still on its way


def present(
    images: Path,
    out: Path,
    settings: PresentSettings,
    *,
    say: Callable[[str], None],
    wait: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
    go: Callable[[], bool] = lambda: False,
) -> logs.Account:
    """Show images; write what was shown, what the markers mean, and how it was.

    Parameters
    ----------
    images : Path
        A folder, or a table.
    out : Path
        New folder for the log, the table that ``prepare recording`` takes, and the account.
    settings : PresentSettings
    say : callable
        Takes a line for the experimenter.
    wait : float, optional
        Seconds to wait until somebody reads the markers; None: nobody is waited for.
    stopped, go : callable
        Whether to end, as Escape does, and whether to go on after a break, as with the space bar.

    Raises
    ------
    ConfigError
        The screen cannot be had, or keeps no such timing.
    DataError
        There is no image, one cannot be read, or the folder is there already.
    StreamNotFound
        Nobody reads the markers.
    """
    folder = images if images.is_dir() else images.parent
    rows = [row for row in (table_of(images) if images.is_dir() else read_table(images)) if row.image]
    if not rows:
        raise DataError(f"table {images}", got="no image", allowed="a column image")
    if len(rows) > _MANY:
        say(f"reading {len(rows)} images once: none is to fail in the middle of a sequence")
    for row in rows:
        decoded(folder / row.image)
    markers = StreamInfo(
        name=settings.name, type="Markers", n_chans=1, sfreq=0.0, dtype="string", source_id=settings.name
    )
    with ExitStack() as stack:
        screen = PygameScreen(settings.size, settings.screen, settings.patch, settings.pace)
        stack.callback(screen.close)
        timing = frames(settings, screen.refresh)
        plan = sequences(len(rows), settings)
        try:
            out.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"folder {out}", got=error.strerror, do="name another with --out") from error
        write_table(out / TABLE, rows, folder)
        log = logs.Log(out / LOG)
        stack.callback(log.close)
        outlet = stack.enter_context(closing(LslOutlet(markers)))
        by = "by the clock" if settings.pace else "as measured"
        where = f"screen of {screen.size[0]} x {screen.size[1]} at {screen.refresh:.2f} Hz, {by}"
        say(f"marker stream {settings.name!r}; {where}")
        planned = len(rows) * settings.repetitions
        length = sum(len(codes) * timing.soa + timing.before + timing.after for codes in plan) / screen.refresh
        say(f"{planned} images in {len(plan)} sequences, {length / 60:.1f} min without the breaks; log in {out}")
        show = Show(
            screen,
            outlet,
            log,
            rows,
            folder,
            timing,
            say,
            plain=settings.plain,
            rest=settings.rest,
            catch=Path(settings.catch) if settings.catch else None,
            stopped=stopped,
            go=go,
        )
        if wait is not None:
            show.wait(wait)
        try:
            show.run(plan, settings.block)
            time.sleep(_LINGER)
        finally:
            account = logs.account(log.entries, planned)
            about = {
                "streamdec": __version__,
                "refresh": screen.refresh,
                "screen": screen.size,
                "frames": timing,
                "settings": settings,
                "account": account,
            }
            (out / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about)))
    return account
