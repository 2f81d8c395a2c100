"""What a simulated client says, token by token, so that the router and the engines chain it as they do in the gateway.

A dialog's next prompt is all that was said so far, answers included, and the turn's new tokens. Nobody reads the
tokens: they only have to be equal where prompts share a prefix, and new elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.prefix import blocks
from router.sim.trace import Block
from router.types import BlockKey, ParsedRequest, Prompt

MODEL = "simulated"
ROUTE = "/v1/completions"
ROOT = b""
ID_BITS = (1 << 63) - 1  # ids are chained as signed 64-bit integers


@dataclass(frozen=True, slots=True)
class Turn:
    """pause_s: from the answer before it, or the session's arrival; fresh_tokens: of its own, behind the dialog. What
    follows is known of recorded traffic only."""

    pause_s: float
    fresh_tokens: int
    output_tokens: int
    abandon_after_s: float | None = None
    """The client leaves so long after it asked, the answer being longer than `output_tokens`; None: it stays."""
    max_tokens: int | None = None
    stream: bool | None = None
    route: str = ROUTE


LatencyBounds = tuple[float | None, float | None]
"""Seconds: on the first token, on each later one."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request. keys: of the full blocks that prompt and answer fill together."""

    request: ParsedRequest
    reply: tuple[int, ...]
    keys: tuple[BlockKey, ...]


def chain_tokens(tokens: Iterable[int], block_tokens: int) -> Prompt:
    return blocks.chain(ROOT, tuple(tokens), block_tokens)


def chain_ids(ids: Sequence[Block], id_tokens: float, tokens: int, block_tokens: int) -> Prompt:
    """As many whole blocks of a prompt of `tokens` as the ids of a trace name, `id_tokens` a piece.

    Equal ids behind equal ids are equal blocks; a block that reaches into several ids needs them all to be equal.
    """
    count = min(tokens // block_tokens, int(len(ids) * id_tokens / block_tokens))
    last = [min(len(ids), math.ceil((index + 1) * block_tokens / id_tokens)) - 1 for index in range(count)]
    pairs = [part for index, of in enumerate(last) for part in (hash(ids[of]) & ID_BITS, index)]
    keys = blocks.chain(ROOT, pairs, 2).keys
    return Prompt(blocks.chain(ROOT, b"", 1).root, keys, block_tokens, count * block_tokens, (), True)


def append_tokens(prompt: Prompt, tokens: tuple[int, ...]) -> Prompt:
    """The prompt with `tokens` behind it."""
    said = (*prompt.tail, *tokens)
    keys = (*prompt.keys, *blocks.extend(prompt, tokens))
    units = prompt.units + len(tokens)
    return Prompt(
        prompt.root, keys, prompt.block_units, units, said[len(said) - units % prompt.block_units :], prompt.in_tokens
    )


class Dialog:
    """One session's talk so far. `token`: the first of the ids for what is new in it."""

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
        """The next request, as if it were answered already. `name`: its id; `told`: it says how long it will be."""
        prompt = append_tokens(self._said, self._new(turn.fresh_tokens))
        reply = self._new(turn.output_tokens)
        self._said = append_tokens(prompt, reply)
        most = turn.output_tokens if sets_max_tokens else turn.max_tokens
        request = ParsedRequest(request_id, turn.route, MODEL, prompt, stream, most, 1, session_id, *bounds_s)
        return PlannedRequest(request, reply, self._said.keys)

    def _new(self, tokens: int) -> tuple[int, ...]:
        first, self._next_token_id = self._next_token_id, self._next_token_id + tokens
        return tuple(range(first, first + tokens))
