"""The fenced blocks of README and site, each with the tag that says how it is tested.

A tag is a comment on the line above the block, which readers do not see::

    <!-- run day -->                            run, in order, in the folder of scenario "day"; exit code 0
    <!-- run day; add --seconds 5 -->           the same, with arguments that make it quick behind the last command
    <!-- start day; until feed at -->           runs beside what follows, from when it has said "feed at"
    <!-- stop day; only streamdec serve -->     no block: Ctrl-C for what was started (without only: all); exit code 0
    <!-- file day lab.toml -->                  the block is written into that folder
    <!-- config live -->                        a config (live, data, method, sweep, generator), read strictly
    <!-- parse: why it is not run -->           commands, arguments and named files must be such as exist

Blocks of kind ``text`` (what programs print) need none, unless they are files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs"
_FENCE = re.compile(
    r"(?:^(?P<indent> *)<!-- (?P<tag>[^\n]*?) -->\n+)?^ *```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^ *```$"
    r"|^ *<!-- (?P<alone>stop [^\n]*?) -->$",
    re.DOTALL | re.MULTILINE,
)


class Block(msgspec.Struct, frozen=True):
    """One block. ``kind`` as the fence has it; ``do`` the tag's first word, "" without a tag; ``rest`` what follows."""

    page: Path
    line: int
    kind: str
    body: str
    do: str
    rest: str

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def scenario(self) -> str:
        """Name of its scenario, "" without one."""
        return re.split(r"[ ;]", self.rest)[0] if self.do in ("run", "start", "stop", "file") else ""

    def option(self, name: str) -> str:
        """What the tag says behind ``name``, "" where it does not."""
        found = re.search(rf"; {name} ([^;]+)", self.rest)
        return found[1].strip() if found else ""


def pages() -> list[Path]:
    """README, then the site's pages in the order of its menu, without those that are made."""

    def leaves(node: object) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict | list):
            for child in node.values() if isinstance(node, dict) else node:
                yield from leaves(child)

    config = yaml.load((SITE / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 - texts only
    found = [SITE / config["docs_dir"] / name for name in leaves(config["nav"])]
    written = [page for page in found if page.is_file()]
    left = sorted(set((SITE / config["docs_dir"]).rglob("*.md")) - set(written))
    assert not left, f"not in the menu of docs/mkdocs.yml: {left}"
    return [ROOT / "README.md", *written]


def blocks(page: Path) -> Iterator[Block]:
    """Blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["alone"]:
            yield Block(page, line, "", "", *found["alone"].split(" ", 1))
            continue
        do, _, rest = (found["tag"] or "").partition(" ")
        indent = len(found["indent"] or "")
        body = "".join(each[indent:] if each.strip() else each for each in found["body"].splitlines(keepends=True))
        yield Block(page, line, found["kind"], body, do.rstrip(":"), rest.strip())


def commands(block: Block) -> list[str]:
    """The commands of a block, one line each, without comments."""
    lines = re.sub(r"\\\n\s*", " ", block.body).splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s)#.*", "", line).strip())]
