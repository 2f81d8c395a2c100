from __future__ import annotations

import json
from typing import Any

import pytest

from router.gateway.apis import CHAT
from router.gateway.edits import ASK_USAGE, COPIED_BYTES, Splice, apply, edit_json
from router.gateway.openai_request import parse_request

ALIASES = {"gpt": 'real/"model"'}


def renamed(body: bytes, *, stream: bool = False) -> bytes:
    """The body as the engine gets it."""
    request = parse_request(body, route=CHAT, headers={}, request_id="r", block_tokens=16, aliases=ALIASES)
    assert request.parsed.model == ALIASES["gpt"]
    assert request.hide_usage is stream
    return b"".join(request.body_for_engine(body))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{ "model" :\n"', b'" , "temperature":1.0e-0, "messages":[]}'),
        (b'{"messages":[{"role":"user","content":"\\"model\\":\\"gpt\\""}],"new":[1,2.50],"model":"', b'"}'),
        (b'{"model":"first","messages":[],"model":"', b'"}'),  # the last one counts
    ],
)
def test_only_the_name_of_the_model_changes(before: bytes, after: bytes) -> None:
    assert renamed(before + b"gpt" + after) == before + b'real/\\"model\\"' + after


@pytest.mark.parametrize(
    "body",
    [
        b'{"metadata":{"model":"gpt"},"messages":[],"model":"gpt"}',
        b'{"messages":[],"mod\\u0065l":"gpt"}',
        b'{"messages":[],"model":"g\\u0070t"}',
        '{"messages":[],"model":"gpt"}'.encode("utf-16"),
        b'{"messages":[],"model":"gpt","new":NaN}',
    ],
)
def test_where_the_place_is_not_certain_the_body_is_written_anew(body: bytes) -> None:
    expected = {**json.loads(body), "model": ALIASES["gpt"]}
    assert json.dumps(json.loads(renamed(body))) == json.dumps(expected)


@pytest.mark.parametrize("options", [b"", b'"stream_options":{"continuous_usage_stats":true},'])
@pytest.mark.parametrize("padding", [0, COPIED_BYTES])
def test_both_edits_together(options: bytes, padding: int) -> None:
    tail = b'"stream":true,"messages":[{"role":"user","content":"' + b"x" * padding + b'"}]}'
    got = renamed(b'{"model":"gpt",' + options + tail, stream=True)
    assert json.loads(got)["stream_options"] == {"include_usage": True}
    assert json.loads(got)["model"] == ALIASES["gpt"]
    if not options:
        assert got == b"{" + ASK_USAGE + b'"model":"real/\\"model\\"",' + tail


def test_an_alias_and_its_model_share_their_prompts() -> None:
    def keys(model: str) -> tuple[int, ...]:
        fields: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "x" * 200}]}
        body = json.dumps(fields).encode()
        about = {"route": CHAT, "headers": {}, "request_id": "r", "block_tokens": 16}
        return parse_request(body, aliases=ALIASES, **about).parsed.prompt.keys  # type: ignore[arg-type]

    assert keys("gpt") == keys(ALIASES["gpt"]) != keys("other")


def test_large_bodies_are_not_copied() -> None:
    body = bytearray(b"x" * COPIED_BYTES)
    pieces = apply((Splice(1, 2, b"yy"), Splice(5, 5, b"z")), body)
    assert b"".join(pieces) == b"xyyxxxz" + body[5:]
    assert sum(isinstance(piece, memoryview) for piece in pieces) == 3
    small = b"x" * 9
    assert apply((Splice(1, 2, b"yy"), Splice(5, 5, b"z")), small) == (b"xyyxxxzxxxx",)
    assert apply((), small) == (small,)
    assert edit_json(b"{}", {}, ask_usage=False, model=None) == ()
