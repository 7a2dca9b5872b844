"""Target encoders by name: ``KIND``, ``KIND:WHAT``, options behind, ``@option=value``; joined by ``+`` or ``|``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from streamdec.errors import ConfigError
from streamdec.simulate import features

from ..data.store import Item
from .analytic import Attributes, Function, Size, Spelling, Thumbnails, ThumbnailSize, pixels
from .blur import KERNELS, Blur, foveal
from .classes import OneHot
from .huggingface import Text, Vision, VisionOptions
from .images import Images, UInt8
from .openclip import ImageOptions, OpenClip, OpenClipText, TextTowerOptions
from .saliency import Saliency, weighted
from .sketch import Sketch, sketch
from .store import Features, TargetEncoder
from .text import Sentences, TextOptions
from .tokens import TokenOptions, Tokens
from .vae import Vae, VaeOptions

T = TypeVar("T", bound=msgspec.Struct)


class NoOptions(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class Kind(NamedTuple):
    """``make(what, options, items, device)`` an encoder; ``what`` it needs behind the colon; its ``options``.

    ``sees`` whether it looks at the images, so that they can be changed before.
    """

    make: Callable[[str, Any, Sequence[Item], str], TargetEncoder]
    what: str = ""
    options: type[msgspec.Struct] = NoOptions
    sees: bool = True


KINDS: dict[str, Kind] = {
    "colour": Kind(lambda what, options, items, device: Function(features.colour)),
    "gabor": Kind(lambda what, options, items, device: Function(features.gabor)),
    "pixels": Kind(lambda what, options, items, device: pixels(options), options=Size),
    "thumbnails": Kind(lambda what, options, items, device: Thumbnails(options), options=ThumbnailSize),
    "attributes": Kind(lambda what, options, items, device: Attributes(), sees=False),
    "classes": Kind(lambda what, options, items, device: OneHot(items), sees=False),
    "spelling": Kind(
        lambda what, options, items, device: Spelling(Sentences(options)), options=TextOptions, sees=False
    ),
    "open_clip": Kind(
        lambda what, options, items, device: OpenClip(what, options, device), "MODEL/WEIGHTS", ImageOptions
    ),
    "open_clip_text": Kind(
        lambda what, options, items, device: OpenClipText(what, options, device),
        "MODEL/WEIGHTS",
        TextTowerOptions,
        sees=False,
    ),
    "tokens": Kind(lambda what, options, items, device: Tokens(what, options, device), "MODEL/WEIGHTS", TokenOptions),
    "transformers": Kind(
        lambda what, options, items, device: Vision(what, options, device), "NAME_OR_FOLDER", VisionOptions
    ),
    "transformers_text": Kind(
        lambda what, options, items, device: Text(what, options, device), "NAME_OR_FOLDER", TextOptions, sees=False
    ),
    "fused": Kind(lambda what, options, items, device: _fused(what, items, device), "PRIOR"),
    "vae": Kind(lambda what, options, items, device: Vae(what, options, device), "NAME_OR_FOLDER", VaeOptions),
}

NAMES = tuple(f"{name}:{kind.what}" if kind.what else name for name, kind in KINDS.items())
_CHANGES = ("blur", "vse", "sketch")  # of what an encoder of images sees
_OPTIONS = re.compile(r"(?:@\w+(?:=[^@]*)?)*$")  # only at the end: a path may hold an @


class Joined:
    """Features of several encoders, side by side.

    Parameters
    ----------
    parts : sequence of TargetEncoder
    """

    def __init__(self, parts: Sequence[TargetEncoder]) -> None:
        self._parts = parts
        self.name = "+".join(part.name for part in parts)
        self.provenance: dict[str, Any] = {part.name: part.provenance for part in parts}

    def __call__(self, items: Sequence[Item], images: Images) -> Features:
        """(n, sum of the widths)."""
        return np.concatenate([part(items, images).reshape(len(items), -1) for part in self._parts], axis=1)


class Averaged:
    """Mean of the features of several encoders of one space, as their encoders give them.

    Parameters
    ----------
    parts : sequence of TargetEncoder
    """

    def __init__(self, parts: Sequence[TargetEncoder]) -> None:
        self._parts = parts
        self.name = "|".join(part.name for part in parts)
        self.provenance: dict[str, Any] = {"mean": {part.name: part.provenance for part in parts}}

    def __call__(self, items: Sequence[Item], images: Images) -> Features:
        """(n, ...), the shape that all of them give.

        Raises
        ------
        ConfigError
            They give different shapes.
        """
        features = [part(items, images) for part in self._parts]
        if len({of.shape for of in features}) > 1:
            got = ", ".join(f"{part.name}: {of.shape[1:]}" for part, of in zip(self._parts, features, strict=True))
            raise ConfigError("features to average", got=got, allowed="those of one space")
        return np.asarray(np.mean(features, axis=0, dtype=np.float32))


class Through:
    """An encoder that sees changed images.

    Parameters
    ----------
    encoder : TargetEncoder
    change : callable
        Image (height, width, 3) uint8 -> the same kind.
    said : dict
        What the change depends on.
    """

    def __init__(self, encoder: TargetEncoder, change: Callable[[UInt8], UInt8], said: dict[str, Any]) -> None:
        self._encoder, self._change = encoder, change
        self.name = encoder.name
        self.provenance = {**encoder.provenance, "images": [*encoder.provenance.get("images", ()), said]}

    def __call__(self, items: Sequence[Item], images: Images) -> Features:
        """As the encoder gives them."""
        return self._encoder(items, images.changed(self._change))


def encoder(name: str, items: Sequence[Item], device: str = "cpu") -> TargetEncoder:
    """Make the target encoder ``name`` for ``items``.

    ``gabor``, ``open_clip:ViT-B-32/laion2b_s34b_b79k``, ``open_clip:RN50/openai@blur=medium``,
    ``transformers:facebook/dinov2-base@layer=8@pool=mean``. Encoders of images take three options more, which change
    what they see: ``@blur`` (UBP: a level of :data:`.blur.KERNELS`, or pixels), ``@vse`` (NeuroAlign's saliency;
    ``@vse=gate:1,exponent:1`` changes its constants) and ``@sketch`` (Thought2Text's; likewise).
    ``A+B`` puts features side by side, ``A|B`` averages those of one space (and binds tighter).

    Raises
    ------
    ConfigError
        There is none of this name, or it has no such option.
    """
    if "+" in name:
        return Joined([encoder(part, items, device) for part in name.split("+")])
    if "|" in name:
        return Averaged([encoder(part, items, device) for part in name.split("|")])
    ending = _OPTIONS.search(name)
    assert ending is not None, "the expression matches nothing too"
    kind_name, _, what = name[: ending.start()].partition(":")
    kind = KINDS.get(kind_name)
    if kind is None or bool(kind.what) != bool(what):
        raise ConfigError("target encoder", got=name, allowed=", ".join(NAMES))
    given = dict(one.partition("=")[::2] for one in ending[0].split("@")[1:])
    extra = _CHANGES if kind.sees else ()
    changes = {key: given.pop(key) for key in extra if key in given}
    made = kind.make(what, _settings(name, kind.options, given, extra), items, device)
    for key, value in changes.items():
        made = _through(made, name, key, value)
    made.name = name
    return made


def _fused(path: str, items: Sequence[Item], device: str) -> TargetEncoder:
    from .fused import Fused  # a prior's encoders are made here, and a prior needs torch

    return Fused(path, lambda name: encoder(name, items, device))


def _through(made: TargetEncoder, name: str, key: str, value: str) -> TargetEncoder:
    if key == "blur":
        kernel = {"kernel": str(KERNELS.get(value, value))} if value else {}
        blur = _settings(f"blur of {name}", Blur, kernel)
        return Through(made, lambda image: foveal(image, blur), {"blur": msgspec.to_builtins(blur)})
    constants = dict(one.partition(":")[::2] for one in value.split(",")) if value else {}
    if key == "sketch":
        drawn = _settings(f"sketch of {name}", Sketch, constants)
        return Through(made, lambda image: sketch(image, drawn), {"sketch": msgspec.to_builtins(drawn)})
    chosen = _settings(f"vse of {name}", Saliency, constants)
    return Through(made, lambda image: weighted(image, chosen), {"vse": msgspec.to_builtins(chosen)})


def _settings(where: str, kind: type[T], given: dict[str, str], extra: Sequence[str] = ()) -> T:
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}, option {key!r}", allowed=", ".join([*known, *extra]) or "none")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"options of {where}", got=str(error)) from error
