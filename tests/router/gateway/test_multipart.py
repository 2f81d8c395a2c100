from __future__ import annotations

import os
from typing import Any

import pytest

from router.errors import BadRequest
from router.gateway.multipart import FIELD_BYTES, MOST_PARTS, is_form, read_form
from router.gateway.openai_request import OpenAIRequest, parse_request

TYPE = b'multipart/form-data; boundary="b-1"'
ROUTE = "/v1/audio/transcriptions"
SOUND = os.urandom(3000) + b"\r\n--b-2\r\n--b\r\n" + b"\x00" * 100


def part(head: bytes, content: bytes) -> bytes:
    return b"--b-1\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def named(name: str, content: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), content)


FILE = part(b'content-disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav', SOUND)
END = b"--b-1--\r\n"


def read(body: bytes | bytearray, content_type: bytes = TYPE) -> OpenAIRequest:
    headers = {b"content-type": content_type}
    return parse_request(
        body, route=ROUTE, headers=headers, request_id="r", block_tokens=16, aliases={"whisper-1": "w"}
    )


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_the_fields_are_read_and_the_body_passes(kind: type[bytes] | type[bytearray]) -> None:
    body = kind(FILE + named("model", b"m") + named("stream", b"true") + named("user", b"u") + END)
    request = read(body)
    parsed = request.parsed
    assert (parsed.model, parsed.stream, parsed.session, parsed.prompt.keys) == ("m", True, "u", ())
    assert (request.edit, request.hide_usage) == (None, False)
    assert request.body_for_engine(body) == (body,)


@pytest.mark.parametrize("order", [(FILE, named("model", b"whisper-1")), (named("model", b"whisper-1"), FILE)])
def test_an_alias_is_replaced_in_its_place(order: tuple[bytes, bytes]) -> None:
    request = read(b"".join(order) + END)
    assert request.parsed.model == "w"
    assert b"".join(request.body_for_engine(b"".join(order) + END)) == b"".join(order).replace(b"whisper-1", b"w") + END


def test_only_short_fields_with_a_name_are_read() -> None:
    form = read_form(
        named("prompt", b"x" * (FIELD_BYTES + 1))
        + named("empty", b"")
        + named("twice", b"1")
        + named("twice", b"2")
        + part(b"content-disposition: form-data", b"nameless")
        + part(b"x-other: 1", b"nameless")
        + named("odd", b"\xff")
        + END,
        TYPE,
    )
    assert form.fields == {"twice": "2", "odd": "\ufffd"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FILE + END, b"multipart/form-data"),
        (b"no form", TYPE),
        (b"--b-1\rx", TYPE),
        (b"--b-1\r\n: x\r\n\r\n", TYPE),
        (named("a", b"") * (MOST_PARTS + 1) + END, TYPE),
        (b"{", b"application/json"),
        (b"[]", b""),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(BadRequest):
        read(body, content_type)


def test_on_an_opened_path_anything_passes() -> None:
    headers = {b"content-type": TYPE}
    about: dict[str, Any] = {"route": "/v1/opened", "headers": headers, "request_id": "r", "block_tokens": 16}
    for body in (b"no form", b"", b"[1]"):
        request = parse_request(body, **about)
        assert (request.parsed.model, request.body_for_engine(body)) == ("", (body,))
    assert parse_request(named("model", b"m") + END, **about).parsed.model == "m"


def test_forms_are_known_by_their_type() -> None:
    assert is_form(b"Multipart/Form-Data ; boundary=x")
    assert not is_form(b"application/json")


def test_forms_that_are_wrong_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Anybody may send any number of them."""
    for body in (b"{}", b"--b-1x", b"--b-1\r\n\n", b"--b-1\r\na\x00: b\r\n\r\n"):
        with pytest.raises(BadRequest):
            read_form(body, TYPE)
    assert caplog.text == ""
