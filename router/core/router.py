"""The router, without any I/O: it takes a request and returns an explained decision, then takes the outcome and learns.

The gateway drives it with real time, and tests and the simulator with clocks of their own. It is single-threaded by
design: one call both chooses an engine and books the load on it, so no two requests are placed by the same stale load.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from router.core.cache_observation import observe_cache
from router.core.decision_log import DecisionLog, LoggedDecision
from router.core.experiment import Choice, Create, Experiment
from router.core.fleet import Change, Fleet
from router.core.holding import Held, Holding
from router.core.learned_state import LearnedState
from router.core.options import RoutingOptions
from router.core.reliability import Reliability
from router.core.sessions import LEAST_BLOCKS, Session, Sessions
from router.core.status import AgreementStatus, ArmStatus, EngineStatus, RouterStatus
from router.core.working_set import WorkingSet, is_heavy
from router.errors import NoEngine, NotFound
from router.learners.estimates import OutputLength, TokenRatio, length_classes
from router.learners.prediction_error import DriftAlarm
from router.learners.return_times import ReturnTimes
from router.policies.base import RoutingContext
from router.policies.least_loaded import LeastLoaded
from router.policies.table import create as create_policy
from router.prefix.index import LRU_ORDERS, Match, PrefixIndex
from router.types import (
    NO_EXPECTATION,
    BlockKey,
    Booking,
    Candidate,
    Decision,
    Ending,
    EngineId,
    EngineInfo,
    EngineView,
    Outcome,
    ParsedRequest,
    ReleasedBooking,
    Score,
    Scores,
    Unit,
)


class _Found(NamedTuple):
    """The engines that may get a request, and what the prefix index holds of its prompt."""

    candidates: list[Candidate]
    match: Match
    longest_tokens: float
    """The longest prefix that any of them is expected to hold."""
    prompt_tokens: float
    tokens_per_unit: float


class _Prepared(NamedTuple):
    """The inputs of a decision: the request as policies see it, and as in `_Found`."""

    routing: RoutingContext
    candidates: list[Candidate]
    match: Match


NO_EXCESS: Mapping[EngineId, float] = MappingProxyType({})
SILENT_S, SILENT_FACTOR = 30.0, 4.0  # `Router.is_silent`


class Router:
    """Chooses an engine for every request, and learns from the outcome.

    policies: the options of the policies (`policies.table.PolicyOptions`); None: all at their defaults. rng: the only
    source of chance. create: makes a policy by its name; None: the policy table does. session_prefix: begins the ids of
    sessions. timer: a clock in seconds that measures how long policies take.
    """

    def __init__(
        self,
        options: RoutingOptions,
        policies: Any = None,
        *,
        rng: random.Random,
        create: Create | None = None,
        session_prefix: str = "s",
        timer: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._fleet = Fleet(options.default_capacity_tokens, self._engine_changed)
        self._log = DecisionLog(options.decision_log_size)
        self._drift = DriftAlarm(options.drift_answers, options.drift_bound)
        self._reliability = Reliability()
        self._rng = rng
        self._index = PrefixIndex(options.prefix_index_blocks)
        self._ratios = TokenRatio()
        self._lengths = OutputLength(options.default_output_tokens)
        fallbacks = create_policy(options.fallback_policy, policies), LeastLoaded()
        self._experiment = Experiment(
            create or (lambda name: create_policy(name, policies)), fallbacks, rng=rng, timer=timer
        )
        self._experiment.assign({options.policy: 1.0}, options.shadow)
        self._working_set = WorkingSet()
        self.holding = Holding(self._working_set, options.session_hold_secs)
        most_sessions = max(1, options.prefix_index_blocks // LEAST_BLOCKS)
        self.sessions = Sessions(ReturnTimes(), self._working_set, session_prefix, most_sessions)
        self.on_idle: Callable[[Session], None] = lambda _: None
        """Called when the last answer of a session has ended."""
        self.on_out: Callable[[EngineId], None] = lambda _: None
        """Called when an engine was taken out whose requests other engines can serve (`take_out`)."""
        self.on_drained: Callable[[EngineId], None] = lambda _: None
        """Called when the last request of an engine that is draining has ended (`set_draining`)."""
        self.learned = LearnedState(self._lengths, self._ratios, self._index, self._experiment, self._fleet.ids)
        """What the router has learned, for whoever keeps it across restarts."""

    # --- a request's life ---------------------------------------------------------------------------------------

    def hold(self, request: ParsedRequest, now: float, go: Callable[[], None]) -> Held | None:
        """Whether the request, which has come just now, must wait before `route` (`core.holding`); None: it need not.

        If it must, `go` is called once when it may be placed, and `holding.let_in` is to be called at its `until_s`.
        """
        if not self.holding.longest_s or request.choices != 1 or not request.generates:
            return None
        prompt_tokens = request.prompt.units * self._tokens_per_unit(request)
        output_tokens = self._expected_output_tokens(request)
        session = self.sessions.find(request) if is_heavy(prompt_tokens, output_tokens) else None
        if session is None or session.running:
            return None

        def views() -> list[EngineView]:
            return [view for view in self._fleet.views() if _serves(view, request.model)]

        def lost() -> float:
            return min(prompt_tokens, session.context_tokens) - self._find(request, now, ()).longest_tokens

        lengths = prompt_tokens, output_tokens, session.own_tokens(prompt_tokens)
        return self.holding.hold(session.id, *lengths, lost, views, go, now)

    def route(
        self, request: ParsedRequest, now: float, *, exclude: Collection[EngineId] = (), held_s: float = 0.0
    ) -> Decision:
        """Choose an engine and book the request's load on it, in one step.

        exclude: the engines that have been tried already. held_s: for how long it was held. Raises NotFound if no
        engine serves the model, and NoEngine if no engine that serves it can take the request now.
        """
        conversation = self.sessions.arrive(request, now - held_s, again=bool(exclude))
        routing, candidates, match = self._prepare(request, now, exclude, conversation, held_s)
        choice = self._experiment.choose(routing, candidates)
        booking = self._book(routing, choice.chosen)
        block_tokens = request.prompt.block_units * routing.tokens_per_unit
        expectation = self._index.book(choice.chosen.engine, request.prompt.keys, match, block_tokens)
        decision = choice.decision(routing, booking.serial, expectation, tuple(exclude))
        self._experiment.dispatched(decision)
        if self.sessions.dispatched(decision):
            self.holding.reused(decision.hit_tokens, self._fleet.view(decision.engine).capacity_tokens)
        self._log.open(decision)
        return decision

    def resume(
        self,
        request: ParsedRequest,
        engine: EngineId,
        *,
        policy: str,
        reason: str,
        fallback: str | None,
        dispatched_s: float,
        first_token_s: float | None,
    ) -> Decision:
        """Book the load of a request that is running already, because another router placed it.

        Its engine may be unhealthy. The policies do not hear of the request, because none of them scored it; lengths
        and the prefix index learn from its end as usual. policy, reason, fallback: as the other router told them.
        Raises KeyError for an unknown engine.
        """
        tokens_per_unit = self._tokens_per_unit(request)
        prompt_tokens = request.prompt.units * tokens_per_unit
        output_tokens = self._expected_output_tokens(request)
        score = Score(engine, 0.0, Unit.RANK, None, 0.0)
        conversation = self.sessions.arrive(request, dispatched_s, again=False)
        routing = RoutingContext(
            request, prompt_tokens, output_tokens, dispatched_s, 0.0, 0.0, tokens_per_unit, conversation
        )
        booking = self._book(routing, score)
        match = self._index.match(request.prompt.keys)
        block_tokens = request.prompt.block_units * tokens_per_unit
        expectation = self._index.book(engine, request.prompt.keys, match, block_tokens)
        choice = Choice(policy, Scores([], array("d"), Unit.RANK), score, reason, (), fallback)
        decision = replace(choice.decision(routing, booking.serial, expectation, ()), resumed=True)
        self.sessions.dispatched(decision)
        self._log.open(decision)
        if first_token_s is not None:
            self.first_token(decision, first_token_s)
        return decision

    def first_token(self, decision: Decision, now: float) -> None:
        """The first token of a streamed request was seen.

        Nothing happens if that is known already, or if the request is over or is not streamed.
        """
        booking = self._fleet.first_token(decision.booking, now)
        if booking is not None and decision.engine in self._fleet and not decision.resumed:
            self._experiment.first_token(decision, now)

    def complete(self, decision: Decision, outcome: Outcome) -> None:
        """The request is over: release its load, and learn from it if it went well. Repeated calls do nothing."""
        answered = outcome.ending is Ending.OK
        released = self._fleet.release(decision.booking, outcome.done_s, answered=answered)
        if released is None:
            return
        self._learn_failures(decision, outcome)
        if answered and decision.request.choices == 1:
            self._learn_lengths(decision.request, outcome)
        if decision.engine in self._fleet and not decision.resumed:
            self._experiment.learn(decision, released, outcome)
            if answered and decision.predicted_s is not None and decision.request.generates:
                self._drift.learn_one(decision.engine, decision.predicted_s, outcome.done_s - decision.dispatched_s)
        self._settle(decision, released, outcome)
        if (idle := self.sessions.completed(decision, outcome)) is not None:
            self.on_idle(idle)
        self.holding.let_in(outcome.done_s)
        self._log.close(decision, outcome)
        if self._fleet.drained(decision.engine):
            self.on_drained(decision.engine)

    # --- the engines --------------------------------------------------------------------------------------------

    def __contains__(self, engine: EngineId) -> bool:
        return engine in self._fleet

    def add_engine(self, engine: EngineId, *, joins: bool = False) -> None:
        """Add an engine. It is idle, and not healthy until `set_health` says so. Adding a known one changes nothing.

        joins: the fleet is serving already, so the engine's share shall grow slowly.
        """
        if joins and engine not in self._fleet:
            self._reliability.joins(engine)
        self._fleet.add(engine)

    def remove_engine(self, engine: EngineId) -> None:
        """Remove an engine. Requests that are still in flight on it are released as usual when they end."""
        self._fleet.remove(engine)

    def healthy(self, engine: EngineId) -> bool:
        """Whether the engine is well. Raises KeyError for an unknown engine, as the setters do."""
        return self._fleet.healthy(engine)

    def set_health(self, engine: EngineId, healthy: bool) -> None:
        """Say whether the engine is well: only then it may get requests."""
        self._fleet.set_health(engine, healthy)

    def set_draining(self, engine: EngineId, draining: bool) -> None:
        """Say whether the engine shall get no new requests, however well it is. Those that run go on."""
        self._fleet.set_draining(engine, draining)

    def drained(self, engine: EngineId) -> bool:
        """Whether the engine is draining and no request is left on it. False for an unknown one."""
        return self._fleet.drained(engine)

    def take_out(self, engine: EngineId) -> None:
        """The engine is found to be down or to hang: it gets no requests until `set_health` says so.

        If another engine serves what it serves, `on_out` is called: the requests that wait for it shall be moved.
        """
        self.set_health(engine, False)
        models = self._fleet.view(engine).info.models
        if any(all(_serves(view, model) for model in models) for view in self._fleet.views()):
            self.on_out(engine)

    def heard(self, engine: EngineId, now: float) -> None:
        """Bytes of some answer have come from the engine, so it is alive. To be told about once a second."""
        self._fleet.heard(engine, now)

    def is_silent(self, engine: EngineId, now: float) -> bool:
        """Whether the engine has had requests for so long without any sign of life that it may hang.

        That is SILENT_S, or SILENT_FACTOR times the predicted latency of its oldest requests if that is longer. Raises
        KeyError for an unknown engine.
        """
        view = self._fleet.view(engine)
        oldest = [each for each in (view.head, view.oldest_unstreamed) if each is not None]
        longest_s = max([each.predicted_s or 0.0 for each in oldest], default=0.0)
        return self._fleet.silent_s(engine, now) > max(SILENT_S, SILENT_FACTOR * longest_s)

    def models(self, engine: EngineId) -> tuple[str, ...]:
        """The models that the engine reports. Raises KeyError for an unknown engine."""
        return self._fleet.view(engine).info.models

    def set_info(self, engine: EngineId, info: EngineInfo) -> None:
        """Take in what an engine reports of itself."""
        self._fleet.set_info(engine, info)

    # --- policies and past decisions ----------------------------------------------------------------------------

    def assign(self, shares: Mapping[str, float], shadows: Sequence[str] | None = None) -> None:
        """Set which policies decide from now on, and with what shares, as `Experiment.assign` does.

        Raises ConfigError for an unknown name.
        """
        self._experiment.assign(shares, shadows)
        self._drift.clear()

    def explain(self, request: ParsedRequest, now: float) -> Decision:
        """Return what `route` would decide now, and why. Raises as `route` does.

        Nothing is booked and nothing changes, not even the state of the random generator.
        """
        rng_state = self._rng.getstate()
        try:
            session = self.sessions.find(request)
            routing, candidates, _ = self._prepare(request, now, (), None if session is None else session.id)
            return self._experiment.choose(routing, candidates).decision(routing, 0, NO_EXPECTATION, ())
        finally:
            self._rng.setstate(rng_state)

    def find_decisions(self, request_id: str) -> list[LoggedDecision]:
        """The tries of the newest request of that id, in their order; empty if the log holds none."""
        return self._log.find(request_id)

    def newest_decisions(self, limit: int) -> list[LoggedDecision]:
        """The last decisions, at most `limit`, newest first."""
        return self._log.newest(limit)

    # --- status -------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The number of requests that are not complete."""
        return self._fleet.in_flight

    @property
    def index_blocks(self) -> int:
        """The number of (block, engine) pairs in the prefix index."""
        return len(self._index)

    def status(self) -> RouterStatus:
        """The state of the router at this moment."""
        experiment = self._experiment
        return RouterStatus(
            policy=experiment.lead.name,
            engines={engine: self._status_of(engine) for engine in self._fleet.ids()},
            arms=tuple(ArmStatus(arm.name, arm.share, arm.faults, arm.seconds) for arm in experiment.arms),
            agreements=tuple(
                AgreementStatus(policy, shadow, each.decisions, each.agreed, each.regret_s)
                for (policy, shadow), each in experiment.agreements.items()
            ),
            faults=experiment.faults,
            in_flight=self._fleet.in_flight,
            index_blocks=len(self._index),
            sessions=self.sessions.status(),
            holding=self.holding.status(),
        )

    def _status_of(self, engine: EngineId) -> EngineStatus:
        view, drift = self._fleet.view(engine), self._drift
        return EngineStatus(
            engine,
            self._fleet.healthy(engine),
            view.info,
            view.in_flight,
            drift.mean(engine),
            drift.alarms().get(engine),
            self._reliability.share(engine),
            view.failure_odds / (1.0 + view.failure_odds),
            self._reliability.ejections.get(engine, 0),
            self._fleet.draining(engine),
        )

    def describe(self, engine: EngineId) -> dict[str, object]:
        """What was learned of one engine, in JSON types only. Raises KeyError for an unknown one."""
        lead = self._experiment.lead
        return {
            "policy": lead.name,
            "in_flight": self._fleet.view(engine).in_flight,
            "index_blocks": self._index.blocks(engine),
            "learned_capacity_tokens": round(self._index.capacity_tokens(engine)),
            **lead.describe(engine),
        }

    # --- preparing the choice -----------------------------------------------------------------------------------

    def _prepare(
        self,
        request: ParsedRequest,
        now: float,
        exclude: Collection[EngineId],
        conversation: str | None,
        held_s: float = 0.0,
    ) -> _Prepared:
        candidates, match, longest_tokens, prompt_tokens, tokens_per_unit = self._find(request, now, exclude)
        output_tokens = self._expected_output_tokens(request)
        excess_tokens: Mapping[EngineId, float] = NO_EXCESS
        if conversation is not None and len(candidates) > 1 and is_heavy(prompt_tokens, output_tokens):
            self._working_set.renew([view for view, _ in candidates], now)
            if self._working_set.protects:
                excess_tokens = self._excess(conversation, candidates, prompt_tokens, longest_tokens)
        routing = RoutingContext(
            request,
            prompt_tokens,
            output_tokens,
            now,
            self._rng.random(),
            longest_tokens,
            tokens_per_unit,
            conversation,
            excess_tokens,
            held_s,
        )
        return _Prepared(routing, candidates, match)

    def _excess(
        self, conversation: str, candidates: Sequence[Candidate], prompt_tokens: float, longest_tokens: float
    ) -> Mapping[EngineId, float]:
        """By how many tokens the session would not fit each engine's cache, of those where it does not."""
        session = self.sessions.get(conversation)
        if session is None:
            return NO_EXCESS
        own_tokens = session.own_tokens(prompt_tokens, longest_tokens)
        excess = ((view.engine, self._working_set.excess(view, conversation, own_tokens)) for view, _ in candidates)
        return {engine: tokens for engine, tokens in excess if tokens}

    def _find(self, request: ParsedRequest, now: float, exclude: Collection[EngineId]) -> _Found:
        """Raises NotFound and NoEngine as `route` does."""
        candidates, places = self._eligible(request.model, exclude, now)
        tokens_per_unit = self._tokens_per_unit(request)
        prompt_tokens = request.prompt.units * tokens_per_unit
        block_tokens = request.prompt.block_units * tokens_per_unit
        match = self._index.match(request.prompt.keys)
        longest_tokens = 0.0
        if match.blocks:
            max_hit_tokens = max(0.0, prompt_tokens - 1)  # an engine always computes the last token
            for engine, held in match.blocks.items():
                if engine in places:
                    view = candidates[places[engine]].view
                    hit_tokens = _usable_tokens(view, min(held * block_tokens, max_hit_tokens))
                    candidates[places[engine]] = Candidate(view, hit_tokens)
                    longest_tokens = max(longest_tokens, hit_tokens)
        return _Found(candidates, match, longest_tokens, prompt_tokens, tokens_per_unit)

    def _eligible(
        self, model: str, exclude: Collection[EngineId], now: float
    ) -> tuple[list[Candidate], Mapping[EngineId, int]]:
        """Return the engines that may get the request, and the place of each in that list.

        These are the healthy engines that do not drain, are not excluded, and serve the model or do not report what
        they serve, without those that `reliability` leaves out. Raises NotFound and NoEngine as `route` does.
        """
        candidates, places = self._fleet.candidates()
        if exclude or self._reliability.limits or (model and not self._fleet.all_serve(model)):
            candidates = [c for c in candidates if c.view.engine not in exclude and _serves(c.view, model)]
            candidates = self._reliability.admit(candidates, now)
            places = {view.engine: place for place, (view, _) in enumerate(candidates)}
        if candidates:
            return candidates, places
        known = [self._fleet.view(engine) for engine in self._fleet.ids()]
        if known and not any(_serves(view, model) for view in known):
            raise NotFound(f"The model `{model}` does not exist.", param="model")
        raise NoEngine("No engine can take the request at the moment.")

    def _expected_output_tokens(self, request: ParsedRequest) -> float:
        expected_tokens = self._lengths.predict_one(length_classes(request))
        return expected_tokens if request.max_tokens is None else min(expected_tokens, float(request.max_tokens))

    def _tokens_per_unit(self, request: ParsedRequest) -> float:
        return 1.0 if request.prompt.in_tokens else self._ratios.predict_one(request.model)

    def _book(self, routing: RoutingContext, chosen: Score) -> Booking:
        return self._fleet.book(
            chosen.engine,
            routing.now,
            streamed=routing.request.stream,
            prompt_tokens=routing.prompt_tokens,
            hit_tokens=chosen.hit_tokens,
            output_tokens=routing.output_tokens,
            predicted_s=chosen.predicted_s,
        )

    # --- learning from an outcome -------------------------------------------------------------------------------

    def _settle(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        """Correct the prefix index by what the end of the request shows of the engine's cache.

        An answered request confirms the blocks of its prompt and adds those of its reply. A request whose client left,
        or that timed out, after its first token has been prefilled, so its prompt is confirmed. After any other end it
        is unknown whether the prompt was computed, so the blocks that no answer has ever confirmed are removed: a block
        that is missing in the index costs one hit, but a block that is wrongly in it attracts further requests.
        """
        prompt, ending = decision.request.prompt, outcome.ending
        if ending is Ending.OK:
            self._confirm(decision, outcome, outcome.reply_keys)
        elif released.first_token_s is not None and ending in (Ending.CANCELLED, Ending.TIMEOUT):
            self._confirm(decision, outcome, ())
        else:
            self._index.retract(decision.engine, prompt.keys, decision.expectation)

    def _confirm(self, decision: Decision, outcome: Outcome, reply: Sequence[BlockKey]) -> None:
        info = self._fleet.view(decision.engine).info if decision.engine in self._fleet else None
        observation = observe_cache(decision, outcome, reply, float(info.block_size or 0) if info else 0.0)
        self._index.settle(decision.engine, observation)

    def _learn_failures(self, decision: Decision, outcome: Outcome) -> None:
        if decision.engine in self._fleet:
            for engine in self._reliability.learn(decision, outcome):
                self._fleet.set_failure_odds(engine, self._reliability.odds(engine))

    def _learn_lengths(self, request: ParsedRequest, outcome: Outcome) -> None:
        if outcome.output_tokens is not None:
            self._lengths.learn_one(length_classes(request), outcome.output_tokens)
        if outcome.prompt_tokens is not None and not request.prompt.in_tokens:
            self._ratios.learn_one(request.model, request.prompt.units, outcome.prompt_tokens)

    def _engine_changed(self, engine: EngineId, change: Change) -> None:
        if change is Change.REMOVED:
            self._index.remove(engine)
            self._experiment.forget(engine)
            self._drift.forget(engine)
            self._reliability.forget(engine)
            self.sessions.engine_gone(engine)
        elif change is Change.RETURNED:
            self._index.forget(engine)
            self.sessions.engine_gone(engine)
            self._reliability.healthy(engine)
            self._fleet.set_failure_odds(engine, 0.0)
        else:
            view = self._fleet.view(engine)
            reported = view.info.capacity_blocks and view.info.block_size
            self._index.add(engine, view.capacity_tokens, guessed=not reported, order=view.info.order)


def _serves(view: EngineView, model: str) -> bool:
    """Whether the engine serves the model. True also if the request names none or the engine reports none."""
    return not model or not view.info.models or model in view.info.models


def _usable_tokens(view: EngineView, tokens: float) -> float:
    """The part of a match that the engine can use, which is whole blocks of its cache."""
    block = view.info.block_size
    # Under other orders the match is an expectation over blocks that may be evicted, so it is not rounded.
    return tokens // block * block if block and view.info.order in LRU_ORDERS else tokens
