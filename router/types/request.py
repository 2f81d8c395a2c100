"""What a client asked, as far as routing needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

BlockKey = NewType("BlockKey", int)
"""64-bit chained key of a block: equal keys mean equal text from the root to the end of the block."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine will see it, cut into chained blocks.

    keys: one per *full* block of `block_units`, root first; distinct, as chaining makes them. `tail` is what lies after
    the last full block and `root` the key the chain starts from, so that the reply can continue it (`blocks.extend`).
    """

    root: BlockKey
    keys: tuple[BlockKey, ...]
    block_units: int
    units: int
    """Whole length, `len(keys) * block_units + len(tail)`."""
    tail: bytes | tuple[int, ...]
    in_tokens: bool
    """True: units are token ids (one token each). False: units are bytes, converted by a learned ratio."""


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What routing needs to know of one request; the body itself passes on untouched."""

    request_id: str
    route: str
    model: str
    prompt: Prompt
    stream: bool
    max_tokens: int | None
    """The client's bound on the output, tokens; None if it set none."""
    choices: int = 1
    """Completions asked for (`n` times the number of prompts in the body)."""
    session: str | None = None
    slo_ttft_s: float | None = None
    """The client's bound on the time to the first token; None if it set none."""
    slo_tpot_s: float | None = None
    """The client's bound on the time for each later token; None if it set none."""
