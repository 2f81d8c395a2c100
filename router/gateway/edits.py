"""How the body for the engine differs from the client's. Everything that is not edited passes byte for byte.

There are two edits: a stream is asked for its usage, and an alias of a model is replaced by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from router.gateway import lenient_json

ASK_USAGE = b'"stream_options":{"include_usage":true},'
COPIED_BYTES = 1 << 16  # a body of so many bytes and more is sent in pieces rather than copied

Body = bytes | bytearray
Piece = bytes | bytearray | memoryview


class Splice(NamedTuple):
    """The bytes from `start` to `end` are replaced by `text`."""

    start: int
    end: int
    text: bytes


Edit = bytes | tuple[Splice, ...]
"""The body is replaced by these bytes, or by splices that stand in their order. No splice: it does not change."""


def apply(edit: Edit, body: Body) -> tuple[Piece, ...]:
    """The body that the engine gets, in pieces: a large one is not copied. body: the client's."""
    if isinstance(edit, bytes):
        return (edit,)
    if not edit:
        return (body,)
    if len(body) < COPIED_BYTES:
        for start, end, text in reversed(edit):  # from behind, so that the places hold
            body = body[:start] + text + body[end:]
        return (body,)
    view, done = memoryview(body), 0
    pieces: list[Piece] = []
    for splice in edit:
        pieces += view[done : splice.start], splice.text
        done = splice.end
    return (*pieces, view[done:])


def edit_json(body: Body, fields: Mapping[str, Any], *, ask_usage: bool, model: str | None) -> Edit:
    """The edit of a JSON body. fields: what is in it. ask_usage: set `stream_options.include_usage` to true. model:
    replaces the name of the model; None: it stays.

    A body that cannot be edited in place is serialized anew.
    """
    usage = _ask_usage(body, fields) if ask_usage else ()
    renamed = _rename(body, fields, model) if model is not None else ()
    if usage is not None and renamed is not None:
        return (*usage, *renamed)
    changed = {**fields}
    if model is not None:
        changed["model"] = model
    if ask_usage:
        changed["stream_options"] = {**_kept_options(fields), "include_usage": True}
    return json.dumps(changed).encode()


def _ask_usage(body: Body, fields: Mapping[str, Any]) -> tuple[Splice, ...] | None:
    """Insert stream options before the first field. None: the body has some, or is not UTF-8."""
    if "stream_options" in fields or json.detect_encoding(body) != "utf-8":
        return None
    place = body.index(b"{") + 1
    return (Splice(place, place, ASK_USAGE),)


def _kept_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The stream options of a client that did not ask for usage, without `continuous_usage_stats`: that takes effect
    only together with `include_usage`."""
    options = fields.get("stream_options")
    return {k: v for k, v in options.items() if k != "continuous_usage_stats"} if isinstance(options, dict) else {}


def _rename(body: Body, fields: Mapping[str, Any], model: str) -> tuple[Splice, ...] | None:
    """Replace the value of the field `model`. None: its place is not certain.

    The first place that looks like the field may be inside another one, so the edited body is read again.
    """
    name = re.escape(json.dumps(fields["model"], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    found = re.search(rb'"model"\s*:\s*(' + name + rb")", body)
    if found is None:
        return None
    splices = (Splice(found.start(1), found.end(1), json.dumps(model).encode()),)
    edited = b"".join(apply(splices, body))
    return splices if lenient_json.loads(edited) == {**fields, "model": model} else None
