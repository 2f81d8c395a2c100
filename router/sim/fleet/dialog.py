"""What a simulated client says, token by token, so that prompts are cut into blocks as in the gateway.

The next prompt of a dialog is all that was said so far, the answers included, and then the new tokens of the turn.
Nobody reads the tokens: they only have to be equal where prompts share a prefix, and new elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.prefix import blocks
from router.sim.trace import Block
from router.types import BlockKey, ParsedRequest, Prompt, Stop

MODEL = "simulated"
ROUTE = "/v1/completions"
ROOT = b""
ID_BITS = (1 << 63) - 1  # The hash of an id is cut to them: ids are chained as signed 64-bit integers.


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session, before it is asked. The fields with defaults are known of recorded traffic only."""

    pause_s: float
    """The time between the answer to the turn before, or the arrival of the session, and this turn."""
    fresh_tokens: int
    """The tokens that the turn adds to the dialog."""
    output_tokens: int
    abandon_after_s: float | None = None
    """The client leaves this long after it asked, its answer being longer than `output_tokens`; None: it stays."""
    max_tokens: int | None = None
    stream: bool | None = None
    route: str = ROUTE
    stop: Stop | None = None
    """How its answer ends."""
    tool: str | None = None
    """The tool that its answer calls."""


LatencyBounds = tuple[float | None, float | None]
"""The latency that a request asks for, in seconds: of its first token, and of each later one (None: any)."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request as it is sent, and the answer that it is going to get."""

    request: ParsedRequest
    reply: tuple[int, ...]
    """The tokens of the answer."""
    keys: tuple[BlockKey, ...]
    """The keys of the full blocks that prompt and answer fill together."""


def chain_tokens(tokens: Iterable[int], block_tokens: int) -> Prompt:
    """Return the prompt of these tokens, in blocks of `block_tokens`."""
    return blocks.chain(ROOT, tuple(tokens), block_tokens)


def chain_ids(ids: Sequence[Block], id_tokens: float, tokens: int, block_tokens: int) -> Prompt:
    """Return the beginning of a prompt of `tokens` tokens, as far as the ids of a trace name it, in whole blocks.

    Each id stands for `id_tokens` tokens, which may be a fraction. Two prompts share a block if all ids up to the end
    of that block are equal in both.
    """
    count = min(tokens // block_tokens, int(len(ids) * id_tokens / block_tokens))
    last = [min(len(ids), math.ceil((index + 1) * block_tokens / id_tokens)) - 1 for index in range(count)]
    pairs = [part for index, of in enumerate(last) for part in (hash(ids[of]) & ID_BITS, index)]
    keys = blocks.chain(ROOT, pairs, 2).keys
    return Prompt(blocks.chain(ROOT, b"", 1).root, keys, block_tokens, count * block_tokens, (), True)


def append_tokens(prompt: Prompt, tokens: tuple[int, ...]) -> Prompt:
    """Return the prompt with `tokens` behind it."""
    said = (*prompt.tail, *tokens)
    keys = (*prompt.keys, *blocks.extend(prompt, tokens))
    units = prompt.units + len(tokens)
    return Prompt(
        prompt.root, keys, prompt.block_units, units, said[len(said) - units % prompt.block_units :], prompt.in_tokens
    )


class Dialog:
    """What was said in one session so far. It begins with `prefix`; new tokens are numbered from `first_token_id`."""

    def __init__(self, prefix: Prompt, first_token_id: int) -> None:
        self._said, self._next_token_id = prefix, first_token_id

    def next_request(
        self,
        turn: Turn,
        request_id: str,
        session_id: str | None,
        *,
        stream: bool,
        sets_max_tokens: bool,
        bounds_s: LatencyBounds = (None, None),
    ) -> PlannedRequest:
        """Return the next request and append both it and its answer to the dialog.

        With `sets_max_tokens` the request sets max_tokens to the exact length of its answer.
        """
        prompt = append_tokens(self._said, self._new(turn.fresh_tokens))
        reply = self._new(turn.output_tokens)
        self._said = append_tokens(prompt, reply)
        most = turn.output_tokens if sets_max_tokens else turn.max_tokens
        request = ParsedRequest(request_id, turn.route, MODEL, prompt, stream, most, 1, session_id, *bounds_s)
        return PlannedRequest(request, reply, self._said.keys)

    def _new(self, tokens: int) -> tuple[int, ...]:
        first, self._next_token_id = self._next_token_id, self._next_token_id + tokens
        return tuple(range(first, first + tokens))
