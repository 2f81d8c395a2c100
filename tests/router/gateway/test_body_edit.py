from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.gateway.body_edit import Insertion, set_fields

VALUES: dict[str, Any] = {"salt": "s", "options": {"a": True}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["salt", "options", "other", "Salt", 'a"b', "\\", "é"]) | st.text(max_size=3)
SPACES = st.text(" \t\r\n", max_size=2)


def edited(body: bytes, values: dict[str, Any] = VALUES) -> bytes:
    edit = set_fields(body, json.loads(body), values)
    if isinstance(edit, Insertion):
        return body[: edit.at] + edit.text + body[edit.at :]
    return body if edit is None else edit


def test_fields_that_are_not_there_are_inserted_first() -> None:
    assert edited(b' { "a": 1.50 }') == b' {"salt":"s","options":{"a":true}, "a": 1.50 }'
    assert json.loads(edited(b"{ }")) == VALUES


def test_fields_that_are_there_are_changed_in_their_places() -> None:
    body = b'{"a":1e0,"salt" : [1, {"salt":2}] ,"b":"\\u00e9\xc3\xa9","salt":"old"}'
    assert edited(body, {"salt": "new"}) == b'{"a":1e0,"salt" : "new" ,"b":"\\u00e9\xc3\xa9","salt":"new"}'


def test_nothing_to_set_changes_nothing() -> None:
    assert set_fields(b'{"a":1}', {"a": 1}, {}) is None


@st.composite
def objects(draw: st.DrawFn) -> str:
    """An object in any spelling, with repeated names."""
    fields = draw(st.lists(st.tuples(NAMES, JSON, st.booleans()), max_size=5))
    texts = []
    for name, value, escaped in fields:
        spelt = (
            "".join(f"\\u{ord(char):04x}" for char in name if ord(char) < 65536) if escaped else json.dumps(name)[1:-1]
        )
        space = draw(SPACES)
        texts.append(f'{space}"{spelt}"{space}:{space}{json.dumps(value, ensure_ascii=draw(st.booleans()))}{space}')
    return "{" + (",".join(texts) or draw(SPACES)) + "}"


@given(objects())
def test_every_reader_finds_the_values_and_all_else_as_it_was(text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    before: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=list) or []
    after: list[tuple[str, Any]] = json.loads(edited(body), object_pairs_hook=list)
    for name, value in VALUES.items():
        found = [each for key, each in after if key == name]
        assert found
        assert all(each == json.loads(json.dumps(value), object_pairs_hook=list) for each in found)
    kept = [pair for pair in after if pair[0] not in VALUES]
    assert kept == [pair for pair in before if pair[0] not in VALUES]
