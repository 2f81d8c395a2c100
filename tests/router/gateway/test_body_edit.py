from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.apis import CHAT
from router.gateway.body_edit import COPIED_BYTES, Splice, apply, set_fields
from router.gateway.openai_request import parse_request

VALUES: dict[str, Any] = {"salt": "s", "options": {"a": True}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["salt", "options", "other", "Salt", 'a"b', "\\", "é"]) | st.text(max_size=3)
SPACES = st.text(" \t\r\n", max_size=2)


def edited(body: bytes, values: dict[str, Any] = VALUES) -> bytes:
    return b"".join(apply(set_fields(body, json.loads(body), values), body))


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


def test_large_bodies_are_not_copied() -> None:
    body = bytearray(b"x" * COPIED_BYTES)
    pieces = apply(Splice(1, 3, b"y"), body)
    assert b"".join(pieces) == b"xy" + body[3:]
    assert [type(piece) for piece in pieces] == [memoryview, bytes, memoryview]
    small = b"x" * 9
    assert apply(Splice(1, 2, b"yy"), small) == (b"xyyxxxxxxx",)
    assert apply(None, small) == (small,)
    assert apply(b"z", small) == (b"z",)


# --- the edits of a request -------------------------------------------------------------------------------------------

ALIASES = {"gpt": 'real/"model"'}


def renamed(body: bytes, *, stream: bool = False, salt: bytes | None = None) -> bytes:
    """The body as the engine gets it."""
    request = parse_request(body, route=CHAT, headers={}, request_id="r", block_tokens=16, aliases=ALIASES, salt=salt)
    assert request.parsed.model == ALIASES["gpt"]
    assert request.hide_usage is stream
    return b"".join(request.body_for_engine(body))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{ "model" :\n"', b'" , "temperature":1.0e-0, "messages":[]}'),
        (b'{"messages":[{"role":"user","content":"\\"model\\":\\"gpt\\""}],"new":[1,2.50],"model":"', b'"}'),
        (b'{"metadata":{"model":"gpt"},"messages":[],"model":"', b'"}'),
        (b'{"messages":[],"new":NaN,"mod\\u0065l":"', b'"}'),
    ],
)
@pytest.mark.parametrize("name", [b"gpt", b"g\\u0070t"])
def test_only_the_name_of_the_model_changes(before: bytes, after: bytes, name: bytes) -> None:
    assert renamed(before + name + after) == before + b'real/\\"model\\"' + after


def test_a_body_in_another_encoding_is_written_anew() -> None:
    got = renamed('{"messages":[],"model":"gpt"}'.encode("utf-16"))
    assert json.loads(got) == {"messages": [], "model": ALIASES["gpt"]}


@pytest.mark.parametrize("options", [b"", b'"stream_options":{"continuous_usage_stats":true},'])
@pytest.mark.parametrize("padding", [0, COPIED_BYTES])
def test_all_edits_together(options: bytes, padding: int) -> None:
    tail = b'"stream":true,"messages":[{"role":"user","content":"' + b"x" * padding + b'"}]}'
    got = renamed(b'{"model":"gpt",' + options + tail, stream=True, salt=b"secret")
    fields = json.loads(got)
    assert fields["stream_options"] == {"include_usage": True}
    assert fields["model"] == ALIASES["gpt"]
    assert len(fields["cache_salt"]) == 64
    assert got.endswith(tail)


def test_an_alias_and_its_model_share_their_prompts_and_tenants_do_not() -> None:
    def keys(model: str, salt: bytes | None = None) -> tuple[int, ...]:
        fields: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "x" * 200}]}
        body = json.dumps(fields).encode()
        about = {"route": CHAT, "headers": {}, "request_id": "r", "block_tokens": 16, "salt": salt}
        return parse_request(body, aliases=ALIASES, **about).parsed.prompt.keys  # type: ignore[arg-type]

    assert keys("gpt") == keys(ALIASES["gpt"]) != keys("other")
    assert keys("gpt", b"a") == keys(ALIASES["gpt"], b"a") != keys("gpt", b"b") != keys("gpt")
