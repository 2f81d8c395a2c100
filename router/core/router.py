"""The sans-I/O router: a request in, an explained decision out; its outcome in, and all of it is learned from.

The gateway drives it with real time, tests and simulations with a clock of their own. Single-threaded by design: the
choice and the booking of its load are one call, so no two requests can be placed by the same stale load.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from router.core.decision_log import DecisionLog, LoggedDecision
from router.core.experiment import Choice, Create, Experiment
from router.core.fleet import Change, Fleet
from router.core.learned_state import LearnedState
from router.core.options import RoutingOptions
from router.core.status import AgreementStatus, ArmStatus, EngineStatus, RouterStatus
from router.errors import NoEngine, NotFound
from router.learners.estimates import OutputLength, TokenRatio, length_classes
from router.learners.prediction_error import DriftAlarm
from router.policies.base import RoutingContext
from router.policies.least_loaded import LeastLoaded
from router.policies.table import create as create_policy
from router.prefix import blocks
from router.prefix.index import LRU_ORDERS, Match, PrefixIndex
from router.prefix.observation import CacheObservation
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
)

COMPARABLE = 3.0  # a prompt's tokens against the estimate: beyond, it is not the text that was measured


class _Prepared(NamedTuple):
    """What a decision is made of: the request as policies see it, who may get it, what the index holds of it."""

    routing: RoutingContext
    candidates: list[Candidate]
    match: Match


class Router:
    """Picks an engine for every request and learns from how it went.

    policies: the options of the policies (`policies.table.PolicyOptions`); None: all at their defaults. create: makes a
    policy by its name in place of the table. timer: seconds, for what policies cost.
    """

    def __init__(
        self,
        options: RoutingOptions,
        policies: Any = None,
        *,
        rng: random.Random,
        create: Create | None = None,
        timer: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._fleet = Fleet(options.default_capacity_tokens, self._engine_changed)
        self._log = DecisionLog(options.decision_log_size)
        self._drift = DriftAlarm(options.drift_answers, options.drift_bound)
        self._rng = rng
        self._index = PrefixIndex(options.prefix_index_blocks)
        self._ratios = TokenRatio()
        self._lengths = OutputLength(options.default_output_tokens)
        safe = create_policy(options.fallback_policy, policies), LeastLoaded()
        self._experiment = Experiment(
            create or (lambda name: create_policy(name, policies)), safe, rng=rng, timer=timer
        )
        self._experiment.assign({options.policy: 1.0}, options.shadow)
        self.learned = LearnedState(self._lengths, self._ratios, self._index, self._experiment, self._fleet.ids)
        """To be kept across restarts."""

    # --- a request's life ---------------------------------------------------------------------------------------

    def route(self, request: ParsedRequest, now: float, *, exclude: Collection[EngineId] = ()) -> Decision:
        """Choose an engine and book the request's load on it, in one step.

        exclude: engines tried already. Raises NotFound if no engine serves the model, NoEngine if none that does can
        take the request now.
        """
        routing, candidates, match = self._prepare(request, now, exclude)
        choice = self._choose(routing, candidates)
        booking = self._book(routing, choice.chosen)
        block_tokens = request.prompt.block_units * routing.tokens_per_unit
        expectation = self._index.book(choice.chosen.engine, request.prompt.keys, match, block_tokens)
        decision = choice.decision(routing, booking.serial, expectation, tuple(exclude))
        self._experiment.dispatched(decision)
        self._log.open(decision)
        return decision

    def first_token(self, decision: Decision, now: float) -> None:
        """A streamed request's first token was seen. Harmless when repeated, too late, or the request is unstreamed."""
        booking = self._fleet.first_token(decision.booking, now)
        if booking is not None and decision.engine in self._fleet:
            self._experiment.first_token(decision, now)

    def complete(self, decision: Decision, outcome: Outcome) -> None:
        """The request is over: give its load back, and learn from it if it went well. Repeated calls do nothing."""
        answered = outcome.ending is Ending.OK
        released = self._fleet.release(decision.booking, outcome.done_s, answered=answered)
        if released is None:
            return
        if answered and decision.request.choices == 1:
            self._measure(decision.request, outcome)
        if decision.engine in self._fleet:
            self._experiment.learn(decision, released, outcome)
            if answered and decision.predicted_s is not None:
                self._drift.learn_one(decision.engine, decision.predicted_s, outcome.done_s - decision.dispatched_s)
        self._settle(decision, released, outcome)
        self._log.close(decision, outcome)

    # --- the engines there are ----------------------------------------------------------------------------------

    def add_engine(self, engine: EngineId) -> None:
        """A new engine, idle and not healthy until `set_health` says so. Adding a known one changes nothing."""
        self._fleet.add(engine)

    def remove_engine(self, engine: EngineId) -> None:
        """Forget an engine; what it still works on is released as usual."""
        self._fleet.remove(engine)

    def healthy(self, engine: EngineId) -> bool:
        """Whether it may get requests. Raises KeyError for an unknown engine, as the setters do."""
        return self._fleet.healthy(engine)

    def set_health(self, engine: EngineId, healthy: bool) -> None:
        self._fleet.set_health(engine, healthy)

    def set_info(self, engine: EngineId, info: EngineInfo) -> None:
        """Take in what an engine says of itself."""
        self._fleet.set_info(engine, info)

    # --- who decides, and what was decided ----------------------------------------------------------------------

    def assign(self, shares: Mapping[str, float], shadows: Sequence[str] | None = None) -> None:
        """Who decides from now on, and by what share (`Experiment.assign`). Raises ConfigError for an unknown name."""
        self._experiment.assign(shares, shadows)
        self._drift.clear()

    def explain(self, request: ParsedRequest, now: float) -> Decision:
        """What `route` would decide now, and why. Nothing is booked, and nothing changes, chance included.

        Raises as `route` does.
        """
        chance = self._rng.getstate()
        try:
            routing, candidates, _ = self._prepare(request, now, ())
            return self._choose(routing, candidates).decision(routing, 0, NO_EXPECTATION, ())
        finally:
            self._rng.setstate(chance)

    def find_decisions(self, request_id: str) -> list[LoggedDecision]:
        """The tries of the newest request of that id, in their order; none if none is kept."""
        return self._log.find(request_id)

    def newest_decisions(self, limit: int) -> list[LoggedDecision]:
        """The last decisions, newest first."""
        return self._log.newest(limit)

    # --- how things stand ---------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that are not complete."""
        return self._fleet.in_flight

    @property
    def index_blocks(self) -> int:
        """(block, engine) pairs in the prefix index."""
        return len(self._index)

    def status(self) -> RouterStatus:
        """Everything at this moment."""
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
        )

    def describe(self, engine: EngineId) -> dict[str, object]:
        """What was learned of one engine, JSON types only. Raises KeyError for an unknown one."""
        lead = self._experiment.lead
        return {
            "policy": lead.name,
            "in_flight": self._fleet.view(engine).in_flight,
            "index_blocks": self._index.blocks(engine),
            "learned_capacity_tokens": round(self._index.capacity_tokens(engine)),
            **lead.describe(engine),
        }

    # --- the choice ---------------------------------------------------------------------------------------------

    def _prepare(self, request: ParsedRequest, now: float, exclude: Collection[EngineId]) -> _Prepared:
        candidates, places = self._eligible(request.model, exclude)
        tokens_per_unit = self._tokens_per_unit(request)
        prompt_tokens = request.prompt.units * tokens_per_unit
        block_tokens = request.prompt.block_units * tokens_per_unit
        match = self._index.match(request.prompt.keys)
        longest_tokens = 0.0
        if match.blocks:
            most = max(0.0, prompt_tokens - 1)  # the last token is always computed
            for engine, held in match.blocks.items():
                if engine in places:
                    view = candidates[places[engine]].view
                    hit_tokens = _usable_tokens(view, min(held * block_tokens, most))
                    candidates[places[engine]] = Candidate(view, hit_tokens)
                    longest_tokens = max(longest_tokens, hit_tokens)
        output_tokens, chance = self._expect(request), self._rng.random()
        routing = RoutingContext(request, prompt_tokens, output_tokens, now, chance, longest_tokens, tokens_per_unit)
        return _Prepared(routing, candidates, match)

    def _choose(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Choice:
        return self._experiment.choose(routing, candidates)

    def _eligible(self, model: str, exclude: Collection[EngineId]) -> tuple[list[Candidate], Mapping[EngineId, int]]:
        """Healthy engines that serve the model, as far as they tell what they serve, less the excluded ones; and where
        each of them is."""
        found, places = self._fleet.candidates()
        if exclude or (model and not self._fleet.all_serve(model)):
            found = [c for c in found if c.view.engine not in exclude and _serves(c.view, model)]
            places = {view.engine: place for place, (view, _) in enumerate(found)}
        if found:
            return found, places
        known = [self._fleet.view(engine) for engine in self._fleet.ids()]
        if known and not any(_serves(view, model) for view in known):
            raise NotFound(f"The model `{model}` does not exist.", param="model")
        raise NoEngine("No engine can take the request at the moment.")

    def _expect(self, request: ParsedRequest) -> float:
        """Output, tokens."""
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

    # --- what an outcome teaches --------------------------------------------------------------------------------

    def _settle(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        """Put what is known of the engine's cache now into the index.

        An answered request confirms its blocks, the reply's included. One that was left or timed out after its first
        token was prefilled, so its prompt stays. Any other end leaves it open whether the prompt was computed: blocks
        that no answer ever confirmed are taken out, since a forgotten block costs one hit, a wrong one draws followers.
        """
        prompt, ending = decision.request.prompt, outcome.ending
        if ending is Ending.OK:
            self._confirm(decision, outcome, blocks.extend(prompt, outcome.reply))
        elif released.first_token_s is not None and ending in (Ending.CANCELLED, Ending.TIMEOUT):
            self._confirm(decision, outcome, ())
        else:
            self._index.retract(decision.engine, prompt.keys, decision.expectation)

    def _confirm(self, decision: Decision, outcome: Outcome, reply: Sequence[BlockKey]) -> None:
        known = self._fleet.view(decision.engine).info if decision.engine in self._fleet else None
        observation = observe_cache(decision, outcome, reply, float(known.block_size or 0) if known else 0.0)
        self._index.settle(decision.engine, observation)

    def _measure(self, request: ParsedRequest, outcome: Outcome) -> None:
        if outcome.output_tokens is not None:
            self._lengths.learn_one(length_classes(request), outcome.output_tokens)
        if outcome.prompt_tokens is not None and not request.prompt.in_tokens:
            self._ratios.learn_one(request.model, request.prompt.units, outcome.prompt_tokens)

    def _engine_changed(self, engine: EngineId, change: Change) -> None:
        if change is Change.REMOVED:
            self._index.remove(engine)
            self._experiment.forget(engine)
            self._drift.forget(engine)
        elif change is Change.RETURNED:
            self._index.forget(engine)
        else:
            view = self._fleet.view(engine)
            told = view.info.capacity_blocks and view.info.block_size
            self._index.add(engine, view.capacity_tokens, guessed=not told, order=view.info.order)


def _serves(view: EngineView, model: str) -> bool:
    """True also if either side does not say."""
    return not model or not view.info.models or model in view.info.models


def _usable_tokens(view: EngineView, tokens: float) -> float:
    """What the engine can use of a match: whole blocks."""
    block = view.info.block_size
    # An expectation over blocks that may be gone (`survival`) is no number of whole ones.
    return tokens // block * block if block and view.info.order in LRU_ORDERS else tokens


def observe_cache(
    decision: Decision, outcome: Outcome, reply: Sequence[BlockKey], engine_block_tokens: float
) -> CacheObservation:
    """What an answer tells of its engine's cache. engine_block_tokens: of one of its blocks, 0 if it is not known.

    Expected and found hits are compared in the engine's own tokens, free of the token ratio's error; not at all where
    they cannot be: usage of several prompts together, or a prompt that is not text for the most part.
    """
    prompt = decision.request.prompt
    token_ratio = (outcome.prompt_tokens or decision.prompt_tokens) / max(1.0, decision.prompt_tokens)
    comparable = decision.request.choices == 1 and 1 / COMPARABLE <= token_ratio <= COMPARABLE
    block_tokens = prompt.block_units * decision.tokens_per_unit
    return CacheObservation(
        prompt.keys,
        reply,
        decision.expectation,
        block_tokens,
        token_ratio,
        max(block_tokens, engine_block_tokens),
        decision.prompt_tokens * token_ratio,
        decision.hit_tokens * token_ratio,
        outcome.cached_tokens if comparable else None,
    )
