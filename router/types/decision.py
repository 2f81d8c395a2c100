"""The decision for a request, with its reasons, and the outcome of the request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from router.types.engine import EngineId
from router.types.request import BlockKey, ParsedRequest
from router.types.scores import Score, Scores
from router.types.stop import Stop


class Telling(NamedTuple):
    """The block of a match that tells most of whether its engine has lost its cache (`prefix.restart_watch`)."""

    block: int
    """Its place in the prompt. The blocks before it are cached in any case."""
    chance: float
    """How likely it is cached if the engine has not lost its cache."""
    number: int
    """Which suspicion against the engine it was chosen under."""


class PrefixExpectation(NamedTuple):
    """The prefix that the index expects on the chosen engine. It is given back to the index with what was observed."""

    blocks: int
    """Blocks of the index that matched, or that are known to have been sent to the engine."""
    telling: Telling | None
    """None: whatever the engine reports, it says nothing of a restart."""
    bins: tuple[tuple[int, int, int], ...] = ()
    """Set by the survival index: the match divided by age, as (age bin, first block, block after the last)."""
    serial: int = 0
    """The number by which the index knows what it booked: the request, or its touch of the blocks that were new."""


NO_EXPECTATION = PrefixExpectation(0, None)


class ShadowChoice(NamedTuple):
    """The choice of a policy that did not decide, made among the same candidates."""

    policy: str
    engine: EngineId
    """The engine that the policy would have chosen."""
    regret_s: float | None
    """How much more that engine costs by the scores of the deciding policy; None where those are not seconds."""
    scores: Scores
    chosen: Score
    """The policy's score of the engine that got the request."""


@dataclass(slots=True)
class Decision:
    """Which engine a request goes to and why, with all that is needed when the request is over.

    No code changes a decision once it is made. The class is not frozen, because a frozen one takes three times as long
    to make, and one is made for every request.
    """

    request: ParsedRequest
    engine: EngineId
    policy: str
    reason: str
    """`lowest_cost`, `only_engine`, or why `fallback` chose: `fault`, or what the policy says of itself (`cold`,
    `error`)."""
    predicted_s: float | None
    prompt_tokens: float
    """The estimated length of the prompt."""
    hit_tokens: float
    """The part of the prompt that is expected in the cache of the chosen engine."""
    output_tokens: float
    """The expected length of the output."""
    scores: Scores
    """The scores of the candidates that the policy weighed."""
    score: Score
    """The score of the chosen engine."""
    booking: int
    """The serial number of the load booked for this decision, which `core.Router.complete` releases exactly once.
    0: nothing is booked, because the decision was only asked for."""
    dispatched_s: float
    expectation: PrefixExpectation = NO_EXPECTATION
    tried: tuple[EngineId, ...] = ()
    """The engines on which the request has failed already."""
    shadows: tuple[ShadowChoice, ...] = ()
    """The choices of the policies that did not decide, and of the deciding one where `fallback` chose instead."""
    fallback: str | None = None
    """The policy that chose in place of `policy` and gave `scores`; None: `policy` itself did."""
    tokens_per_unit: float = 1.0
    """The tokens assumed for each unit of the prompt. The request keeps this number, although the router may learn a
    better one meanwhile."""
    longest_tokens: float = 0.0
    """The longest prefix, in tokens, that any candidate is expected to hold."""
    conversation: str | None = None
    """The id of the session that the request belongs to (`core.sessions`); None: it belongs to none."""
    held_s: float = 0.0
    """For how long the request was held before it was placed (`core.holding`)."""
    resumed: bool = False
    """Another router placed the request (`core.Router.resume`). No policy here scored it, so none hears of it."""


class Placement(Protocol):
    """What the data path needs of a decision; `Decision` says what each part is."""

    @property
    def request(self) -> ParsedRequest: ...
    @property
    def engine(self) -> EngineId: ...
    @property
    def policy(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def fallback(self) -> str | None: ...
    @property
    def predicted_s(self) -> float | None: ...
    @property
    def prompt_tokens(self) -> float: ...
    @property
    def booking(self) -> int: ...
    @property
    def dispatched_s(self) -> float: ...
    @property
    def conversation(self) -> str | None: ...
    @property
    def held_s(self) -> float: ...


class Ending(StrEnum):
    """How a request ended. Only `OK` teaches the learners."""

    OK = "ok"
    REJECTED = "rejected"  # the engine refused the request for what is in it, with an HTTP error of the client's kind
    CANCELLED = "cancelled"  # the client left
    TIMEOUT = "timeout"
    ENGINE_LOST = "engine_lost"  # connection refused, reset or cut short
    ENGINE_FAILED = "engine_failed"  # the engine answered that it is too busy or has failed (429 or 5xx)
    GATEWAY_FAULT = "gateway_fault"  # an error of the gateway itself, logged with its traceback


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the gateway saw of a request that is over. Times are on the clock of `Decision.dispatched_s`."""

    ending: Ending
    done_s: float
    first_token_s: float | None = None
    """None: the answer was not streamed, or ended before its first token."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reply_keys: tuple[BlockKey, ...] = ()
    """Keys of the blocks that the reply adds to those of the prompt (`prefix.blocks.extend`)."""
    stop: Stop = Stop.UNKNOWN
    tool: str | None = None
    """The name of the tool that was called, of several the first one; None: none was, or it has no name."""
