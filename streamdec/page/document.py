"""A document of headings, texts, tables and pictures, and its two forms: one HTML file, or Markdown and a folder.

The HTML holds everything it shows and asks the network for nothing. No template engine: five kinds of blocks need none.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

Column: TypeAlias = Literal["text", "number"]


class Text(msgspec.Struct, frozen=True):
    """A paragraph."""

    text: str


class Note(msgspec.Struct, frozen=True):
    """A paragraph that must not be overlooked, such as that data are simulated; ``good`` where it is no warning."""

    text: str
    good: bool = False


class Table(msgspec.Struct, frozen=True):
    """Rows of cells; ``columns`` headings, of one line or more, and how they are set; ``bold`` rows by index."""

    columns: tuple[tuple[str, Column], ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    bold: tuple[int, ...] = ()


class Picture(msgspec.Struct, frozen=True):
    """``name`` of its file, with .svg or .png; ``alt`` says what is seen to those who do not see it."""

    name: str
    content: bytes
    alt: str
    caption: str


Block: TypeAlias = Text | Note | Table | Picture


class Section(msgspec.Struct, frozen=True):
    """A heading and what is below it; ``level`` 2 or 3."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2


class Document(msgspec.Struct, frozen=True):
    """``lead`` stands below the title; sections without a block are left out."""

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]

    def shown(self) -> list[Section]:
        """Sections that have something, and headings of level 2 that have such a one below."""
        kept = []
        for i, section in enumerate(self.sections):
            below = []
            for other in self.sections[i + 1 :]:
                if other.level <= section.level:
                    break
                below.append(other)
            if section.blocks or any(other.blocks for other in below):
                kept.append(section)
        return kept


_MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --ground: #ffffff; --tint: #f6f8fa;
  --accent: #0072b2; --warn: #8a4b00; --warn-ground: #fff4e0;
  --good: #0a5c43; --good-ground: #e3f5ee; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4af; --line: #3a424b;
  --ground: #14181c; --tint: #1c2127; --accent: #6cb8e6; --warn: #ffce85; --warn-ground: #33260f;
  --good: #7fdcb8; --good-ground: #10302a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 74rem; color: var(--ink); background: var(--ground);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .6rem; }
p { max-width: 46rem; }
nav { margin: 1.4rem 0; font-size: .92rem; } nav a { margin-right: 1.1rem; white-space: nowrap; }
nav.deep .level2 { display: block; font-weight: 600; margin-top: .7rem; }
a { color: var(--accent); }
.note { border-left: 4px solid var(--warn); background: var(--warn-ground); color: var(--warn);
  padding: .6rem .9rem; border-radius: 0 4px 4px 0; font-weight: 600; }
.note.good { border-color: var(--good); background: var(--good-ground); color: var(--good); }
figure { margin: 1.6rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .6rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--ink); font-weight: 600; vertical-align: bottom; white-space: pre; }
th.number, td.number { text-align: right; padding-left: .8rem; }
td.number { white-space: nowrap; }
td.text { min-width: 6.5rem; }
tr.bold td { font-weight: 650; }
p, footer { overflow-wrap: anywhere; }
footer { margin-top: 4rem; color: var(--soft); font-size: .85rem; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } nav { display: none; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .5rem .2rem 0; } td.text { min-width: 0; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } a { color: inherit; text-decoration: none; }
  .wide { overflow: visible; } }
"""


def to_html(document: Document, made_by: str) -> str:
    """Write one file that shows everything by itself."""
    shown = document.shown()
    anchors = {id(section): f"s{i}" for i, section in enumerate(shown)}
    links = "\n".join(
        f'<a href="#{anchors[id(section)]}" class="level{section.level}">{_text(section.title)}</a>'
        for section in shown
    )
    deep = ' class="deep"' if any(section.level > 2 for section in shown) else ""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
        f"<h1>{_text(document.title)}</h1>",
        *map(_block, document.lead),
        f'<nav aria-label="Contents"{deep}>{links}</nav>',
    ]
    for section in shown:
        parts.append(f'<h{section.level} id="{anchors[id(section)]}">{_text(section.title)}</h{section.level}>')
        parts += map(_block, section.blocks)
    parts.append(f"</main>\n<footer>{_text(made_by)}</footer>\n</body>\n</html>\n")
    return "\n".join(parts)


def _block(block: Block) -> str:
    match block:
        case Text():
            return f"<p>{_text(block.text)}</p>"
        case Note():
            return f'<p class="note{" good" * block.good}">{_text(block.text)}</p>'
        case Picture():
            media = _MEDIA[Path(block.name).suffix]
            source = f"data:{media};base64,{base64.b64encode(block.content).decode()}"
            image = f'<img src="{source}" alt="{html.escape(block.alt)}">'
            return f"<figure>{image}<figcaption>{_text(block.caption)}</figcaption></figure>"
        case Table():
            kinds = [kind for _, kind in block.columns]
            head = "".join(f'<th scope="col" class="{kind}">{_text(name)}</th>' for name, kind in block.columns)
            body = "".join(
                f"<tr{' class=bold' if i in block.bold else ''}>"
                + "".join(f'<td class="{kind}">{_text(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))
                + "</tr>"
                for i, row in enumerate(block.rows)
            )
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            caption = f"<figcaption>{_text(block.caption)}</figcaption>"
            return f'<figure><div class="wide">{table}</div>{caption}</figure>'


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def to_markdown(document: Document, made_by: str, folder: Path) -> str:
    """Write Markdown; its pictures are written to ``folder``, which stands beside the file."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {document.title}", *(_md(block, folder) for block in document.lead)]
    for section in document.shown():
        parts.append(f"{'#' * section.level} {section.title}")
        parts += [_md(block, folder) for block in section.blocks]
    return "\n\n".join([*parts, made_by]) + "\n"


def _md(block: Block, folder: Path) -> str:
    match block:
        case Text():
            return block.text
        case Note():
            return f"> **{block.text}**"
        case Picture():
            (folder / block.name).write_bytes(block.content)
            alt = block.alt.replace("[", "(").replace("]", ")").replace("\n", " ")
            return f"![{alt}]({folder.name}/{block.name})\n\n{block.caption}"
        case Table():
            names = [name.replace("\n", " ") for name, _ in block.columns]
            line = ["---:" if kind == "number" else "---" for _, kind in block.columns]
            rows = [
                [f"**{cell}**" if i in block.bold and cell else cell for cell in row]
                for i, row in enumerate(block.rows)
            ]
            lines = [_row(names), _row(line), *map(_row, rows)]
            return "\n".join(lines) + f"\n\n{block.caption}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
