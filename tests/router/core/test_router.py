from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Sequence
from functools import partial
from math import nan

import pytest

from router.core.options import RoutingOptions
from router.core.router import Router
from router.errors import NoEngine, NotFound
from router.policies.base import NoOptions, Policy, RoutingContext
from router.prefix import blocks
from router.types import (
    BlockKey,
    Candidate,
    Decision,
    Ending,
    EngineId,
    EngineInfo,
    Outcome,
    ParsedRequest,
    Prompt,
    ReleasedBooking,
    Scores,
    Unit,
)
from tests.support.virtual_fleet import answered, ask_for, prompt_of, router_with

E0, E1 = EngineId("e0"), EngineId("e1")


def text_request(text: bytes, *, model: str = "m", stream: bool = True, choices: int = 1) -> ParsedRequest:
    return ParsedRequest("r", "/v1/chat/completions", model, blocks.chain(b"", text, 256), stream, None, choices)


class Broken(Policy[NoOptions]):
    """A policy that raises in the event `where`, or whose costs are no numbers if that is `nan`."""

    name = "broken"

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(where)

    def choose(
        self, routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
    ) -> Scores:
        self.fail("choose")
        total_s = nan if self.where == "nan" else 1.0
        rows = [number for candidate in candidates for number in (total_s, nan, candidate.hit_tokens, nan)]
        return Scores(candidates, array("d", rows), Unit.SECONDS)

    def dispatched(self, decision: Decision) -> None:
        self.fail("dispatched")

    def first_token(self, decision: Decision, now: float) -> None:
        self.fail("first_token")

    def learn(self, decision: Decision, released: ReleasedBooking, outcome: Outcome) -> None:
        self.fail("learn")


def test_a_decision_says_where_why_and_what_is_expected() -> None:
    router = router_with(2)
    decision = router.route(ask_for(1, 2, 3, max_tokens=20), 5.0)
    assert decision.policy == "lbgr"
    assert decision.reason == "lowest_cost"
    assert decision.score.engine == decision.engine
    assert decision.predicted_s == decision.score.predicted_s
    assert (decision.prompt_tokens, decision.hit_tokens, decision.output_tokens) == (192.0, 0.0, 20.0)
    assert router_with(1).route(ask_for(1), 0.0).reason == "only_engine"


def test_unknown_model_is_not_found_and_no_healthy_engine_is_no_engine() -> None:
    router = router_with(2)
    other = ParsedRequest("r", "/v1/completions", "gpt-9", prompt_of(1), False, None)
    with pytest.raises(NotFound, match=r"The model `gpt-9` does not exist\.") as caught:
        router.route(other, 0.0)
    assert caught.value.param == "model"
    for engine in router._fleet.ids():
        router.set_health(engine, False)
    with pytest.raises(NoEngine):
        router.route(ask_for(1), 0.0)
    with pytest.raises(NoEngine):
        Router(RoutingOptions(), rng=random.Random(0)).route(other, 0.0)


def test_a_model_goes_to_the_engines_that_serve_it_or_do_not_say() -> None:
    router = router_with(3)
    router.set_info(E0, EngineInfo(models=("other",)))
    router.set_info(E1, EngineInfo())
    assert {router.route(ask_for(n), 0.0).engine for n in range(20)} == {"e1", "e2"}
    router.set_health(E0, False)
    with pytest.raises(NoEngine):
        router.route(ParsedRequest("r", "/v1/completions", "other", prompt_of(1), False, None), 0.0, exclude={E1})


def test_a_hit_is_whole_engine_blocks_and_never_the_whole_prompt() -> None:
    router = router_with(1)
    for n in range(2):
        decision = router.route(ask_for(1, 2, 3), float(n))
        router.complete(decision, answered(n + 0.5))
    assert decision.hit_tokens == 176.0  # 191 tokens at most, in blocks of 16
    router.set_info(E0, EngineInfo(models=("m",)))
    assert router.route(ask_for(1, 2, 3), 3.0).hit_tokens == 191.0
    assert router.route(ask_for(1, 2, 3, 4), 4.0).hit_tokens == 192.0
    assert router.route(ask_for(units=0), 5.0).hit_tokens == 0.0


def test_a_reply_extends_the_prefix() -> None:
    router = router_with(4)
    first = text_request(b"x" * 600)
    decision = router.route(first, 0.0)
    router.complete(decision, Outcome(Ending.OK, 1.0, 0.5, 150, 0, 100, blocks.extend(first.prompt, b"y" * 500)))
    again = router.route(text_request(b"x" * 600 + b"y" * 500 + b"z" * 100), 2.0)
    assert again.engine == decision.engine
    assert again.hit_tokens == 256.0  # 4 blocks of 256 bytes at 4 bytes a token, of which the reply filled 2


def test_tokens_a_byte_are_learned_from_usage() -> None:
    router = router_with(1)
    assert router.route(text_request(b"x" * 4000), 0.0).prompt_tokens == 1000
    for n in range(20):
        decision = router.route(text_request(b"%d" % n * 2000), float(n))
        router.complete(decision, Outcome(Ending.OK, n + 0.5, None, decision.request.prompt.units // 2, 0, 5))
    assert router.route(text_request(b"x" * 4000), 99.0).prompt_tokens == pytest.approx(2000, rel=0.02)


def test_a_request_is_measured_by_the_ratio_that_it_was_placed_with() -> None:
    router = router_with(1)
    request = text_request(b"x" * 4096)  # 16 blocks of 256 bytes, 64 tokens each as far as the router knows
    decision = router.route(request, 0.0)
    assert decision.tokens_per_unit == 0.25
    router.complete(decision, Outcome(Ending.OK, 0.5, None, 2048, 0, 5))
    assert router._index._lru._parts[E0].block_tokens == 64.0
    assert router.route(request, 1.0).tokens_per_unit > 0.25


def test_output_length_is_learned_by_model_and_route_and_bound_by_the_client() -> None:
    router = router_with(1)
    for n in range(50):
        router.complete(router.route(ask_for(n), float(n)), answered(n + 0.5, output=500))
    assert router.route(ask_for(1), 90.0).output_tokens > 430
    assert router.route(ask_for(1, max_tokens=7), 90.0).output_tokens == 7
    # Another route begins with what the model is known for, then finds its own.
    assert router.route(text_request(b"x"), 90.0).output_tokens > 430
    for n in range(50):
        router.complete(router.route(text_request(b"%d" % n), 91.0 + n), answered(91.5 + n, output=20))
    assert router.route(text_request(b"x"), 200.0).output_tokens < 60
    assert router.route(ask_for(1), 200.0).output_tokens > 350


def test_several_choices_teach_nothing_of_lengths_and_hits() -> None:
    router = router_with(1)
    for n in range(9):
        decision = router.route(text_request(b"x" * 4000, choices=3), float(n))
        router.complete(decision, Outcome(Ending.OK, n + 0.5, None, 9000, 0, 900))
    decision = router.route(text_request(b"x" * 4000), 99.0)
    assert (decision.prompt_tokens, decision.output_tokens) == (1000, 64)
    assert router.describe(E0)["learned_capacity_tokens"] == 16_000


def test_hits_promised_in_vain_shrink_the_capacity() -> None:
    router = router_with(1)
    for n in range(4):
        decision = router.route(ask_for(*range(10)), float(n))
        router.complete(decision, answered(n + 0.5, prompt=640, cached=64))
    assert router.describe(E0)["learned_capacity_tokens"] == round(16_000 * 0.98**3)


def test_hits_of_prompts_that_are_not_text_are_not_compared() -> None:
    router = router_with(1)
    for n in range(4):
        decision = router.route(text_request(b"x" * 4000), float(n))
        router.complete(decision, Outcome(Ending.OK, n + 0.5, None, 50_000, 0, 5))
    assert router.describe(E0)["learned_capacity_tokens"] == 16_000
    assert router.route(text_request(b"x" * 4000), 9.0).prompt_tokens == 1000


def test_a_guessed_capacity_is_corrected_faster_than_a_told_one() -> None:
    router = router_with(1)
    router.set_info(E0, EngineInfo(models=("m",), capacity_blocks=50))  # of unknown size
    for n in range(2):
        decision = router.route(ask_for(*range(10)), float(n))
        router.complete(decision, answered(n + 0.5, prompt=640, cached=64))
    assert router.describe(E0)["learned_capacity_tokens"] == 100_000 * 0.95


def test_an_engine_that_was_away_may_have_restarted() -> None:
    router = router_with(1)
    router.complete(router.route(ask_for(1, 2, 3, 4), 0.0), answered(1.0))
    router.set_health(E0, False)
    router.set_health(E0, True)
    assert router.route(ask_for(1, 2, 3, 4), 2.0).hit_tokens == 0.0


@pytest.mark.parametrize(
    ("ending", "seen", "kept"),
    [
        (Ending.OK, True, True),
        (Ending.CANCELLED, True, True),
        (Ending.TIMEOUT, True, True),
        (Ending.ENGINE_LOST, True, False),
        (Ending.CANCELLED, False, False),
        (Ending.REJECTED, False, False),
    ],
)
def test_what_the_index_keeps_of_a_request_depends_on_its_end(ending: Ending, seen: bool, kept: bool) -> None:
    router = router_with(1)
    decision = router.route(ask_for(1, 2, 3, 4), 0.0)
    if seen:
        router.first_token(decision, 0.5)
    router.complete(decision, Outcome(ending, 1.0, 0.5 if seen else None))
    assert (router.route(ask_for(1, 2, 3, 4), 2.0).hit_tokens > 0) == kept


def test_a_dry_run_says_what_would_be_decided_and_draws_no_chance() -> None:
    router = router_with(4, "random", seed=5)
    for n in range(10):
        foretold = [router.explain(ask_for(n), float(n)) for _ in range(3)]
        decision = router.route(ask_for(n), float(n))
        assert {each.engine for each in foretold} == {decision.engine}
        assert (foretold[0].booking, foretold[0].reason) == (0, decision.reason)
    router.complete(foretold[0], answered(99.0))
    assert router.in_flight == 10
    assert len(router.newest_decisions(99)) == 10
    other = router_with(4, "random", seed=5)
    assert [other.route(ask_for(n), float(n)).engine for n in range(10)] == [
        entry.engine for entry in reversed(router.newest_decisions(10))
    ]
    with pytest.raises(NotFound):
        router.explain(ParsedRequest("r", "/v1/completions", "gpt-9", prompt_of(1), False, None), 9.0)


def test_predictions_that_come_to_be_wrong_ring_until_others_predict() -> None:
    router = router_with(1, drift_answers=8, drift_bound=0.5)
    for n in range(8):
        decision = router.route(ask_for(n), 100.0 * n)
        assert decision.predicted_s is not None
        ending = Ending.OK if n else Ending.CANCELLED  # which says nothing
        router.complete(decision, Outcome(ending, decision.dispatched_s + 3 * decision.predicted_s))
    assert router._drift.alarms() == {E0: False}
    decision = router.route(ask_for(9), 900.0)
    router.complete(decision, answered(900.0 + 3 * (decision.predicted_s or 0.0)))
    assert router._drift.alarms() == {E0: True}
    router.assign({"lmetric": 1.0})
    assert router._drift.alarms() == {}
    router.complete(router.route(ask_for(9), 990.0), answered(991.0))
    assert router._drift.alarms() == {}


def test_a_retry_is_kept_with_the_try_before() -> None:
    router = router_with(2)
    first = router.route(ask_for(1, 2), 0.0)
    router.complete(first, Outcome(Ending.ENGINE_LOST, 0.1))
    second = router.route(ask_for(1, 2), 0.1, exclude=[first.engine])
    assert second.tried == (first.engine,)
    assert [entry.engine for entry in router.find_decisions("r")] == [first.engine, second.engine]


def test_a_retry_goes_elsewhere_and_leaves_no_load() -> None:
    router = router_with(2)
    first = router.route(ask_for(1, 2), 0.0)
    router.complete(first, Outcome(Ending.ENGINE_LOST, 0.1))
    second = router.route(ask_for(1, 2), 0.1, exclude={first.engine})
    assert second.engine != first.engine
    assert (router._fleet.view(first.engine).in_flight, router._fleet.view(second.engine).in_flight) == (0, 1)


@pytest.mark.parametrize("where", ["choose", "nan", "dispatched", "first_token", "learn"])
def test_a_failing_policy_loses_no_request(where: str, caplog: pytest.LogCaptureFixture) -> None:
    router = router_with(2, create=lambda _: Broken(where))
    router.route(ask_for(5), 0.0, exclude={E1})
    decision = router.route(ask_for(1), 0.0)
    router.first_token(decision, 0.5)
    router.complete(decision, answered(1.0))
    if where in ("choose", "nan"):
        assert (decision.engine, decision.reason, decision.fallback) == (E1, "fault", "lmetric")
    assert router._fleet.view(decision.engine).in_flight == (decision.engine == E0)
    assert router.status().faults > 0
    assert "policy broken failed in" in caplog.text


def test_numbers_that_cannot_be_are_not_learned() -> None:
    router = router_with(1)
    before = router.describe(E0)
    for n in range(20):
        decision = router.route(ask_for(n), float(n))
        router.complete(decision, Outcome(Ending.OK, n + 0.5, None, -5, 9_999, 0))
    after = router.describe(E0)
    assert (before["coefficients"], before["learned_capacity_tokens"]) == (
        after["coefficients"],
        after["learned_capacity_tokens"],
    )
    assert router.status().faults == 0


def test_many_unique_prompts_fill_the_index_to_its_cap_and_no_further() -> None:
    router = router_with(2, prefix_index_blocks=200)
    for n in range(100):
        prompt = Prompt(BlockKey(0), tuple(BlockKey(10 * n + b) for b in range(8)), 64, 512, (), True)
        decision = router.route(ParsedRequest("r", "/v1/completions", "m", prompt, False, None), float(n))
        router.complete(decision, answered(n + 0.5))
    assert router.index_blocks == 200
    assert router.in_flight == 0


def test_what_is_shown_of_an_engine_is_json() -> None:
    router = router_with(1)
    router.complete(router.route(ask_for(1, 2), 0.0), answered(1.0))
    shown = router.describe(E0)
    assert set(shown) >= {"policy", "in_flight", "index_blocks", "learned_capacity_tokens", "coefficients", "slowness"}
    assert shown["index_blocks"] == 2
    with pytest.raises(KeyError):
        router.describe(EngineId("nobody"))


def test_a_request_that_another_router_placed_is_load_and_teaches_no_policy() -> None:
    router = router_with(2, shadow=("lmetric",))
    router.set_health(E1, False)
    before = router.learned.dump(0.0)["policies"]
    resume = partial(router.resume, policy="lbgr", reason="router_away", fallback="least_loaded")
    waits = resume(ask_for(1, 2, 3, 4), E1, dispatched_s=5.0, first_token_s=None)
    streams = resume(ask_for(1, 2), E0, dispatched_s=4.0, first_token_s=4.5)
    assert (waits.engine, waits.reason, waits.fallback, waits.dispatched_s) == (E1, "router_away", "least_loaded", 5.0)
    assert [(router._fleet.view(e).in_flight, router._fleet.view(e).waiting) for e in (E0, E1)] == [(1, 0), (1, 1)]
    assert [entry.describe(9.0)["reason"] for entry in router.newest_decisions(9)] == ["router_away", "router_away"]
    router.first_token(waits, 6.0)
    router.complete(waits, answered(7.0))
    router.complete(streams, answered(7.0))
    router.complete(streams, answered(8.0))
    assert router.in_flight == router._fleet.view(E1).waiting == 0
    assert router.learned.dump(0.0)["policies"] == before
    assert router.status().faults == 0
    assert router._index.blocks(E1) == 4
    with pytest.raises(KeyError):
        resume(ask_for(1), EngineId("e9"), dispatched_s=5.0, first_token_s=None)
