"""configs/live/README.md from the settings themselves: every key, its type, its default, its unit.

python tools/make_config_docs.py [--check]
"""

from __future__ import annotations

import inspect
import sys
import typing
from pathlib import Path

import msgspec

from streamdec.config import Config

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "configs" / "live" / "README.md"
HEAD = """# The live side's config

For `streamdec serve --config FILE`, `replay`, `doctor`. Made from the settings by `python tools/make_config_docs.py`;
do not edit. Unknown keys, wrong types and wrong values are refused when a file is loaded, with the key, what was got
and what is allowed.
"""


def describe(kind: type, title: str, prefix: str = "") -> list[str]:
    """One section per struct: its prose, its table, then the structs in it."""
    prose = inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
    lines = [f"## {title}", "", prose, "", "| key | type | default |", "| --- | --- | --- |"]
    nested: list[tuple[str, type]] = []
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        options = [t for t in (typing.get_args(hints[field.name]) or (hints[field.name],)) if inspect.isclass(t)]
        struct = next((t for t in options if issubclass(t, msgspec.Struct)), None)
        key = f"{prefix}{field.encode_name}"
        if struct is not None and typing.get_origin(hints[field.name]) not in (tuple, list, dict):
            nested.append((key, struct))
            lines.append(f"| `{key}` | table, see below | {'none' if type(None) in options else ''} |")
            continue
        default = (
            "required" if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT else ""
        )
        if not default:
            value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            default = f"`{value!r}`"
        text = hints[field.name].__name__ if inspect.isclass(hints[field.name]) else str(hints[field.name])
        lines.append(f"| `{key}` | `{text.replace('typing.', '').replace('|', 'or')}` | {default} |")
    lines.append("")
    for key, struct in nested:
        lines += describe(struct, f"`[{key}]`", f"{key}.")
    return lines


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, *describe(Config, "The whole file")]).rstrip() + "\n"


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv:
        if TARGET.read_text(encoding="utf-8") != text:
            sys.exit(f"{TARGET.relative_to(ROOT)} is out of date: run python tools/make_config_docs.py")
    else:
        TARGET.write_text(text, encoding="utf-8")
