"""The images of THINGS-EEG2 and of whoever packs them likewise: which there are, in what order, what they show.

::

    .../image_set/image_metadata.npy                                  not everywhere
    .../image_set/training_images/00001_aardvark/aardvark_01b.jpg     or train_images/; test_images/

Row i of the data is image i: in the order of the metadata, which is that of the sorted names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from streamdec.acquire.safe_npy import read_npy
from streamdec.errors import DataError

from .store import Item, PartName

Items = dict[PartName, tuple[Item, ...]]

_FOLDERS: dict[PartName, tuple[str, ...]] = {"train": ("training_images", "train_images"), "test": ("test_images",)}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_DEPTH = 4  # folders below a root that are looked into


def below(root: Path, pattern: str) -> Iterator[Path]:
    """Look for a pattern in a root and the folders below it, the nearest first."""
    for depth in range(_DEPTH):
        yield from sorted(root.glob("*/" * depth + pattern))


def folders(root: Path, *files: str) -> dict[str, list[Path]]:
    """Folders ``sub-XX`` below ``root`` that hold any of the files, by their name."""
    found: dict[str, list[Path]] = {}
    for path in (path for file in files for path in below(root, f"sub-*/{file}")):
        if path.parent not in found.setdefault(path.parent.name, []):
            found[path.parent.name].append(path.parent)
    return dict(sorted(found.items()))


def find(root: Path) -> list[Path]:
    """Folders below ``root`` that hold training and test images, or their metadata, the nearest first."""
    held = [path.parent for names in _FOLDERS.values() for name in names for path in below(root, name)]
    both = [path for path in dict.fromkeys(held) if all(_folder(path, part).is_dir() for part in _FOLDERS)]
    metadata = [path.parent for path in below(root, "image_metadata.npy")]
    return list(dict.fromkeys([*both, *metadata]))


def only(root: Path) -> Path:
    """Find the folder of images; the nearest where there are several.

    Raises
    ------
    DataError
        There is none.
    """
    found = find(root)
    if not found:
        raise DataError(
            f"no images below {root}",
            allowed="a folder with training_images/ (or train_images/) and test_images/",
            do="get image_set from OSF (y63gw), or name another root",
        )
    return found[0]


def fitting(root: Path, part: PartName, n: int, path: Path) -> tuple[Path, tuple[Item, ...]]:
    """Find the folder of images whose ``part`` has ``n`` of them: where it is, and the items.

    Raises
    ------
    DataError
        There is none for the ``n`` items of ``path``.
    """
    only(root)
    found = {images: items(images)[part] for images in find(root)}
    for images, members in found.items():
        if len(members) == n:
            return images, members
    got = ", ".join(f"{len(members)} in {images}" for images, members in found.items())
    raise DataError(f"{part} images of {path}, {n} items", got=got, do="name the folder of images it was made with")


def holding(root: Path, image: str) -> Path:
    """Find the folder that an image's name starts from, such as that of ``aardvark/aardvark_01b.jpg``.

    Raises
    ------
    DataError
        There is none.
    """
    found = next(below(root, image), None)
    if found is None:
        raise DataError(f"no image {image} below {root}", do="get the images, or name the folder they are in")
    return found.parents[image.count("/")]


def items(images: Path) -> Items:
    """Images in the order of the rows, which is that of the event codes. Ids are ``folder/file``.

    Raises
    ------
    DataError
        The metadata are not what they should be, or a concept is in both parts.
    """
    metadata = images / "image_metadata.npy"
    found: Items = {}
    if metadata.is_file():
        content = dictionary(metadata, [f"{part}_img_{key}" for part in _FOLDERS for key in ("concepts", "files")])
        for part in _FOLDERS:
            folder = _folder(images, part).name
            concepts, names = content[f"{part}_img_concepts"], content[f"{part}_img_files"]
            if len(concepts) != len(names):
                raise DataError(f"{metadata}, {part} part", got=f"{len(concepts)} concepts, {len(names)} files")
            found[part] = tuple(
                item(part, f"{folder}/{concept}/{name}") for concept, name in zip(concepts, names, strict=True)
            )
    else:
        for part in _FOLDERS:
            files = sorted(p for p in _folder(images, part).glob("*/*") if p.suffix.lower() in _SUFFIXES)
            found[part] = tuple(item(part, path.relative_to(images).as_posix()) for path in files)
    apart(found)
    return found


def item(part: PartName, image: str) -> Item:
    """Make the item of ``train_images/00001_aardvark/aardvark_01b.jpg``; folders count their concepts per part."""
    concept, file = image.split("/")[-2:]
    label = re.sub(r"^\d+_", "", concept).replace("_", " ")
    return Item(id=f"{concept}/{file}", label=label, concept=f"{part}/{concept}", image=image)


def apart(found: Items) -> None:
    """Check that no concept is in both parts, since nothing would be zero-shot then.

    Raises
    ------
    DataError
        Some are.
    """
    labels = [{item.label for item in found.get(part, ())} for part in _FOLDERS]
    shared = sorted(labels[0] & labels[1])
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise DataError(
            "concepts of training and test part",
            got=f"{', '.join(shared[:3])}{more} in both",
            allowed="each in one",
            do="leave them out of the training part",
        )


def dictionary(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a pickled dictionary.

    Raises
    ------
    DataError
        It is none, or lacks a key.
    """
    return checked(read_npy(path), path, keys)


def checked(content: object, path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return ``content`` if it is a dictionary with these keys.

    Raises
    ------
    DataError
        It is none, or lacks one.
    """
    if not isinstance(content, dict) or any(key not in content for key in keys):
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}", got=got, allowed=f"a dictionary with {', '.join(keys)}")
    return content


def _folder(images: Path, part: PartName) -> Path:
    names = _FOLDERS[part]
    return images / next((name for name in names if (images / name).is_dir()), names[0])
