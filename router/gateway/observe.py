"""Observing an engine's answer as it passes: its usage, its first token, and the reply as the next turn will repeat it.

`StreamObserver.feed` takes the bytes of a stream as they arrive, cut anywhere, and returns those that the client may
see: the same bytes, without the usage chunk if the client did not ask for one. It holds back at most one unfinished
event, and nothing if there is nothing to hide. Events that cannot be read (they are not JSON, or of an unknown shape)
pass on and are otherwise ignored.

Events are read as they come until the first token. After it, only those that may tell the usage or end the stream are
read at once; the others are kept, and read together when the stream is over or there are many of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from router.gateway.lenient_json import read_object

REPLY_CHARS = 1 << 20  # a longer reply is kept up to here, and the prefix index does without the rest
UNREAD_BYTES = 1 << 15  # the reading of events is put off until there are so many bytes of them
EVENT_BYTES = 1 << 22  # an unfinished event is held back up to this size, then passed on unread
MOST_TOKENS = 1 << 40  # a count beyond this cannot be true
TEXT_FIELDS = ("content", "reasoning", "reasoning_content")
REPLY_FIELDS = (*TEXT_FIELDS, "tool_calls")

# Two line ends in a row close an event. The groups are atomic, so that CR LF is one line end and never two.
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_END = 4


@dataclass(slots=True)
class Usage:
    """Tokens as the engine counts them. A count is None if the engine does not tell it or tells an impossible one: the
    gateway does not trust the numbers of engines."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None

    def read(self, usage: object) -> None:
        """Take in a `usage` object. It replaces an earlier one."""
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        self.prompt_tokens = _count(usage.get("prompt_tokens"), 1, MOST_TOKENS)
        self.output_tokens = _count(usage.get("completion_tokens"), 1, MOST_TOKENS)
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        self.cached_tokens = _count(cached, 0, self.prompt_tokens or -1)


@dataclass(slots=True)
class Message:
    """The reply of the first choice, put together from a whole message or from deltas, up to REPLY_CHARS."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    chars: int = 0

    def add(self, delta: dict[str, Any]) -> None:
        """Take in a whole message, or a delta of one."""
        for name in TEXT_FIELDS:
            if isinstance(text := delta.get(name), str) and self._has_room(len(text)):
                self.texts.setdefault(name, []).append(text)
        for position, call in enumerate(_dicts(delta.get("tool_calls"))):
            self._add_call(position, call)

    def add_tokens(self, ids: object) -> None:
        """Take in the token ids of a chunk, if `ids` is a list of such."""
        if isinstance(ids, list) and self._has_room(len(ids)):
            self.token_ids.extend(token for token in ids if isinstance(token, int))

    def _add_call(self, position: int, call: dict[str, Any]) -> None:
        index, function = call.get("index", position), call.get("function")
        if not isinstance(index, int) or not isinstance(function, dict):
            return
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str) or not self._has_room(1 + len(arguments)):
            return
        known = self.calls.setdefault(index, {"id": None, "function": {"name": None, "arguments": ""}})
        known["id"] = call.get("id") or known["id"]
        known["function"]["name"] = function.get("name") or known["function"]["name"]
        known["function"]["arguments"] += arguments

    def _has_room(self, chars: int) -> bool:
        """Count `chars` more characters, and return whether they fit.

        Once something did not fit, nothing fits any more, so that the reply is cut at its end and has no gaps.
        """
        self.chars += chars
        return self.chars <= REPLY_CHARS

    def fields(self) -> dict[str, Any]:
        """The reply as an OpenAI assistant message."""
        message: dict[str, Any] = {"role": "assistant"}
        message.update({name: "".join(texts) for name, texts in self.texts.items()})
        if self.calls:
            message["tool_calls"] = [self.calls[index] for index in sorted(self.calls)]
        return message


@dataclass(slots=True)
class ObservedAnswer:
    """What has been observed of one answer so far."""

    usage: Usage = field(default_factory=Usage)
    message: Message = field(default_factory=Message)
    started: bool = False
    """Whether a token has arrived."""
    tokens: int = 0
    """Tokens of the first choice that have arrived: the token ids of each chunk, or one for a chunk without ids."""
    failed: bool = False
    """Whether the engine sent an error instead of the answer or of its rest."""

    def read(self, document: dict[str, Any]) -> None:
        """Take in a whole answer, or one chunk of a stream."""
        if document.get("error"):
            self.failed = True
        if document.get("usage"):
            self.usage.read(document["usage"])
        for choice in _dicts(document.get("choices")):
            self._read_choice(choice)

    def _read_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or choice.get("message")
        if not isinstance(delta, dict):
            delta = {"content": choice.get("text")}
        # The first chunk of a chat only names the role. A later chunk without text may be a token (half a character).
        has_token = "role" not in delta or any(delta.get(name) for name in REPLY_FIELDS)
        self.started = self.started or has_token
        if choice.get("index", 0) == 0:
            ids = choice.get("token_ids")
            self.tokens += len(ids) if isinstance(ids, list) else has_token
            self.message.add(delta)
            self.message.add_tokens(ids)


class StreamObserver:
    """Reads a stream of server-sent events into `observed`. hide_usage: the client must not see the usage chunk."""

    def __init__(self, observed: ObservedAnswer, *, hide_usage: bool) -> None:
        self.observed = observed
        self.done = False
        """Whether [DONE] has been seen, so that the answer is complete."""
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
        while end := _EVENT_END.search(text, max(start, self._searched)):
            event = text[start : end.end()]
            if not (self._take(event) and self._hide_usage):
                shown.append(event)
            start, self._searched = end.end(), 0
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
        unread, self._unread, self._unread_bytes = self._unread, [], 0
        for chunk in unread:
            for event in _EVENT_END.split(chunk) if b"\r" in chunk else chunk.split(b"\n\n"):
                if (data := _data(event)) and (document := read_object(data)):
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
            self.done = True
            return False
        document = read_object(data)
        if document is None:
            return False
        only_usage = bool(document.get("usage")) and document.get("choices") == []
        if self._unread and not only_usage:
            self.read_rest()  # first what came before
        self.observed.read(document)
        return only_usage


def _data(event: bytes) -> bytes:
    """The data of an event, whose lines may end in any way and may have other fields between them."""
    if event.startswith(b"data: {") and event.endswith(b"}") and b"\n" not in event and b"\r" not in event:
        return event[6:]  # as engines send it
    return b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _count(value: object, low: int, high: int) -> int | None:
    """The value if it is an integer from `low` to `high`, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None
