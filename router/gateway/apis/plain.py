"""APIs whose prompts are not routed by prefix: the engine generates no tokens, or the prompt is no text.

Their requests are placed by load. Those that an engine's model computes (embeddings, scores) count by the length of
what they bring, and those that only its server answers (tokenize) count as empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from router.gateway import transcript
from router.gateway.apis.base import BYTES_PER_TOKEN, Api, Fields
from router.gateway.observe import ObservedAnswer
from router.prefix import blocks
from router.types import Prompt

# Where these APIs have their input.
INPUT_FIELDS = (
    *("input", "inputs", "prompt", "messages", "query", "queries", "documents", "items"),
    *("text_1", "text_2", "data_1", "data_2"),
)


@dataclass(slots=True)
class PlainAnswer(ObservedAnswer):
    """An answer of any shape. A stream of unknown events is complete where it ends."""

    marks_end: ClassVar[bool] = False

    def read(self, document: dict[str, Any]) -> None:
        self.started = True
        ObservedAnswer.read(self, document)


class Plain(Api):
    """An API that generates nothing. computes: the model works on the input; False: only the server does."""

    answer = PlainAnswer
    generates = False

    def __init__(self, *, computes: bool) -> None:
        self._computes = computes

    def prompt(self, fields: Fields, block_tokens: int) -> tuple[Prompt, int]:
        units = sum(_bytes(fields[name]) for name in INPUT_FIELDS if name in fields) if self._computes else 0
        return _unkeyed(fields, block_tokens, units), 1

    def max_tokens(self, fields: Fields) -> int | None:  # noqa: ARG002
        return 1  # nothing is generated, and the least that can be expected is one token


class Passed(Plain):
    """A path that the operator has opened (option `allow_paths`), of which nothing is known."""

    lenient = True

    def __init__(self) -> None:
        super().__init__(computes=True)


class Audio(Api):
    """Transcriptions and translations, whose prompts are sounds in a form. The length of a sound is not known."""

    answer = PlainAnswer

    def prompt(self, fields: Fields, block_tokens: int) -> tuple[Prompt, int]:
        return _unkeyed(fields, block_tokens, 0), 1


def _unkeyed(fields: Fields, block_tokens: int, units: int) -> Prompt:
    """A prompt of so many bytes, of which the prefix index will know nothing."""
    empty = blocks.chain(transcript.root("plain", fields), b"", block_tokens * BYTES_PER_TOKEN)
    return Prompt(empty.root, (), empty.block_units, units, b"", in_tokens=False)


def _bytes(value: object) -> int:
    """The length of all text in the value; a token id counts as some text."""
    if isinstance(value, str):
        return BYTES_PER_TOKEN if value.startswith("data:") else len(value)  # the length of an image says nothing
    if isinstance(value, list):
        return sum(map(_bytes, value))
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return BYTES_PER_TOKEN
