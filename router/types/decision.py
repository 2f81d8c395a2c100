"""Where a request goes and why, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from router.types.engine import EngineId
from router.types.request import ParsedRequest
from router.types.scores import Score, Scores


class PrefixExpectation(NamedTuple):
    """What the prefix index expected of the chosen engine; comes back to it with what was observed."""

    blocks: int
    """Index blocks matched, or known to have been sent there."""
    recent: bool
    """The match was confirmed so lately that only a flush or a restart of the engine can have undone it."""
    bins: tuple[tuple[int, int, int], ...] = ()
    """From the survival index: stretches of the match by age, as (bin, first block, block after the last)."""
    serial: int = 0
    """From the survival index: its name for the request."""


NO_EXPECTATION = PrefixExpectation(0, False)


class ShadowChoice(NamedTuple):
    """What a policy that did not decide made of the same candidates."""

    policy: str
    engine: EngineId
    """Its own choice."""
    regret_s: float | None
    """How much more that choice costs by the deciding policy's scores; None where those are no seconds."""
    scores: Scores
    chosen: Score
    """Its score of the engine that got the request."""


@dataclass(slots=True)
class Decision:
    """Where a request goes and why; carries what its completion needs later.

    Nobody changes one. It is not frozen because that would make it three times as dear, at every request.
    """

    request: ParsedRequest
    engine: EngineId
    policy: str
    reason: str
    """`lowest_cost`, `only_engine`, or why `fallback` chose: `fault`, or the policy's own trouble (`cold`, `error`)."""
    predicted_s: float | None
    prompt_tokens: float
    """Estimated length of the prompt, tokens."""
    hit_tokens: float
    """Expected cached prefix on the chosen engine, tokens."""
    output_tokens: float
    """Expected output, tokens."""
    scores: Scores
    """Of the candidates that the policy weighed."""
    score: Score
    """The chosen engine's."""
    booking: int
    """Serial number of the load booked for this decision; released exactly once by `core.Router.complete`. 0: nothing
    is booked, the decision was only asked for."""
    dispatched_s: float
    expectation: PrefixExpectation = NO_EXPECTATION
    tried: tuple[EngineId, ...] = ()
    """Engines that failed the request before."""
    shadows: tuple[ShadowChoice, ...] = ()
    """Of the policies beside the one that decided, and its own where it was not heeded."""
    fallback: str | None = None
    """The policy that chose in place of `policy`: `scores` are its."""
    tokens_per_unit: float = 1.0
    """Tokens that a unit of the prompt was taken for; what is learned of it meanwhile must not change this request."""
    longest_tokens: float = 0.0
    """The longest prefix that any candidate is expected to hold."""


class Ending(StrEnum):
    """How a request ended. Only `OK` teaches the learners."""

    OK = "ok"
    REJECTED = "rejected"  # the engine answered with an HTTP error
    CANCELLED = "cancelled"  # the client left
    TIMEOUT = "timeout"
    ENGINE_LOST = "engine_lost"  # connection refused, reset or cut short
    GATEWAY_FAULT = "gateway_fault"  # an error of ours, logged with its traceback


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of a request from the outside. Times are on the clock of `Decision.dispatched_s`."""

    ending: Ending
    done_s: float
    first_token_s: float | None = None
    """None: not streamed, or ended before the first token."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reply: bytes | tuple[int, ...] = b""
    """What the engine generated, in the units of `Prompt.tail`, as the next turn will repeat it."""
