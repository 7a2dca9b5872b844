"""Pages that are made from what the repository has when the site is built: commands, configs, feed, measured figures.

mkdocs calls :func:`on_files`. Pages of the repository that are generated go in as they are, under the
same relative names, so that their links hold.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import offline.cli  # noqa: E402 - found by the line above
import streamdec.cli  # noqa: E402

INCLUDED = {
    "configs": "reference/configs",
    "streamdec/feed/FIELDS.md": "reference/feed/FIELDS.md",
    "streamdec/feed/schema.json": "reference/feed/schema.json",
    "CHANGELOG.md": "changelog.md",
}
"""File or folder of the repository -> where it stands in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, target in INCLUDED.items():
        path = ROOT / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                place = Path(target) / file.relative_to(path)
                files.append(File.generated(config, place.as_posix(), abs_src_path=str(file)))
    for name, parser in (("streamdec", streamdec.cli.parser()), ("streamdec-train", offline.cli.parser())):
        files.append(File.generated(config, f"reference/{name}.md", content=commands(name, parser)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put in what a page names: a section, ``{{ README: Title }}``, or a file, ``{{ file: path }}``."""
    markdown = re.sub(r"^\{\{ README: (.+?) \}\}$", lambda found: readme(found[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^\{\{ file: (.+?) \}\}$", lambda found: listing(found[1]), markdown, flags=re.MULTILINE)


def listing(path: str) -> str:
    """A file of the repository, to read and to copy."""
    text = (ROOT / path).read_text("utf-8").rstrip()
    return f'```{Path(path).suffix[1:]} title="{path}"\n{text}\n```'


def on_page_content(html: str, **_: object) -> str:
    """Show the roles of docstrings, such as :class:, as plain code."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>~?\.*([^<]+)</code>", r"<code>\1</code>", html)


def readme(title: str) -> str:
    """A section of the README, without its title."""
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    if found is None:
        raise PluginError(f"the README has no section {title}")
    return re.sub("^###", "##", found[1], flags=re.MULTILINE)


def commands(name: str, parser: argparse.ArgumentParser) -> str:
    """Every command of a program, its arguments and options, as a page."""
    lines = [f"# Commands of {name}", "", parser.description or "", ""]
    lines += [f"As `{name} COMMAND --help` says it, which is always that of the version installed.", ""]
    for path, help_, command in _leaves(parser, ()):
        lines += [
            f"## {name} {' '.join(path)}",
            "",
            _prose(help_),
            "",
            "```text",
            _usage(name, path, command),
            "```",
            "",
        ]
        lines += ["| argument | what it is |", "| --- | --- |"]
        for action in command._actions:
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
                lines.append(f"| {_written(action)} | {_prose(_help(action))} |")
        lines.append("")
    return "\n".join(lines)


def _leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, argparse.ArgumentParser]]:
    """Every command with options of its own, in the order in which ``--help`` lists them."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            nested = any(isinstance(each, argparse._SubParsersAction) for each in child._actions)
            own = any(each.option_strings and each.dest not in ("help", "debug") for each in child._actions)
            if own or not nested:
                yield (*path, name), texts.get(name, ""), child
            yield from _leaves(child, (*path, name))


def _usage(name: str, path: tuple[str, ...], command: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(f"{name} {' '.join(path)}", width=80)
    formatter.add_usage(None, command._actions, command._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def _written(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return f"`{value if action.metavar or action.choices else action.dest}`"
    return f"`{', '.join(action.option_strings)}`" + (f" `{value}`" if action.nargs != 0 else "")


def _help(action: argparse.Action) -> str:
    values = {**vars(action), "prog": ""}
    return (action.help or "") % values


def _prose(text: str) -> str:
    """Escape what Markdown or a table would take for its own."""
    for sign in "\\<*_[]|":
        text = text.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return text[:1].upper() + text[1:]
