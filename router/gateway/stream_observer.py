"""Observing a stream as it passes.

`StreamObserver.feed` takes the bytes of a stream as they arrive, cut anywhere, and returns those that the client may
see: the same bytes, without the usage chunk if the client did not ask for one. It holds back at most one unfinished
event, and nothing if there is nothing to hide. Events that cannot be read (they are not JSON, or of an unknown shape)
pass on and are otherwise ignored.

Events are read as they come until the first token. After it, only those that may tell the usage or end the stream are
read at once; the others are kept, and read together when the stream is over or there are many of them. Read so, a chunk
of text costs 2.4 us, in place of 6.5 us by itself and 12 us with Python's own `json`: hence `_read_plain`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET

from router.gateway.lenient_json import read_object
from router.gateway.observe import ObservedAnswer

UNREAD_BYTES = 1 << 15  # the reading of events is put off until there are so many bytes of them
EVENT_BYTES = 1 << 22  # an unfinished event is held back up to this size, then passed on unread

# Two line ends in a row close an event. The groups are atomic, so that CR LF is one line end and never two.
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_END = 4


class StreamObserver:
    """Reads a stream of server-sent events into `observed`. hide_usage: the client must not see the usage chunk."""

    def __init__(self, observed: ObservedAnswer, *, hide_usage: bool) -> None:
        self.observed = observed
        self._hide_usage = hide_usage
        self._pending = b""
        self._searched = 0
        self._unread: list[bytes] = []  # whole events whose reading is put off, in their order
        self._unread_bytes = 0

    @property
    def torn(self) -> bool:
        """Whether what the client has been sent ends inside an event."""
        return bool(self._pending) and not self._hide_usage

    def feed(self, chunk: bytes) -> bytes:
        """Take in the next bytes of the stream, and return those that may go on to the client now."""
        if not self._pending and chunk.endswith(b"\n\n") and self._can_wait(chunk):
            self._put_off(chunk)
            return chunk
        text = self._pending + chunk if self._pending else chunk
        shown, start = [], 0
        find_end = _plain_end if b"\r" not in text else _any_end
        while end := find_end(text, max(start, self._searched)):
            event = text[start:end]
            if not (self._take(event) and self._hide_usage):
                shown.append(event)
            start, self._searched = end, 0
        self._pending = text[start:]
        self._searched = max(0, len(self._pending) - _LONGEST_END)
        if len(self._pending) > EVENT_BYTES:
            shown.append(self._pending)
            self._pending, self._searched = b"", 0
        return b"".join(shown) if self._hide_usage else chunk

    def finish(self) -> bytes:
        """The engine has closed the stream: return what is still held back, an event without its blank line."""
        event, self._pending, self._searched = self._pending, b"", 0
        hidden = bool(event) and self._take(event) and self._hide_usage
        return b"" if hidden or not self._hide_usage else event

    def read_rest(self) -> None:
        """Read the events whose reading was put off."""
        if not self._unread:
            return
        text = b"".join(self._unread)
        self._unread, self._unread_bytes = [], 0
        if not _read_plain(self.observed, text):
            events = _EVENT_END.split(text) if b"\r" in text else text.split(b"\n\n")
            for data in filter(None, map(_data, events)):
                if document := read_object(data):
                    self.observed.read(document)

    def _can_wait(self, chunk: bytes) -> bool:
        """Whether nobody must know at once what is in these events."""
        return self.observed.started and b'"usage"' not in chunk and b"[DONE]" not in chunk

    def _put_off(self, chunk: bytes) -> None:
        self._unread.append(chunk)
        self._unread_bytes += len(chunk)
        if self._unread_bytes > UNREAD_BYTES:
            self.read_rest()

    def _take(self, event: bytes) -> bool:
        """Take in one event, and return whether it only tells the usage."""
        if self._can_wait(event):
            self._put_off(event)
            return False
        data = _data(event.rstrip(b"\r\n"))
        if data == b"[DONE]":
            self.observed.done = True
            return False
        document = read_object(data)
        if document is None:
            return False
        only_usage = bool(document.get("usage")) and document.get("choices") == []
        if self._unread and not only_usage:
            self.read_rest()  # first what came before
        self.observed.read(document)
        return only_usage


# --- many chunks at once ----------------------------------------------------------------------------------------------


class _Delta(msgspec.Struct):
    content: Any = None
    role: Any = UNSET
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta
    index: Any = 0
    token_ids: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    """The parts of a chat's chunk that are read."""

    choices: list[_Choice]
    usage: Any = None
    error: Any = None

    @property
    def text(self) -> str | None:
        """The text of a chunk that has nothing else to read; None for any other chunk."""
        if len(self.choices) != 1 or self.usage or self.error:
            return None
        choice = self.choices[0]
        delta = choice.delta
        others = delta.reasoning or delta.reasoning_content or delta.tool_calls or choice.token_ids or choice.index
        others = others or choice.finish_reason
        plain = delta.role is UNSET and isinstance(delta.content, str) and not others
        return delta.content if plain and choice.index == 0 else None


_BEGIN, _END = b"data: ", b"\n\n"
_decode_chunks = msgspec.json.Decoder(list[_Chunk]).decode


def _read_plain(observed: ObservedAnswer, text: bytes) -> bool:
    """Take in whole events that are written as engines write them: each is one line of data, with one chunk in it.
    False, with nothing taken in: they are not so."""
    if not (text.startswith(_BEGIN) and text.endswith(_END)) or b"\r" in text:
        return False
    documents = text[len(_BEGIN) : -len(_END)].split(_END + _BEGIN)
    if text.count(b"\n") != len(_END) * len(documents):  # a line end inside an event, or too many behind it
        return False
    try:
        chunks = _decode_chunks(b"[" + b",".join(documents) + b"]")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if len(chunks) != len(documents):  # some line has two chunks, which is no JSON, or none
        return False
    for chunk, data in zip(chunks, documents, strict=True):
        content = chunk.text
        if content is not None:
            observed.started = True
            observed.tokens += 1
            observed.message.add_text("content", content)
        elif document := read_object(data):
            observed.read(document)
    return True


def _plain_end(text: bytes, start: int) -> int:
    """The end of the first event from `start` on; 0: there is none. It takes a thirtieth of the pattern's time."""
    found = text.find(b"\n\n", start)
    return found + 2 if found >= 0 else 0


def _any_end(text: bytes, start: int) -> int:
    found = _EVENT_END.search(text, start)
    return found.end() if found else 0


def _data(event: bytes) -> bytes:
    """The data of an event, whose lines may end in any way and may have other fields between them."""
    if event.startswith(b"data: {") and event.endswith(b"}") and b"\n" not in event and b"\r" not in event:
        return event[6:]  # as engines send it
    return b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
