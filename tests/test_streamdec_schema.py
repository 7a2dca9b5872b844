from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
from feed_messages import gallery, messages, one_of_each, onset, retrieval, session, stats
from hypothesis import given

from streamdec.errors import FeedError
from streamdec.feed import schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with the test extra")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "make_feed_docs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date(tool: ModuleType) -> None:
    for path, text in tool.generate().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/make_feed_docs.py: {path.name}"


def test_every_field_is_described(tool: ModuleType) -> None:
    for struct in (schema.Message, *tool.MESSAGES, *tool.PARTS):
        described = tool.texts(struct)
        assert all(described.get(name) for name in struct.__struct_fields__), struct.__name__
        assert set(described) <= {*struct.__struct_fields__, "topic"}, struct.__name__
        assert tool.about(struct), struct.__name__


def test_every_part_is_in_the_reference(tool: ModuleType) -> None:
    known = {struct.__name__ for struct in (*tool.MESSAGES, *tool.PARTS)}
    assert set(tool.json_schema()["$defs"]) == known


def test_topics_are_those_of_the_messages() -> None:
    assert {kind.__struct_config__.tag for kind in schema.AnyMessage.__args__} == {*schema.TOPICS, *schema.ON_DEMAND}
    assert set(schema.TOPICS) >= schema.IMAGE_TOPICS


@pytest.fixture(scope="module")
def validator() -> object:
    text = (Path(schema.__file__).parent / "schema.json").read_text(encoding="utf-8")
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: type(message).__name__)
def test_messages_validate(validator: object, message: schema.AnyMessage) -> None:
    header = json.loads(msgspec.json.encode(message))
    validator.validate(header)  # type: ignore[attr-defined]
    header["seq"] = "one"
    assert not validator.is_valid(header)  # type: ignore[attr-defined]


@given(messages())
def test_messages_survive_both_encodings(message: schema.AnyMessage) -> None:
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(message), type=schema.AnyMessage) == message


def test_embedding_describes_little_endian() -> None:
    entry = schema.embedding(2, np.zeros((3, 4), ">f4"), "a")
    assert (entry.frame, entry.dtype, entry.shape, entry.id) == (2, "<f4", (3, 4), "a")


def test_essence_leaves_out_the_run() -> None:
    first = msgspec.structs.replace(retrieval(met=True), session="x", seq=1)
    second = msgspec.structs.replace(retrieval(met=False), session="y", seq=9)
    assert first != second
    assert schema.essence(first) == schema.essence(second)
    assert schema.essence(retrieval("a")) != schema.essence(retrieval("b"))
    record = schema.Dropped(what="record", text="", reason="queue full")
    assert [schema.essence(message) for message in (session("started"), stats(), gallery(), record)] == [b""] * 4


def test_recorded_essence_is_that_of_the_messages() -> None:
    sent = list(one_of_each())
    headers = [msgspec.json.encode(msgspec.structs.replace(message, session="s", seq=4)) for message in sent]
    expected = b"\n".join(filter(None, map(schema.essence, sent)))
    assert schema.joined_essence(schema.recorded(headers)) == expected
    assert schema.joined_essence(schema.recorded([header.decode() for header in headers])) == expected
    assert expected.count(b"\n") == 3
    assert schema.joined_essence([]) == b""


def test_recorded_refuses_what_it_cannot_read() -> None:
    with pytest.raises(FeedError, match="recorded feed"):
        schema.recorded([msgspec.json.encode(onset()), b'{"topic":"onset"}'])
