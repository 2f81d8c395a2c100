"""The sans-I/O router: a request in, an explained decision out; its outcome in, and all of it is learned from.

The gateway drives it with real time, tests and simulations with a clock of their own. Single-threaded by design: the
choice and the booking of its load are one call, so no two requests can be placed by the same stale load.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from router import policies
from router.config import Config
from router.core.decision_log import DecisionLog
from router.core.experiment import Create, Experiment
from router.core.fleet import Change, Fleet
from router.errors import NoEngine, NotFound, SnapshotError
from router.learners.drift import DriftAlarm
from router.learners.estimates import OutputLength, TokenRatio, length_classes
from router.policies.base import Policy, RoutingContext
from router.policies.least_loaded import LeastLoaded
from router.prefix import blocks
from router.prefix.index import LRU_ORDERS, Match, PrefixIndex
from router.saved_state import Fields, State
from router.types import (
    NO_EXPECTATION,
    BlockKey,
    Booking,
    Candidate,
    Decision,
    Ending,
    EngineId,
    EngineView,
    Outcome,
    ParsedRequest,
    ReleasedBooking,
    Score,
)

COMPARABLE = 3.0  # a prompt's tokens against the estimate: beyond, it is not the text that was measured


class _Look(NamedTuple):
    """What a decision is made of: the request as policies see it, who may get it, what the index holds of it."""

    routing: RoutingContext
    candidates: list[Candidate]
    match: Match
    tokens_per_unit: float
    """Of the prompt: 1 for token ids, learned for text."""


class Router:
    """Picks an engine for every request and learns from how it went.

    create: makes a policy by its name, `policies.create` if not given. timer: seconds, for what policies cost.
    """

    def __init__(
        self,
        config: Config,
        *,
        rng: random.Random,
        create: Create | None = None,
        timer: Callable[[], float] = lambda: 0.0,
    ) -> None:
        create = create or (lambda name: policies.create(name, config))
        self.fleet = Fleet(config.default_capacity_tokens, self._engine_changed)
        safe = policies.create(config.fallback_policy, config), LeastLoaded(config)
        self.experiment = Experiment(create, safe, rng=rng, timer=timer)
        self.experiment.assign({config.policy: 1.0}, config.shadow)
        self.decision_log = DecisionLog(config.ledger_decisions)
        self.drift = DriftAlarm(config.drift_answers, config.drift_bound)
        self._rng = rng
        self._index = PrefixIndex(config.prefix_index_blocks)
        self._ratios = TokenRatio()
        self._lengths = OutputLength(config.default_output_tokens)

    def route(self, request: ParsedRequest, now: float, *, exclude: Collection[EngineId] = ()) -> Decision:
        """Choose an engine and book the request's load on it, in one step.

        exclude: engines tried already. Raises NotFound if no engine serves the model, NoEngine if none that does can
        take the request now.
        """
        look = self._look(request, now, exclude)
        choice = self.experiment.choose(look.routing, look.candidates)
        booking = self._book(look.routing, choice.chosen)
        block_tokens = request.prompt.block_units * look.tokens_per_unit
        expectation = self._index.book(choice.chosen.engine, request.prompt.keys, look.match, block_tokens)
        decision = choice.decision(look.routing, booking.serial, expectation, tuple(exclude), look.tokens_per_unit)
        self.experiment.dispatched(decision)
        self.decision_log.open(decision)
        return decision

    def explain(self, request: ParsedRequest, now: float) -> Decision:
        """What `route` would decide now, and why. Nothing is booked, and nothing changes, chance included.

        Raises as `route` does.
        """
        chance = self._rng.getstate()
        try:
            look = self._look(request, now, ())
            choice = self.experiment.choose(look.routing, look.candidates)
            return choice.decision(look.routing, 0, NO_EXPECTATION, (), look.tokens_per_unit)
        finally:
            self._rng.setstate(chance)

    def assign(self, shares: Mapping[str, float], shadows: Sequence[str] | None = None) -> None:
        """Who decides from now on, and by what share (`Experiment.assign`). Raises ConfigError for an unknown name."""
        self.experiment.assign(shares, shadows)
        self.drift.clear()

    def first_token(self, decision: Decision, now: float) -> None:
        """A streamed request's first token was seen. Harmless when repeated, too late, or the request is unstreamed."""
        booking = self.fleet.first_token(decision.booking, now)
        if booking is not None and decision.engine in self.fleet:
            self.experiment.first_token(decision, now)

    def complete(self, decision: Decision, outcome: Outcome) -> None:
        """The request is over: give its load back, and learn from it if it went well. Repeated calls do nothing."""
        answered = outcome.ending is Ending.OK
        released = self.fleet.release(decision.booking, outcome.done_s, answered=answered)
        if released is None:
            return
        if answered and decision.request.choices == 1:
            self._measure(decision.request, outcome)
        if decision.engine in self.fleet:
            self.experiment.learn(decision, released, outcome)
            if answered and decision.predicted_s is not None:
                self.drift.learn_one(decision.engine, decision.predicted_s, outcome.done_s - decision.dispatched_s)
        self._settle(decision, released, outcome)
        self.decision_log.close(decision, outcome)

    def dump(self, now: float) -> State:
        """All that was learned of latencies, lengths and caches, for `load`; neither load nor what engines hold."""
        return {
            "output_lengths": self._lengths.dump(),
            "token_ratios": self._ratios.dump(),
            "survival_curves": self._index.dump(),
            "policies": self.experiment.dump(now),
        }

    def load(self, state: Fields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """Takes up what was dumped at saved_s, on the present clock, or raises SnapshotError and changes nothing.

        names: the engines there are, by the names they had.
        """
        before = Fields(self.dump(saved_s), "learned")
        try:
            self._load(state, saved_s, names)
        except SnapshotError:
            self._load(before, saved_s, {engine: engine for engine in self.fleet.ids()})
            raise

    def _load(self, state: Fields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        self._lengths.load(state, "output_lengths")
        self._ratios.load(state, "token_ratios")
        self.experiment.load(state.fields("policies"), saved_s, names)
        self._index.load(state.fields("survival_curves"))  # all or none by itself: it cannot unlearn a new order

    def describe(self, engine: EngineId) -> dict[str, object]:
        """What was learned of one engine, JSON types only. Raises KeyError for an unknown one."""
        return {
            "policy": self.policy.name,
            "in_flight": self.fleet.view(engine).in_flight,
            "index_blocks": self._index.blocks(engine),
            "learned_capacity_tokens": round(self._index.capacity_tokens(engine)),
            **self.policy.describe(engine),
        }

    @property
    def policy(self) -> Policy:
        """The one that decides, or decides most."""
        return self.experiment.lead

    @property
    def policy_faults(self) -> int:
        """How often a policy on the experiment raised or gave a cost that is not a number; they are logged."""
        return self.experiment.faults

    @property
    def index_blocks(self) -> int:
        """(block, engine) pairs in the prefix index."""
        return len(self._index)

    # --- the choice ---------------------------------------------------------------------------------------------

    def _look(self, request: ParsedRequest, now: float, exclude: Collection[EngineId]) -> _Look:
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
                    hit_tokens = _whole(view, min(held * block_tokens, most))
                    candidates[places[engine]] = Candidate(view, hit_tokens)
                    longest_tokens = max(longest_tokens, hit_tokens)
        routing = RoutingContext(request, prompt_tokens, self._expect(request), now, self._rng.random(), longest_tokens)
        return _Look(routing, candidates, match, tokens_per_unit)

    def _eligible(self, model: str, exclude: Collection[EngineId]) -> tuple[list[Candidate], Mapping[EngineId, int]]:
        """Healthy engines that serve the model, as far as they tell what they serve, less the excluded ones; and where
        each of them is."""
        found, places = self.fleet.candidates()
        if exclude or (model and not self.fleet.all_serve(model)):
            found = [c for c in found if c.view.engine not in exclude and _serves(c.view, model)]
            places = {view.engine: place for place, (view, _) in enumerate(found)}
        if found:
            return found, places
        known = [self.fleet.view(engine) for engine in self.fleet.ids()]
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
        return self.fleet.book(
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
        request = decision.request
        # Expected and found hits are compared in the engine's own tokens, free of the token ratio's error; not at all
        # where they cannot be: usage of several prompts together, or a prompt that is not text for the most part.
        exact = (outcome.prompt_tokens or decision.prompt_tokens) / max(1.0, decision.prompt_tokens)
        told = request.choices == 1 and 1 / COMPARABLE <= exact <= COMPARABLE
        block_tokens = request.prompt.block_units * decision.tokens_per_unit
        known = self.fleet.view(decision.engine).info if decision.engine in self.fleet else None
        self._index.settle(
            decision.engine,
            request.prompt.keys,
            reply,
            decision.expectation,
            block_tokens=block_tokens,
            slack_tokens=max(block_tokens, float(known.block_size or 0) if known else 0.0),
            exact=exact,
            prompt_tokens=decision.prompt_tokens * exact,
            predicted_tokens=decision.hit_tokens * exact,
            cached_tokens=outcome.cached_tokens if told else None,
        )

    def _measure(self, request: ParsedRequest, outcome: Outcome) -> None:
        if outcome.output_tokens is not None:
            self._lengths.learn_one(length_classes(request), outcome.output_tokens)
        if outcome.prompt_tokens is not None and not request.prompt.in_tokens:
            self._ratios.learn_one(request.model, request.prompt.units, outcome.prompt_tokens)

    def _engine_changed(self, engine: EngineId, change: Change) -> None:
        if change is Change.REMOVED:
            self._index.remove(engine)
            self.experiment.forget(engine)
            self.drift.forget(engine)
        elif change is Change.RETURNED:
            self._index.forget(engine)
        else:
            view = self.fleet.view(engine)
            told = view.info.capacity_blocks and view.info.block_size
            self._index.add(engine, view.capacity_tokens, guessed=not told, order=view.info.order)


def _serves(view: EngineView, model: str) -> bool:
    """True also if either side does not say."""
    return not model or not view.info.models or model in view.info.models


def _whole(view: EngineView, tokens: float) -> float:
    """What the engine can use of a match: whole blocks."""
    block = view.info.block_size
    # An expectation over blocks that may be gone (`survival`) is no number of whole ones.
    return tokens // block * block if block and view.info.order in LRU_ORDERS else tokens
