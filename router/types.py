"""The frozen nouns every layer speaks of. No behaviour beyond derived properties.

Units: times are float seconds on one monotonic clock that the caller owns; lengths are tokens unless a name says
`units`, which are bytes of text or token ids, whichever the request's chain is made of.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, NewType

EngineId = NewType("EngineId", str)
"""An engine's stable short name, e.g. `engine-0`: safe to show to clients, unlike its URL."""

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
    """The same on the time for each later token."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself; None where it does not (yet)."""

    models: tuple[str, ...] = ()
    order: str | None = None
    block_size: int | None = None
    """Tokens in one block of the engine's prefix cache."""
    capacity_blocks: int | None = None
    plugin_version: str | None = None
    vllm_version: str | None = None


class Booking(NamedTuple):
    """One dispatched request as the load it puts on its engine."""

    serial: int
    """Rises with every dispatch of the whole fleet."""
    engine: EngineId
    dispatched_s: float
    streamed: bool
    """False: no first token will be seen, only the completion."""
    prompt_tokens: float
    hit_tokens: float
    output_tokens: float
    predicted_s: float | None

    @property
    def miss_tokens(self) -> float:
        return self.prompt_tokens - self.hit_tokens


class ReleasedBooking(NamedTuple):
    """A booking that has ended, with the company it had: means over time from its first token (from its dispatch
    if none was seen) to its end, itself not counted."""

    booking: Booking
    first_token_s: float | None
    done_s: float
    other_requests: float
    other_context_tokens: float
    capacity_tokens: float
    """The engine's cache, as in `EngineView`."""


class EngineView(NamedTuple):
    """One engine at the moment of a decision, as the router's own bookings tell it."""

    engine: EngineId
    info: EngineInfo
    in_flight: int
    """Requests dispatched and not yet complete."""
    waiting: int
    """Of those, the streamed ones whose first token has not been seen."""
    waiting_tokens: float = 0.0
    """Predicted uncached prompt tokens of the waiting ones."""
    context_tokens: float = 0.0
    """Prompt tokens of all in flight."""
    capacity_tokens: float = 1.0
    """Size of the engine's cache as it says, or as configured for engines that do not say."""
    head: Booking | None = None
    """The oldest waiting one."""
    head_since_s: float = 0.0
    """When the engine could begin it: at its dispatch, or at the engine's last first token if that came later."""
    oldest_unstreamed: Booking | None = None
    silent_since_s: float = 0.0
    """Its dispatch, or the engine's last sign of life (a first token, a whole answer) if that came later."""
    unstreamed: int = 0
    """Of those in flight, the ones that will show no first token."""


class Candidate(NamedTuple):
    """An eligible engine for one request, with what the prefix index expects it to hold.

    A tuple, as `Score` is: both are made for every engine at every decision.
    """

    view: EngineView
    hit_tokens: float
    """Expected cached prefix, tokens; never more than `prompt_tokens - 1`."""


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


class Score(NamedTuple):
    """One engine's cost for a request, in seconds, term by term; `total_s` is what the policy minimises.

    Policies that only rank (round_robin, least_loaded) put their rank in `total_s`.
    """

    engine: EngineId
    total_s: float
    predicted_s: float | None
    """Predicted end-to-end latency; None from policies that predict none."""
    hit_tokens: float
    terms_s: Mapping[str, float] = MappingProxyType({})
    features: tuple[float, ...] = ()
    """What the policy saw of the engine (`features.Features` for lbgr); it learns from it at completion."""


PLAIN = 4
"""Numbers of a score before its terms, where scores are numbers: total_s, predicted_s, hit_tokens, slowness."""


class Unit(StrEnum):
    """What a score's total counts."""

    SECONDS = "s"
    RANK = "rank"  # of any slowness: the lower goes first, and nothing else is meant by it


class Scores:
    """One policy's scores of all candidates, in their order.

    Made of Scores here; a `ScoreTable` makes each only when it is looked at. `totals_s`: as they count, whoever
    looks; those of engines that the policy did not consider are infinite.
    """

    __slots__ = ("_scores", "totals_s", "unit")

    def __init__(self, scores: Sequence[Score], unit: Unit = Unit.RANK) -> None:
        self._scores, self.unit = scores, unit
        self.totals_s: Sequence[float] = [score.total_s for score in scores]

    @property
    def engines(self) -> list[EngineId]:
        return [score.engine for score in self._scores]

    @property
    def places(self) -> Sequence[int]:
        """Of those that the policy considered."""
        return range(len(self.totals_s))

    def engine(self, place: int) -> EngineId:
        return self._scores[place].engine

    def __len__(self) -> int:
        return len(self.totals_s)

    def __getitem__(self, place: int) -> Score:
        return self._scores[place]

    def __iter__(self) -> Iterator[Score]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scores) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def find(self, engine: EngineId) -> Score:
        """Raises ValueError if it was no candidate."""
        return self[self.place(engine)]

    def place(self, engine: EngineId) -> int:
        """Raises ValueError if it was no candidate."""
        return self.engines.index(engine)

    def table(self, places: Sequence[int]) -> tuple[tuple[str, ...], array[float]]:
        """(names of the terms; for each place its PLAIN numbers, then the terms); nan: none."""
        names = tuple(self[places[0]].terms_s)
        numbers: list[float] = []
        for place in places:
            _, total_s, predicted_s, hit_tokens, terms_s, _ = self[place]
            numbers += total_s, math.nan if predicted_s is None else predicted_s, hit_tokens, math.nan
            numbers += [terms_s.get(name, math.nan) for name in names]
        return names, array("d", numbers)


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

    @property
    def score(self) -> Score:
        """The chosen engine's score."""
        return self.scores.find(self.engine)


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
