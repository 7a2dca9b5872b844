"""The screen: preloaded pictures, flips, keys. The only file that imports pygame."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pygame
from pygame._sdl2 import video  # textures: on the graphics card before they are shown

from ..acquire.lsl.library import local_clock
from ..errors import ConfigError, DataError

Picture: TypeAlias = Any
"""What :meth:`Screen.load` hands out."""

CORNERS = ("bottom left", "bottom right", "top left", "top right")

_GREY, _BLACK, _WHITE = (127, 127, 127), (0, 0, 0), (255, 255, 255)
_RINGS = ((1.0, (230, 120, 0)), (0.75, _WHITE), (0.5, (230, 120, 0)), (0.25, _BLACK))
_MEASURED = 120  # flips that the refresh rate is taken from
_FASTEST = 500.0  # Hz; flips that come faster do not wait for a screen
_CENTRED_ON = 0x2FFF0000  # SDL's position of a window on the display whose number is added


class Screen(Protocol):
    """What a presentation needs of a screen.

    ``refresh`` Hz.
    """

    refresh: float

    def load(self, path: Path | None) -> Picture:
        """Get an image ready to be shown; the catch image where ``path`` is None."""

    def flip(self, picture: Picture | None = None, text: str = "") -> float:
        """Show a picture, a text or neither from the next frame on; return when that frame began, LSL clock."""

    def pressed(self) -> list[str]:
        """Names of the keys pressed since this was last asked."""

    def close(self) -> None:
        """Take the window away. Idempotent."""


def decoded(path: Path) -> pygame.Surface:
    """Read an image.

    Raises
    ------
    DataError
        It cannot be read.
    """
    try:
        return pygame.image.load(path)
    except (pygame.error, OSError) as error:
        raise DataError(f"image {path}", got=error, do="replace it, or take it out of the table") from error


class PygameScreen:
    """A window that fills a display.

    Parameters
    ----------
    size : float
        Height and width that an image fits into, as a share of the screen's height.
    display : int
        Number of the display, from 0.
    patch : str
        Corner of the photodiode patch, one of CORNERS, or "none". It is white while a picture is on, else black.
    pace : float
        Hz; 0: flips wait for the screen. A screen that nobody sees, such as a virtual one, has nothing to wait for:
        there flips keep to this rate by the clock.

    Raises
    ------
    ConfigError
        There is no such display or corner, or flips do not wait for the screen.
    """

    def __init__(self, size: float = 0.5, display: int = 0, patch: str = "bottom left", pace: float = 0.0) -> None:
        if patch not in (*CORNERS, "none"):
            raise ConfigError("patch", got=patch, allowed=", ".join((*CORNERS, "none")))
        try:
            pygame.display.init()
        except pygame.error as error:
            raise ConfigError(
                "no screen", got=error, do="run present on a desktop, or under a virtual screen"
            ) from error
        displays = pygame.display.get_desktop_sizes()
        if not 0 <= display < len(displays):
            raise ConfigError("screen", got=display, allowed=", ".join(map(str, range(len(displays)))))
        pygame.font.init()
        self._window: Any = pygame.Window(
            "streamdec present", displays[display], (_CENTRED_ON | display,) * 2, fullscreen_desktop=True
        )
        pygame.mouse.set_visible(False)
        self._renderer: Any = video.Renderer(self._window, vsync=not pace)
        self._width, self._height = self._window.size
        self._fit = round(size * self._height)
        self._font = pygame.font.Font(None, max(16, self._height // 25))
        self._text: tuple[str, Picture] = ("", None)
        edge = self._height // 10
        left = 0 if patch.endswith("left") else self._width - edge
        top = 0 if patch.startswith("top") else self._height - edge
        self._patch = None if patch == "none" else pygame.Rect(left, top, edge, edge)
        self._pace, self._start = pace, local_clock()
        self.refresh = pace or self._measured()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self._width, self._height

    def load(self, path: Path | None) -> Picture:
        """Decode and scale an image, and hand it to the graphics card; the catch image where ``path`` is None."""
        if path is None:
            surface = pygame.Surface((self._fit, self._fit))
            surface.fill(_GREY)
            for share, colour in _RINGS:
                pygame.draw.circle(surface, colour, (self._fit // 2,) * 2, share * self._fit / 2)
            return self._texture(surface)
        image = decoded(path)
        surface = pygame.Surface(image.get_size(), depth=32)  # what smoothscale takes, whatever the file has
        surface.fill(_GREY)
        surface.blit(image, (0, 0))
        scale = self._fit / max(image.get_size())
        width, height = (max(1, round(scale * edge)) for edge in image.get_size())
        return self._texture(pygame.transform.smoothscale(surface, (width, height)))

    def flip(self, picture: Picture | None = None, text: str = "") -> float:
        """Show a picture, a text or neither from the next frame on; return when that frame began, LSL clock."""
        renderer = self._renderer
        self._colour(_GREY)
        renderer.clear()
        if picture is not None:
            self._draw(picture)
        if text:
            if text != self._text[0]:
                self._text = text, self._texture(self._font.render(text, True, _BLACK))
            self._draw(self._text[1])
        else:
            self._fixation()
        if self._patch is not None:
            self._colour(_BLACK if picture is None else _WHITE)
            renderer.fill_rect(self._patch)
        if self._pace:
            # By the clock, on a grid, so that a late flip is late by whole frames as it would be on a screen.
            done = int((local_clock() - self._start) * self._pace) + 1
            time.sleep(max(0.0, self._start + done / self._pace - local_clock()))
            renderer.present()
            return local_clock()
        renderer.present()
        # Drivers queue a frame and return at once; reading a pixel back waits until it has gone out.
        renderer.to_surface(area=pygame.Rect(0, 0, 1, 1))
        return local_clock()

    def pressed(self) -> list[str]:
        """Names of the keys pressed since this was last asked; closing the window is "escape"."""
        events = pygame.event.get()
        keys = [pygame.key.name(event.key) for event in events if event.type == pygame.KEYDOWN]
        return keys + ["escape"] * any(event.type == pygame.QUIT for event in events)

    def close(self) -> None:
        """Take the window away. Idempotent."""
        pygame.quit()

    def _measured(self) -> float:
        """Refresh rate from flips, Hz."""
        for _ in range(10):
            self.flip()
        stamps = np.array([self.flip() for _ in range(_MEASURED)])
        pygame.event.clear()
        steps = np.diff(stamps)
        usual = float(np.median(steps))
        if usual * _FASTEST < 1:
            raise ConfigError(
                "screen",
                got=f"a flip every {1e3 * usual:.2f} ms: flips do not wait for the screen",
                allowed="vertical synchronisation",
                do="switch it on in the graphics driver; on a virtual screen give --pace HZ",
            )
        return float(np.rint(steps / usual).sum() / (stamps[-1] - stamps[0]))

    def _texture(self, surface: pygame.Surface) -> Picture:
        return video.Texture.from_surface(self._renderer, surface)

    def _draw(self, texture: Picture) -> None:
        where = pygame.Rect(0, 0, texture.width, texture.height)
        where.center = self._width // 2, self._height // 2
        texture.draw(dstrect=where)

    def _fixation(self) -> None:
        """Draw a bull's-eye of two squares in the middle."""
        for edge, colour in ((self._height // 90, _BLACK), (self._height // 270, _WHITE)):
            mark = pygame.Rect(0, 0, edge, edge)
            mark.center = self._width // 2, self._height // 2
            self._colour(colour)
            self._renderer.fill_rect(mark)

    def _colour(self, rgb: tuple[int, int, int]) -> None:
        self._renderer.draw_color = (*rgb, 255)
