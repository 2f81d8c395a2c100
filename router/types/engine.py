"""What is known of an engine, and the load that is booked on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType

EngineId = NewType("EngineId", str)
"""An engine's stable short name, e.g. `engine-0`: safe to show to clients, unlike its URL."""


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
    """A booking that has ended, with what ran beside it: means over the time from its first token (from its dispatch if
    none was seen) to its end, itself not counted."""

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
