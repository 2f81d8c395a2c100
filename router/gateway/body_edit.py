"""How the body for the engine differs from the client's: some fields are set, and no other byte changes.

`openai_request` says which fields: a stream is asked for its usage, an alias of a model gives way to its name, and a
tenant's requests get its cache salt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

SPACE = re.compile(r"[ \t\n\r]*")
COPIED_BYTES = 1 << 16  # a body of so many bytes and more is sent in pieces rather than copied
_decode_at = json.JSONDecoder().raw_decode  # gives a value, and the place after it

Body = bytes | bytearray
Piece = bytes | bytearray | memoryview


class Splice(NamedTuple):
    """The bytes from `start` to `end` are replaced by `text`."""

    start: int
    end: int
    text: bytes


Edit = Splice | bytes | None
"""A part of the body is replaced, or all of it by these bytes. None: it does not change."""


def apply(edit: Edit, body: Body) -> tuple[Piece, ...]:
    """The body that the engine gets, in pieces: a large one is not copied. body: the client's."""
    if edit is None:
        return (body,)
    if not isinstance(edit, Splice):
        return (edit,)
    start, end, text = edit
    if len(body) < COPIED_BYTES:
        return (body[:start] + text + body[end:],)
    view = memoryview(body)
    return view[:start], text, view[end:]


def set_fields(body: Body, fields: Mapping[str, Any], values: Mapping[str, Any]) -> Edit:
    """The edit that gives these values to fields of an object.

    body: the JSON of the object; fields: what is in it. A field that the object has gets its new value in its place,
    and wherever the object repeats it, because readers differ in which of them they take. The others are inserted
    before the first field.
    """
    if not values:
        return None
    if json.detect_encoding(body) != "utf-8":
        return json.dumps({**fields, **values}).encode()
    if values.keys().isdisjoint(fields):
        place, text = body.index(b"{") + 1, msgspec.json.encode(values)[1:-1]
        return Splice(place, place, text + b"," if fields else text)
    added = {name: value for name, value in values.items() if name not in fields}
    text = msgspec.json.encode(added)[1:-1] + b"," if added else b""
    return _replaced(body.decode("utf-8", "surrogatepass"), text.decode(), values).encode("utf-8", "surrogatepass")


def _replaced(body: str, inserted: str, values: Mapping[str, Any]) -> str:
    begin = body.index("{") + 1
    pieces, kept = [body[:begin], inserted], begin
    for name, start, end in _fields(body, begin):
        if name in values:
            pieces += body[kept:start], json.dumps(values[name])
            kept = end
    return "".join((*pieces, body[kept:]))


def _fields(body: str, at: int) -> Iterator[tuple[str, int, int]]:
    """The fields of an object that has some: the name, and the place of the value. at: after its brace."""
    while True:
        name, at = _decode_at(body, _skip(body, at))
        start = _skip(body, _skip(body, at) + 1)
        _, end = _decode_at(body, start)
        yield name, start, end
        at = _skip(body, end)
        if body[at] == "}":
            return
        at += 1


def _skip(body: str, at: int) -> int:
    """The place of what comes after spaces."""
    found = SPACE.match(body, at)
    assert found is not None, "it matches nothing at all too"
    return found.end()
