"""Write what is generated from streamdec/feed/schema.py.

schema.json (JSON Schema), FIELDS.md (the field reference), clients/node/messages.ts (the types of TypeScript).

    python tools/make_feed_docs.py [--check]

With --check nothing is written; exit code 1 tells that a file is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from streamdec.feed import schema
from streamdec.types import Candidate, StreamInfo

FOLDER = Path(inspect.getfile(schema)).parent
MESSAGES = (*schema.AnyMessage.__args__, schema.SnapshotEnd)
PARTS = (
    Candidate,
    schema.Payload,
    schema.Timing,
    schema.GenerationTiming,
    schema.Counts,
    schema.Generation,
    schema.Quantiles,
    StreamInfo,
    schema.GalleryEntry,
)
NOTE = "Generated from streamdec/feed/schema.py by tools/make_feed_docs.py."


def texts(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the text of each field of ``struct``, from the Attributes sections of its docstring and its bases'."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes\n----------\n")
        for entry in re.split(r"\n(?=\S)", section) if section else ():
            name, _, text = entry.partition(" : ")
            found[name] = " ".join(text.split()).replace("``", "`")
    return found


def about(struct: type[msgspec.Struct]) -> str:
    """Return what the docstring of ``struct`` says before its fields."""
    return inspect.cleandoc(struct.__doc__ or "").partition("Attributes\n")[0].strip().replace("``", "`")


def json_schema() -> dict[str, Any]:
    """JSON Schema of a header: one of the messages, told apart by ``topic``."""
    references, definitions = msgspec.json.schema_components(MESSAGES, ref_template="#/$defs/{name}")
    for struct in (*MESSAGES, *PARTS):
        definition = definitions[struct.__name__]
        definition["description"] = about(struct)
        for name, text in texts(struct).items():
            if name in definition["properties"]:
                definition["properties"][name]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"streamdec feed, version {schema.VERSION}",
        "description": f"The header of a message. {NOTE}",
        "oneOf": list(references),
        "$defs": definitions,
    }


def type_name(definition: dict[str, Any]) -> str:
    """Name the type of a property in the words of JSON Schema."""
    if "$ref" in definition:
        name = definition["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in definition:
        return ", ".join(f"`{value}`" if value else '`""`' for value in definition["enum"])
    if "anyOf" in definition:
        return " or ".join(type_name(choice) for choice in definition["anyOf"])
    if definition["type"] == "array":
        return f"array of {type_name(definition['items'])}"
    if definition["type"] == "object":
        return f"object of {type_name(definition['additionalProperties'])}"
    return str(definition["type"])


def markdown(definitions: dict[str, Any]) -> str:
    """Write the field reference: what is common, the messages by topic, the parts they are made of."""
    common = texts(schema.Message)
    lines = [f"# Feed, version {schema.VERSION}: field reference", "", NOTE, "", inspect.cleandoc(schema.__doc__ or "")]
    lines = [line.replace("``", "`").replace(":class:`Payload`", "[Payload](#payload)") for line in lines]
    lines[4] = lines[4].partition("\n\n")[2].replace(":data:`VERSION`", "the version")
    images = ", ".join(f"`{topic}`" for topic in sorted(schema.IMAGE_TOPICS))
    lines += [
        "",
        f"A feed at port p sends {images} at port p + 2 and all else at port p; snapshots are asked for at p + 1.",
    ]
    lines += ["", "## Every message", "", *table(schema.Message, definitions["Onset"], tuple(common))]
    for struct in MESSAGES:
        own = tuple(name for name in struct.__struct_fields__ if name not in common)
        lines += ["", f"## {struct.__name__}", "", f"Topic `{struct.__struct_config__.tag}`. {about(struct)}", ""]
        lines += table(struct, definitions[struct.__name__], own)
    for part in PARTS:
        lines += ["", f"## {part.__name__}", "", about(part), ""]
        lines += table(part, definitions[part.__name__], part.__struct_fields__)
    return "\n".join(lines) + "\n"


def table(struct: type[msgspec.Struct], definition: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Write a table of the fields ``names``; those without a default are always there."""
    rows = ["| field | type | default | what it is |", "| --- | --- | --- | --- |"]
    described = texts(struct)
    for name in names:
        entry = definition["properties"][name]
        kind = "string" if name == "topic" else type_name(entry)
        default = f"`{json.dumps(entry['default'])}`" if "default" in entry and name != "version" else ""
        rows.append(f"| `{name}` | {kind} | {default} | {described[name]} |")
    return rows


def typescript(definitions: dict[str, Any]) -> str:
    """Write the types of the headers. A header has all its fields, always, so no field is optional."""
    lines = [f"// {NOTE}"]
    for struct in (*MESSAGES, *PARTS):
        lines += ["", f"/** {' '.join(about(struct).split())} */", f"export interface {struct.__name__} {{"]
        for name, entry in definitions[struct.__name__]["properties"].items():
            described = f"  /** {entry['description']} */" if "description" in entry else ""
            lines += [*filter(None, [described]), f"  {name}: {typescript_type(entry)};"]
        lines.append("}")
    names = [struct.__name__ for struct in MESSAGES if struct is not schema.SnapshotEnd]
    lines += ["", "/** What is published. */", f"export type Message = {' | '.join(names)};"]
    lines += ["", "/** The newest version of the feed that these types know. */"]
    return "\n".join([*lines, f"export const VERSION = {schema.VERSION};"]) + "\n"


def typescript_type(definition: dict[str, Any]) -> str:
    """Name the type of a property in TypeScript."""
    if "$ref" in definition:
        return str(definition["$ref"].rpartition("/")[2])
    if "enum" in definition:
        return " | ".join(json.dumps(value) for value in definition["enum"])
    if "anyOf" in definition:
        return " | ".join(map(typescript_type, definition["anyOf"]))
    if definition["type"] == "array":
        return f"Array<{typescript_type(definition['items'])}>"
    if definition["type"] == "object":
        return f"Record<string, {typescript_type(definition['additionalProperties'])}>"
    return "number" if definition["type"] == "integer" else str(definition["type"])


def generate() -> dict[Path, str]:
    """Return the text of each generated file."""
    made = json_schema()
    return {
        FOLDER / "schema.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n",
        FOLDER / "FIELDS.md": markdown(made["$defs"]),
        FOLDER / "clients" / "node" / "messages.ts": typescript(made["$defs"]),
    }


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in generate().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path} is out of date: run python tools/make_feed_docs.py")
        else:
            path.write_text(generate()[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
