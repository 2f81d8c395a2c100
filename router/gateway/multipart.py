"""Reading the fields of a form (`multipart/form-data`) without copying its files.

python-multipart, which is Starlette's own parser, tells where each part begins and ends. Only short parts are read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from router.errors import BadRequest
from router.gateway.body_edit import Body, Splice

FIELD_BYTES = 1 << 16  # a longer field is no option; it passes unread
MOST_PARTS = 1000
logging.getLogger("python_multipart").setLevel(
    logging.CRITICAL
)  # or each form that a client gets wrong would be logged


@dataclass(slots=True)
class _Part:
    header: bytes = b""
    value: bytes = b""
    disposition: bytes = b""
    begin: int | None = None
    end: int = 0


@dataclass(slots=True)
class Form:
    """The fields of a form that are no files, and where their values stand in its body. The last of a name counts."""

    fields: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def rename(self, name: str, text: str) -> Splice:
        """The edit that replaces a field."""
        return Splice(*self.places[name], text.encode("utf-8", "surrogatepass"))


def is_form(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"multipart/form-data"


def read_form(body: Body, content_type: bytes) -> Form:
    """Read a form. content_type: the value of that header. Raises BadRequest."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("The request body is a form without a boundary.")
    parts = _parts(body, boundary)
    form = Form()
    for part in parts:
        _, named = parse_options_header(part.disposition)
        if b"name" not in named or b"filename" in named or part.begin is None:
            continue
        if part.end - part.begin <= FIELD_BYTES:
            name = named[b"name"].decode("utf-8", "replace")
            form.fields[name] = bytes(body[part.begin : part.end]).decode("utf-8", "replace")
            form.places[name] = part.begin, part.end
    return form


def _parts(body: Body, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []

    def begin() -> None:
        if len(parts) == MOST_PARTS:
            raise BadRequest(f"The form has more than {MOST_PARTS} parts.")
        parts.append(_Part())

    def add_header(data: bytes, start: int, end: int) -> None:
        parts[-1].header += data[start:end]

    def add_value(data: bytes, start: int, end: int) -> None:
        parts[-1].value += data[start:end]

    def end_header() -> None:
        part = parts[-1]
        if part.header.lower() == b"content-disposition":
            part.disposition = part.value
        part.header = part.value = b""

    def add_data(_: bytes, start: int, end: int) -> None:
        part = parts[-1]
        if part.begin is None:
            part.begin = start
        part.end = end

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": add_header,
            "on_header_value": add_value,
            "on_header_end": end_header,
            "on_part_data": add_data,
        },
    )
    try:
        parser.write(body)  # type: ignore[arg-type]  # a bytearray serves as well
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"The request body is not a valid form: {error}") from None
    return parts
