"""What is observed of an engine's answer: its usage, its first token, and the reply as the next turn will repeat it.

What is of an unknown shape is ignored. `stream_observer` reads streams.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from router.types import Stop

REPLY_CHARS = 1 << 20  # a longer reply is kept up to here, and the prefix index does without the rest
MOST_TOKENS = 1 << 24  # a count beyond this cannot be true: no model has so long a context
MOST_ID = 1 << 63  # ids are hashed as 8 bytes
TOOL_CHARS = 64  # models choose the names of tools, and maps keep them
# By the reason that chats and completions, messages, and responses give.
STOPS = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), Stop.TOOL_CALL),
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "completed"), Stop.END_OF_TURN),
    **dict.fromkeys(("length", "max_tokens", "model_context_window_exceeded", "incomplete"), Stop.LENGTH),
}
TEXT_FIELDS = ("content", "reasoning", "reasoning_content")
REPLY_FIELDS = (*TEXT_FIELDS, "tool_calls")


@dataclass(slots=True)
class Usage:
    """Tokens as the engine counts them. A count is None if the engine does not tell it or tells an impossible one: the
    gateway does not trust the numbers of engines."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None

    def read(self, usage: object) -> None:
        """Take in a `usage` object. It replaces an earlier one."""
        if isinstance(usage, dict):
            self.set(usage.get("prompt_tokens"), usage.get("prompt_tokens_details"), usage.get("completion_tokens"))

    def set(self, prompt: object, details: object, output: object) -> None:
        """Take in what an engine tells under any names. details: the object that has the cached tokens."""
        self.prompt_tokens = count(prompt, 1)
        self.output_tokens = count(output, 1)
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        self.cached_tokens = count(cached, 0, self.prompt_tokens or -1)


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
            if isinstance(text := delta.get(name), str):
                self.add_text(name, text)
        for position, call in enumerate(dicts(delta.get("tool_calls"))):
            self._add_call(position, call)

    def add_text(self, name: str, text: str) -> None:
        """Take in more text of one of TEXT_FIELDS."""
        if self._has_room(len(text)):
            self.texts.setdefault(name, []).append(text)

    def add_tokens(self, ids: object) -> None:
        """Take in the token ids of a chunk, if `ids` is a list of such."""
        if isinstance(ids, list) and self._has_room(len(ids)):
            self.token_ids.extend(token for token in ids if isinstance(token, int) and 0 <= token < MOST_ID)

    def _add_call(self, position: int, call: dict[str, Any]) -> None:
        index, function = call.get("index", position), call.get("function")
        if not isinstance(index, int) or not isinstance(function, dict):
            return
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str) or not self._has_room(1 + len(arguments)):
            return
        known = self.calls.setdefault(index, {"id": None, "function": {"name": None, "arguments": ""}})
        known["id"] = _text(call.get("id")) or known["id"]
        known["function"]["name"] = _text(function.get("name")) or known["function"]["name"]
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
    """What has been observed of one answer so far. This class reads chats and completions; `apis` has those that read
    other answers."""

    usage: Usage = field(default_factory=Usage)
    message: Message = field(default_factory=Message)
    started: bool = False
    """Whether a token has arrived."""
    tokens: int = 0
    """Tokens of the first choice that have arrived: the token ids of each chunk, or one for a chunk without ids."""
    error: object = None
    """The error that the engine sent instead of the answer or of its rest."""
    done: bool = False
    """Whether a stream has said that it is complete."""
    reason: object = None
    """Why the answer of the first choice ended, in the words of its API."""
    marks_end: ClassVar[bool] = True
    """Whether such streams say so. If not, they are complete where they end."""

    @property
    def failed(self) -> bool:
        """Whether the engine sent an error."""
        return self.error is not None

    @property
    def error_status(self) -> int:
        """The HTTP status that the error names, or 500."""
        code = self.error.get("code") if isinstance(self.error, dict) else None
        return code if isinstance(code, int) and 400 <= code <= 599 else 500

    @property
    def stop(self) -> Stop:
        """Why the answer ended."""
        if self.message.calls:
            return Stop.TOOL_CALL
        return STOPS.get(self.reason, Stop.UNKNOWN) if isinstance(self.reason, str) else Stop.UNKNOWN

    @property
    def tool(self) -> str | None:
        """The name of the first tool that was called."""
        name = next((call["function"]["name"] for call in self.message.calls.values()), None)
        return name[:TOOL_CHARS] if name else None

    def error_body(self) -> bytes:
        """The error as a whole answer of its API."""
        return json.dumps({"error": self.error}).encode()

    def read(self, document: dict[str, Any]) -> None:
        """Take in a whole answer, or one chunk of a stream."""
        if document.get("error"):
            self.error = document["error"]
        if document.get("usage"):
            self.usage.read(document["usage"])
        for choice in dicts(document.get("choices")):
            self._read_choice(choice)

    def _read_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or choice.get("message")
        if not isinstance(delta, dict):
            delta = {"content": choice.get("text")}
        # The first chunk of a chat only names the role. A later chunk without text may be a token (half a character).
        has_token = "role" not in delta or any(delta.get(name) for name in REPLY_FIELDS)
        self.started = self.started or has_token
        if choice.get("index", 0) == 0:
            self.reason = choice.get("finish_reason") or self.reason
            ids = choice.get("token_ids")
            self.tokens += len(ids) if isinstance(ids, list) else has_token
            self.message.add(delta)
            self.message.add_tokens(ids)


def dicts(value: object) -> list[dict[str, Any]]:
    """The objects in the value, if it is a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def count(value: object, low: int = 0, high: int = MOST_TOKENS) -> int | None:
    """The value if it is an integer from `low` to `high`, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None
