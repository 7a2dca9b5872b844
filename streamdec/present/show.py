"""The presentation: sequences of images on a screen, a marker at each flip, keys, breaks."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import StreamNotFound
from ..simulate.schedule import CATCH, TARGET, Int64
from .log import Entry, Kind, Log
from .plan import Frames
from .screen import Picture, Screen
from .table import Row


class Outlet(Protocol):
    """Where markers go."""

    def push(self, data: list[str], stamps: float) -> None:
        """Send one; ``stamps`` LSL clock."""

    def have_consumers(self) -> bool:
        """Whether anybody listens."""


class Show:
    """One run of images.

    Markers are JSON objects with the stimulus key as ``id`` and a number ``seq`` that shows what was lost; what is no
    stimulus has an ``event`` and no ``id``. As plain texts they are the stimulus keys alone.

    Parameters
    ----------
    screen : Screen
    outlet : Outlet
    log : Log
    rows : sequence of Row
        What the codes mean: 1 is the first.
    folder : Path
        What the rows' images are relative to.
    frames : Frames
    say : callable
        Takes a line for the experimenter; called between sequences alone.
    plain : bool
        Markers as plain texts.
    rest : float, optional
        Seconds after which the start and a break end by themselves; None: with the space bar.
    catch : Path, optional
        The catch image; drawn when omitted.
    stopped : callable
        Whether to end, as Escape does; asked once a frame.
    go : callable
        Whether to go on after a break, as with the space bar; asked once a frame in a break.
    """

    def __init__(
        self,
        screen: Screen,
        outlet: Outlet,
        log: Log,
        rows: Sequence[Row],
        folder: Path,
        frames: Frames,
        say: Callable[[str], None],
        *,
        plain: bool = False,
        rest: float | None = None,
        catch: Path | None = None,
        stopped: Callable[[], bool] = lambda: False,
        go: Callable[[], bool] = lambda: False,
    ) -> None:
        self._screen, self._outlet, self._log, self._say = screen, outlet, log, say
        self._rows, self._folder, self._frames = rows, folder, frames
        self._plain, self._rest, self._catch = plain, rest, catch
        self._stopped, self._go, self._seq = stopped, go, 0

    def wait(self, seconds: float) -> None:
        """Wait until somebody reads the markers.

        Raises
        ------
        StreamNotFound
            Nobody within ``seconds``.
        """
        now = self._screen.flip(text="waiting for a recorder")
        deadline = now + seconds
        while not self._outlet.have_consumers():
            if now > deadline or "escape" in self._screen.pressed() or self._stopped():
                raise StreamNotFound("nobody reads the markers", do="start the recorder, or leave out --wait")
            now = self._screen.flip(text="waiting for a recorder")

    def run(self, sequences: Sequence[Int64], block: int) -> bool:
        """Show sequences of codes with a break after every ``block`` of them; return whether all were shown."""
        try:
            self._pause("press space to begin")
            pictures = self._load(sequences[0])
            # A collection of garbage may take longer than a frame: it has the pauses.
            gc.disable()
            for done, codes in enumerate(sequences):
                if done and done % block == 0:
                    self._go()  # what was said during the block was not about this break
                    self._pause(f"{done} of {len(sequences)} sequences done: press space to go on")
                self._blank(self._frames.before, self._screen.flip(), done)
                self._sequence(done + 1, codes, pictures)
                began = self._screen.flip()
                self._log.write()
                gc.collect()
                pictures = self._load(sequences[done + 1]) if done + 1 < len(sequences) else []
                late = self._blank(self._frames.after, began, done + 1)
                if late > 0.1:
                    self._say(f"sequence {done + 2} begins {late:.1f} s late: its images come slowly from the disk")
            self._mark(self._screen.flip(), event="end")
        except _Escape:
            self._mark(self._screen.flip(), event="stopped")
            return False
        except BaseException:
            self._mark(self._screen.flip(), event="stopped")
            raise
        finally:
            gc.enable()
            self._log.write()
        return True

    def _sequence(self, number: int, codes: Int64, pictures: list[Picture]) -> None:
        """Show one sequence, frame by frame."""
        screen, on, soa = self._screen, self._frames.on, self._frames.soa
        rows = [None if code == TARGET else self._rows[code - 1] for code in codes.tolist()]
        onsets, offsets, missed = [], [], [0] * len(rows)
        last = screen.flip()
        try:
            for frame in range(len(rows) * soa):
                place, phase = divmod(frame, soa)
                now = screen.flip(pictures[place] if phase < on else None)
                missed[place] += max(0, round((now - last) * screen.refresh) - 1)
                last = now
                if phase == 0:
                    row = rows[place]
                    self._mark(now, id=CATCH if row is None else row.marker, sequence=number, place=place + 1)
                    onsets.append(now)
                elif phase == on:
                    offsets.append(now)
                self._keys(now, number)
        finally:
            if len(offsets) < len(onsets):
                offsets.append(screen.flip())
            for place, (onset, offset) in enumerate(zip(onsets, offsets, strict=True)):
                row = rows[place]
                marker, image = (CATCH, "") if row is None else (row.marker, row.image)
                kind: Kind = "catch" if row is None else "image"
                self._log.add(Entry(onset, offset - onset, kind, marker, image, number, place + 1, missed[place]))
        if any(missed):
            self._say(f"sequence {number}: {sum(missed)} frames missed, at {sum(n > 0 for n in missed)} images")

    def _pause(self, text: str) -> None:
        """Wait for the space bar, for who says go, or for as long as a rest is."""
        began = now = self._screen.flip(text=text)
        self._mark(began, event="pause")
        while "space" not in self._keys(now) and not self._go() and (self._rest is None or now - began < self._rest):
            now = self._screen.flip(text=text)
        end = self._screen.flip()
        self._mark(end, event="go")
        self._log.add(Entry(began, end - began, "break", ""))

    def _blank(self, n_frames: int, since: float, sequence: int) -> float:
        """Show nothing until ``n_frames`` have passed ``since`` a flip; return how many seconds too long it took."""
        last = since + (n_frames - 1.5) / self._screen.refresh  # the next flip is one frame later
        now = self._screen.flip()
        late = now - last
        while now < last:
            self._keys(now, sequence)
            now = self._screen.flip()
        return late

    def _keys(self, now: float, sequence: int = 0) -> list[str]:
        """Log the keys pressed since they were last asked for, and return their names; Escape ends the show."""
        pressed = self._screen.pressed()
        if "escape" in pressed or self._stopped():
            raise _Escape
        for key in pressed:
            self._mark(now, event="key", key=key)
            self._log.add(Entry(now, 0.0, "key", key, sequence=sequence))
        return pressed

    def _load(self, codes: Int64) -> list[Picture]:
        files = [
            self._catch if code == TARGET else self._folder / self._rows[code - 1].image for code in codes.tolist()
        ]
        return [self._screen.load(file) for file in files]

    def _mark(self, stamp: float, **fields: Any) -> None:
        """Send a marker."""
        if self._plain and "id" not in fields:
            return
        self._seq += 1
        text = fields["id"] if self._plain else json.dumps(fields | {"seq": self._seq})
        self._outlet.push([text], stamp)


class _Escape(Exception):
    """The experimenter ends the show."""
