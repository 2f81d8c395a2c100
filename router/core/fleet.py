"""The fleet: the sole owner of what is known of the engines, which is their health, what they report of themselves, and
the load booked on them.

Load is booked when an engine is chosen (`book`) and released exactly once (`release`), however the request ends. Health
decides which engines may get requests and never changes load. Views are immutable, and made anew only when something
has changed. The time comes in as `now`, from a clock that the caller owns; time that runs backwards is taken as
standing still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from router.types import Booking, Candidate, EngineId, EngineInfo, EngineView, ReleasedBooking


class Change(Enum):
    """What happened to an engine. Whoever keeps something for each engine has to know it."""

    ADDED = auto()
    REMOVED = auto()
    RETURNED = auto()  # it is healthy again, and may have restarted
    RESIZED = auto()  # it reports another cache size or eviction order than before


@dataclass(slots=True)
class _Engine:
    """One engine. Its two integrals over time give the mean load beside any request in O(1)."""

    engine: EngineId
    capacity_tokens: float
    info: EngineInfo = EngineInfo()  # noqa: RUF009 -- frozen
    healthy: bool = False
    draining: bool = False
    waiting: dict[int, Booking] = field(default_factory=dict)  # streamed and without a first token, oldest first
    unstreamed: dict[int, Booking] = field(default_factory=dict)  # oldest first
    in_flight: int = 0
    waiting_tokens: float = 0.0
    context_tokens: float = 0.0
    last_first_token_s: float = float("-inf")
    last_sign_s: float = float("-inf")
    at_s: float = float("-inf")
    requests_s: float = 0.0  # integral of in_flight, request-seconds
    context_s: float = 0.0  # integral of context_tokens, token-seconds
    failure_odds: float = 0.0
    busy_since_s: float = float("-inf")  # when it got a request and had none
    heard_s: float = float("-inf")  # the last sign of life of any kind, bytes of a stream among them
    bare: Candidate | None = None  # the engine as a candidate without hits; None until it is asked for

    def move_to(self, now: float) -> None:
        """Bring the integrals up to `now`. This comes before every change of load."""
        if now > self.at_s:
            if self.in_flight:
                self.requests_s += self.in_flight * (now - self.at_s)
                self.context_s += self.context_tokens * (now - self.at_s)
            self.at_s = now
        self.bare = None

    def leave_queue(self, serial: int) -> None:
        booking = self.waiting.pop(serial, None)
        if booking is not None:
            # A running sum of floats drifts, so an empty queue sets it to exactly zero.
            self.waiting_tokens = self.waiting_tokens - booking.miss_tokens if self.waiting else 0.0

    def candidate(self) -> Candidate:
        """The engine at this moment, as a candidate without hits."""
        if self.bare is None:
            self.bare = Candidate(self._view(), 0.0)
        return self.bare

    def _view(self) -> EngineView:
        head = next(iter(self.waiting.values()), None)
        oldest = next(iter(self.unstreamed.values()), None)
        return EngineView(
            self.engine,
            self.info,
            self.in_flight,
            len(self.waiting),
            self.waiting_tokens,
            self.context_tokens,
            self.capacity_tokens,
            head,
            max(head.dispatched_s, self.last_first_token_s) if head else 0.0,
            oldest,
            max(oldest.dispatched_s, self.last_sign_s) if oldest else 0.0,
            len(self.unstreamed),
            self.failure_odds,
        )


@dataclass(slots=True)
class _Open:
    """A booking that is not yet released, with the integrals of its engine at its first token (before that: at its
    dispatch)."""

    booking: Booking
    engine: _Engine
    since_s: float
    requests_s: float
    context_s: float
    first_token_s: float | None = None

    def mark(self, now: float) -> None:
        self.since_s, self.requests_s, self.context_s = now, self.engine.requests_s, self.engine.context_s

    def end(self, now: float) -> ReleasedBooking:
        elapsed_s = now - self.since_s
        requests, context = 1.0, self.booking.prompt_tokens
        if elapsed_s > 0:
            requests = (self.engine.requests_s - self.requests_s) / elapsed_s
            context = (self.engine.context_s - self.context_s) / elapsed_s
        others, other_context = max(0.0, requests - 1.0), max(0.0, context - self.booking.prompt_tokens)
        capacity_tokens = self.engine.capacity_tokens
        return ReleasedBooking(self.booking, self.first_token_s, now, others, other_context, capacity_tokens)


class _Ready(NamedTuple):
    """The engines that may get requests, which are healthy and do not drain, in the order in which they were added.

    It is made anew when an engine comes, goes or reports something else. In between, only the candidates whose load has
    changed are replaced.
    """

    candidates: list[Candidate]
    places: dict[EngineId, int]
    models: frozenset[str] | None
    """The models that all engines serve which report any; None if no engine reports any."""


class Fleet:
    """All engines. Memory grows with the engines added, and by one booking for each request in flight.

    default_capacity_tokens: the cache size assumed of engines that do not report theirs. listener: called with every
    Change, after it took effect.
    """

    def __init__(self, default_capacity_tokens: float, listener: Callable[[EngineId, Change], None]) -> None:
        self._default_capacity_tokens = float(default_capacity_tokens)
        self._listener = listener
        self._engines: dict[EngineId, _Engine] = {}
        self._open: dict[int, _Open] = {}
        self._serial = 0
        self._ready: _Ready | None = None
        self._changed: set[EngineId] = set()  # engines whose load has changed since `_ready` was brought up to date

    # --- who there is -------------------------------------------------------------------------------------------

    def add(self, engine: EngineId) -> None:
        """Add an engine. It is idle, and not healthy until `set_health` says so. Adding a known one changes nothing."""
        if engine not in self._engines:
            self._engines[engine] = _Engine(engine, self._default_capacity_tokens)
            self._listener(engine, Change.ADDED)

    def remove(self, engine: EngineId) -> None:
        """Remove an engine. Removing an unknown one changes nothing.

        Its open bookings are released as usual, without effect on an engine that is added later under the same id.
        """
        if self._engines.pop(engine, None) is not None:
            self._ready = None
            self._listener(engine, Change.REMOVED)

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._engines

    def ids(self) -> tuple[EngineId, ...]:
        return tuple(self._engines)

    def healthy(self, engine: EngineId) -> bool:
        """Whether the engine is well. Raises KeyError for an unknown engine, as `view` and the setters do."""
        return self._engines[engine].healthy

    def set_health(self, engine: EngineId, healthy: bool) -> None:
        state = self._engines[engine]
        returned = healthy and not state.healthy
        state.healthy, self._ready = healthy, None
        if returned:
            self._listener(engine, Change.RETURNED)

    def draining(self, engine: EngineId) -> bool:
        """Whether the engine gets no new requests, because somebody wants it so."""
        return self._engines[engine].draining

    def set_draining(self, engine: EngineId, draining: bool) -> None:
        self._engines[engine].draining, self._ready = draining, None

    def drained(self, engine: EngineId) -> bool:
        """Whether the engine is draining and has no request left. False for an unknown one."""
        state = self._engines.get(engine)
        return state is not None and state.draining and not state.in_flight

    def set_info(self, engine: EngineId, info: EngineInfo) -> None:
        state = self._engines[engine]
        if info == state.info:
            return
        before = state.info
        state.info, state.bare, self._ready = info, None, None
        reported_tokens = (info.capacity_blocks or 0) * (info.block_size or 0)
        state.capacity_tokens = float(reported_tokens) if reported_tokens > 0 else self._default_capacity_tokens
        cache = info.capacity_blocks, info.block_size, info.order
        if (before.capacity_blocks, before.block_size, before.order) != cache:
            self._listener(engine, Change.RESIZED)

    def set_failure_odds(self, engine: EngineId, odds: float) -> None:
        """Set what the views tell of the engine's failures; see `EngineView.failure_odds`."""
        state = self._engines[engine]
        if odds != state.failure_odds:
            state.failure_odds, state.bare = odds, None
            self._changed.add(engine)

    def view(self, engine: EngineId) -> EngineView:
        return self._engines[engine].candidate().view

    def views(self) -> list[EngineView]:
        """The views of the engines that may get requests, in the order in which they were added."""
        return [view for view, _ in self.candidates()[0]]

    def candidates(self) -> tuple[list[Candidate], Mapping[EngineId, int]]:
        """The engines that may get requests, as candidates without hits: a list that the caller may change, and each
        engine's place in it."""
        ready = self._ready or self._gather()
        for engine in self._changed:
            if engine in ready.places:
                ready.candidates[ready.places[engine]] = self._engines[engine].candidate()
        self._changed.clear()
        return ready.candidates.copy(), ready.places

    def all_serve(self, model: str) -> bool:
        """Whether every engine that may get requests and reports its models serves this one."""
        models = (self._ready or self._gather()).models
        return models is None or model in models

    def _gather(self) -> _Ready:
        ready = [engine for engine in self._engines.values() if engine.healthy and not engine.draining]
        reported = [frozenset(engine.info.models) for engine in ready if engine.info.models]
        self._ready = _Ready(
            [engine.candidate() for engine in ready],
            {engine.engine: place for place, engine in enumerate(ready)},
            frozenset.intersection(*reported) if reported else None,
        )
        return self._ready

    # --- signs of life ------------------------------------------------------------------------------------------

    def heard(self, engine: EngineId, now: float) -> None:
        """Bytes of an answer have come from the engine. Nothing happens for an unknown one."""
        state = self._engines.get(engine)
        if state is not None:
            state.heard_s = max(state.heard_s, now)

    def silent_s(self, engine: EngineId, now: float) -> float:
        """How long the engine has had requests and given no sign of life; 0 if it has none."""
        state = self._engines[engine]
        if not state.in_flight:
            return 0.0
        return max(0.0, now - max(state.busy_since_s, state.last_first_token_s, state.last_sign_s, state.heard_s))

    # --- load ---------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The open bookings of the whole fleet, including those on removed engines."""
        return len(self._open)

    def book(
        self,
        engine: EngineId,
        now: float,
        *,
        streamed: bool,
        prompt_tokens: float,
        hit_tokens: float,
        output_tokens: float,
        predicted_s: float | None,
    ) -> Booking:
        """Book the load of one request on an engine. Raises KeyError for an unknown engine."""
        state = self._engines[engine]
        self._move(state, now)
        self._serial += 1
        booking = Booking(self._serial, engine, now, streamed, prompt_tokens, hit_tokens, output_tokens, predicted_s)
        if not state.in_flight:
            state.busy_since_s = state.at_s
        state.in_flight += 1
        state.context_tokens += prompt_tokens
        if streamed:
            state.waiting[booking.serial] = booking
            state.waiting_tokens += booking.miss_tokens
        else:
            state.unstreamed[booking.serial] = booking
        self._open[booking.serial] = _Open(booking, state, state.at_s, state.requests_s, state.context_s)
        return booking

    def first_token(self, serial: int, now: float) -> Booking | None:
        """Note the first token of a streamed request and return its booking.

        Return None if the request is over, is not streamed, or has had its first token.
        """
        entry = self._open.get(serial)
        if entry is None or entry.first_token_s is not None or not entry.booking.streamed:
            return None
        state = entry.engine
        self._move(state, now)
        state.leave_queue(serial)
        state.last_first_token_s = state.last_sign_s = state.at_s
        entry.first_token_s = state.at_s
        entry.mark(state.at_s)
        return entry.booking

    def release(self, serial: int, now: float, *, answered: bool) -> ReleasedBooking | None:
        """Release a booking; None if it has been released already. answered: the engine gave its whole answer."""
        entry = self._open.pop(serial, None)
        if entry is None:
            return None
        state = entry.engine
        self._move(state, now)
        released = entry.end(state.at_s)
        state.leave_queue(serial)
        state.unstreamed.pop(serial, None)
        state.in_flight -= 1
        assert state.in_flight >= 0
        left = state.context_tokens - entry.booking.prompt_tokens
        state.context_tokens = left if state.in_flight else 0.0
        if answered:
            state.last_sign_s = state.at_s
        return released

    def _move(self, state: _Engine, now: float) -> None:
        """Prepare an engine for a change of its load."""
        state.move_to(now)
        self._changed.add(state.engine)
