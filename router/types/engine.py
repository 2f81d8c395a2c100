"""What is known of an engine, and the load booked on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType

EngineId = NewType("EngineId", str)
"""The stable short name of an engine, such as `engine-0`. Unlike its URL, it may be shown to clients."""

WorkerId = NewType("WorkerId", str)
"""The name of a server of engines, at one base URL. If it has one engine, that has the same name."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine reports of itself; None for what it has not reported."""

    models: tuple[str, ...] = ()
    order: str | None = None
    block_size: int | None = None
    """The tokens in one block of the engine's prefix cache."""
    capacity_blocks: int | None = None
    plugin_version: str | None = None
    vllm_version: str | None = None


class Booking(NamedTuple):
    """The load that one dispatched request puts on its engine."""

    serial: int
    """It rises with every dispatch in the whole fleet."""
    engine: EngineId
    dispatched_s: float
    streamed: bool
    """False: the router will see no first token, only the completion."""
    prompt_tokens: float
    hit_tokens: float
    output_tokens: float
    predicted_s: float | None

    @property
    def miss_tokens(self) -> float:
        return self.prompt_tokens - self.hit_tokens


class ReleasedBooking(NamedTuple):
    """A booking that has ended, with the load that shared its engine.

    That load is a mean over the time from the request's first token (from its dispatch if none was seen) to its end. It
    leaves the request itself out.
    """

    booking: Booking
    first_token_s: float | None
    done_s: float
    other_requests: float
    other_context_tokens: float
    capacity_tokens: float
    """The size of the engine's cache, as in `EngineView`."""


class EngineView(NamedTuple):
    """One engine at the moment of a decision, as far as the router knows it from its own bookings."""

    engine: EngineId
    info: EngineInfo
    in_flight: int
    """Requests dispatched and not yet complete."""
    waiting: int
    """The streamed ones among them whose first token has not been seen."""
    waiting_tokens: float = 0.0
    """The prompt tokens of the waiting requests that are expected not to be cached."""
    context_tokens: float = 0.0
    """The prompt tokens of all requests in flight."""
    capacity_tokens: float = 1.0
    """The size of the engine's cache as the engine reports it, or as configured for engines that do not."""
    head: Booking | None = None
    """The oldest waiting request."""
    head_since_s: float = 0.0
    """When the engine could begin `head`: at its dispatch, or at the engine's latest first token if that came later."""
    oldest_unstreamed: Booking | None = None
    """The oldest unstreamed request in flight."""
    silent_since_s: float = 0.0
    """When `oldest_unstreamed` was dispatched, or the engine's last sign of life (a first token, a whole answer) if
    that came later."""
    unstreamed: int = 0
    """The requests in flight that are not streamed, so that their first token will not be seen."""
    failure_odds: float = 0.0
    """How many tries on the engine are expected to fail before one succeeds (`core.reliability`)."""


class Candidate(NamedTuple):
    """An engine that may get the request, with the prefix that the index expects on it.

    It is a tuple, which is cheap to make, because one is made for every engine that holds a prefix of the prompt.
    """

    view: EngineView
    hit_tokens: float
    """The expected cached prefix; at most `prompt_tokens - 1`, since an engine always computes the last token."""
