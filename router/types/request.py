"""What a client asked for, as far as routing needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

BlockKey = NewType("BlockKey", int)
"""The 64-bit chained key of a block. Equal keys mean equal text from the root to the end of the block."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine will see it, cut into chained blocks.

    keys: one for each *full* block of `block_units`, from the beginning of the prompt; chaining makes them distinct.
    `root` is the key that the chain starts from and `tail` what follows the last full block: with them
    `blocks.extend` continues the chain over the reply.
    """

    root: BlockKey
    keys: tuple[BlockKey, ...]
    block_units: int
    units: int
    """The whole length: `len(keys) * block_units + len(tail)`, or more if the prompt has more blocks than get keys."""
    tail: bytes | tuple[int, ...]
    in_tokens: bool
    """True: units are token ids. False: units are bytes, which a learned ratio converts to tokens."""


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What routing needs of one request. The body goes to the engine without passing through here."""

    request_id: str
    route: str
    model: str
    prompt: Prompt
    stream: bool
    max_tokens: int | None
    """The client's bound on the output; None if it set none."""
    choices: int = 1
    """The number of completions asked for: `n` times the number of prompts in the body."""
    session: str | None = None
    """The client's name for the conversation; None if it gave none."""
    slo_ttft_s: float | None = None
    """The client's bound on the time to the first token; None if it set none."""
    slo_tpot_s: float | None = None
    """The client's bound on the time for each later token; None if it set none."""
    parent: str | None = None
    """The client's name for the conversation that this one works for; None: it gave none."""
    final: bool = False
    """The client says that the conversation ends with this request."""
    generates: bool = True
    """False: the answer has no generated tokens (embeddings, counts), so its latency is not what predictions are of."""
