"""What the gateway has to know of an API: how the body of a request becomes a prompt, how its answer is observed, and
how the answer continues the prompt.

An `Api` has no state. It sees the fields of a body after they have been read, whether as JSON or as a form, and never
changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from router.errors import BadRequest
from router.gateway import transcript
from router.gateway.observe import ObservedAnswer
from router.prefix import blocks
from router.types import Prompt

MOST_COUNT = 1 << 24  # a bound on the output, or a number of answers; it fits into a float and into a message
BYTES_PER_TOKEN = 4  # it sizes the blocks of text; predictions use a learned ratio
TRUE_WORDS = ("true", "1", "1.0", "on", "yes", "y", "t")  # the texts that the engine's own validation takes as true
SESSION_FIELDS = ("session_id", "prompt_cache_key", "user", "user_id")

KIND = "/v1/chat/completions"  # of all chats, whichever API they come by: the engine shares its cache among them

Fields = Mapping[str, Any]
Reply = bytes | tuple[int, ...]


class Api:
    """One API. It is the base of all, and says what holds for most of them."""

    answer: ClassVar[type[ObservedAnswer]] = ObservedAnswer
    """Observes an answer."""
    asks_usage: ClassVar[bool] = False
    """Whether a stream tells its usage only if `stream_options` ask for it."""
    generates: ClassVar[bool] = True
    """Whether the engine generates tokens, so that the answer teaches latencies."""
    lenient: ClassVar[bool] = False
    """Whether a body passes that is no JSON object and no form, or that is missing."""

    def prompt(self, fields: Fields, block_tokens: int) -> tuple[Prompt, int]:
        """The (first) prompt as chained blocks, and the number of prompts. Raises BadRequest.

        block_tokens: the size of a block of the prefix index.
        """
        raise NotImplementedError

    def max_tokens(self, fields: Fields) -> int | None:
        """The bound on the output that holds for this request; None: there is none."""
        return positive(fields.get("max_completion_tokens")) or positive(fields.get("max_tokens"))

    def session(self, fields: Fields) -> str | None:
        """The client's name for its session; None: the body has none."""
        params = fields.get("session_params")
        if isinstance(params, dict) and (name := named(params, "session_id")):
            return name
        for field in SESSION_FIELDS:
            if field in fields and (name := named(fields, field)):
                return name
        return None

    def reply(self, message: Fields) -> bytes:
        """The bytes in which the next turn will repeat the answer, of which `message` is an assistant message."""
        return transcript.message(message)


class ChatLike(Api):
    """An API whose prompts are conversations. The engine makes a chat of each request, and so does `chat` here."""

    def chat(self, fields: Fields) -> Fields:
        """The request with the names and in the shape of chat completions, as far as the prompt depends on it. Raises
        BadRequest."""
        raise NotImplementedError

    def prompt(self, fields: Fields, block_tokens: int) -> tuple[Prompt, int]:
        chat = self.chat(fields)
        content = transcript.conversation(chat)
        return blocks.chain(transcript.root(KIND, chat), content, block_tokens * BYTES_PER_TOKEN), 1


def named(fields: Fields, field: str) -> str | None:
    """The text in a field; None: it has none."""
    value = fields.get(field)
    return value if isinstance(value, str) and value else None


def objects(value: object, name: str) -> list[dict[str, Any]]:
    """The value if it is a list of objects. Raises BadRequest, which calls it `name`."""
    if not isinstance(value, list):
        raise BadRequest(f"`{name}` must be a list of messages.", param=name)
    for index, each in enumerate(value):
        if not isinstance(each, dict):
            raise BadRequest(f"`{name}[{index}]` must be an object.", param=f"{name}[{index}]")
    return value


def positive(value: object) -> int | None:
    """The value if it is a positive integer, else None. The engine judges anything else that a client sends.

    Any number above MOST_COUNT means the same: more than there can be."""
    return min(value, MOST_COUNT) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def truth(value: object) -> bool:
    """Whether the engine's validation would take the value as true."""
    return value is True or (value is not None and str(value).lower() in TRUE_WORDS)
