from dataclasses import replace
from itertools import count

import pytest

from router.config import configure
from router.policies.base import RoutingContext
from router.policies.preble import ASIDE_S, SLICES, Preble
from router.types import Candidate, Decision, Ending, EngineId, EngineInfo, EngineView, Outcome, ReleasedBooking, Score
from tests.support.virtual_fleet import ask_for, router_with

E0, E1 = EngineId("e0"), EngineId("e1")
BOOKINGS = count(1)


def sent(engine: EngineId, prompt: float, hit: float, output: float, at_s: float) -> Decision:
    decision = router_with(1, "preble").route(ask_for(1), at_s)
    return replace(
        decision,
        engine=engine,
        prompt_tokens=prompt,
        hit_tokens=hit,
        output_tokens=output,
        dispatched_s=at_s,
        booking=next(BOOKINGS),
    )


def end(policy: Preble, decision: Decision, ending: Ending = Ending.OK, per_token_s: float = 0.02) -> None:
    """Eleven tokens, the first after .1 s."""
    booking = router_with(1)._fleet.book(
        E0, 0.0, streamed=True, prompt_tokens=500.0, hit_tokens=0.0, output_tokens=0.0, predicted_s=None
    )
    released = ReleasedBooking(booking, 0.1, 0.1 + 10 * per_token_s, 0.0, 0.0, 1000.0)
    policy.learn(decision, released, Outcome(ending, released.done_s, 0.1, 500, 0, 11))


def scored(policy: Preble, prompt: float, *hits: float, now: float = 1.0) -> list[Score]:
    views = [EngineView(EngineId(f"e{n}"), EngineInfo(), 0, 0) for n in range(len(hits))]
    routing = RoutingContext(ask_for(1), prompt, 64.0, now, 0.0)
    return list(policy.choose(routing, [Candidate(v, h) for v, h in zip(views, hits, strict=True)]))


def test_worked_example() -> None:
    """At the start .1 ms a token and .15 s an output token. Sent to e0: 3000 tokens, 1000 of them cached, and
    10 to come: L = .2 + 1.5 s. A prompt of 1000 with 400 cached there: P = .06 s; a third of what goes would have been
    hit: M = .02 s. On e1, idle: P = .1 s."""
    policy = Preble()
    policy.dispatched(sent(E0, 3000.0, 1000.0, 10.0, 0.5))
    busy, idle = scored(policy, 1000.0, 400.0, 0.0)
    assert busy.terms == pytest.approx({"load": 1.7, "eviction": 0.02, "prefill": 0.06})
    assert busy.total == pytest.approx(1.78)
    assert idle.total == pytest.approx(0.1)
    assert policy.describe(E0) == {"load_s": 1.7, "hit_share": 0.333}


def test_a_prefix_no_shorter_than_the_rest_is_exploited() -> None:
    policy = Preble()
    policy.dispatched(sent(E0, 3000.0, 0.0, 10.0, 0.5))
    policy.dispatched(sent(E1, 3000.0, 0.0, 5.0, 0.5))
    less = scored(policy, 1000.0, 499.0, 0.0)
    assert min(less, key=lambda score: score.total).engine == E1  # explored by load
    half = scored(policy, 1000.0, 500.0, 0.0)
    assert [score.total for score in half] == pytest.approx([1.8, ASIDE_S + 1.05])
    both = scored(policy, 1000.0, 501.0, 501.0)
    assert min(both, key=lambda score: score.total).engine == E1  # the less loaded of those that hold it


def test_too_heavy_an_engine_is_not_followed() -> None:
    policy = Preble()
    policy.dispatched(sent(E1, 1000.0, 0.0, 0.0, 0.5))  # .1 s
    policy.dispatched(sent(E0, 15_000.0, 0.0, 0.0, 0.5))  # 15 times as much: just followed
    assert scored(policy, 1000.0, 900.0, 0.0)[1].total > ASIDE_S
    policy.dispatched(sent(E0, 1.0, 0.0, 0.0, 0.5))
    assert scored(policy, 1000.0, 900.0, 0.0)[1].total == pytest.approx(0.2)


def test_work_counts_for_the_window_whether_or_not_more_comes() -> None:
    policy = Preble()
    policy.dispatched(sent(E0, 10_000.0, 0.0, 0.0, 1.0))
    policy.dispatched(sent(E0, 20_000.0, 0.0, 0.0, 100.0))
    loads = [scored(policy, 0.0, 0.0, now=now)[0].total for now in (100.0, 179.0, 181.0, 278.0, 281.0)]
    assert loads == pytest.approx([3.0, 3.0, 2.0, 2.0, 0.0])
    policy.dispatched(sent(E1, 1000.0, 0.0, 0.0, 181.0))
    assert policy.describe(E0)["load_s"] == 2.0


def test_the_window_is_an_option() -> None:
    policy = Preble(configure(preble_window_secs=60.0).policies.preble)
    policy.dispatched(sent(E0, 10_000.0, 0.0, 0.0, 1.0))
    assert [scored(policy, 0.0, 0.0, now=now)[0].total for now in (59.0, 62.0)] == pytest.approx([1.0, 0.0])


def test_times_are_measured() -> None:
    """First tokens of 500 each, dispatched together, every .1 s, one of them with a companion: .2 ms a token once the
    start (1000 tokens in .1 s) is forgotten."""
    policy = Preble()
    decision = sent(E0, 500.0, 0.0, 0.0, 1.0)
    policy.dispatched(decision)
    for n in range(2000):
        policy.first_token(decision, 1.1 + 0.1 * n)
    assert scored(policy, 1000.0, 0.0, now=2.0)[0].terms["prefill"] == pytest.approx(0.2, rel=1e-3)
    policy.first_token(decision, 1.1 + 0.1 * 1999)
    assert 0.19 < scored(policy, 1000.0, 0.0, now=2.0)[0].terms["prefill"] < 0.2


def test_a_wait_for_others_is_not_ones_own_time() -> None:
    policy = Preble()
    slow, quick = sent(E0, 1000.0, 0.0, 0.0, 0.0), sent(E0, 1000.0, 0.0, 0.0, 0.0)
    policy.dispatched(slow)
    policy.first_token(slow, 5.0)
    before = scored(policy, 1000.0, 0.0)[0].terms["prefill"]
    policy.first_token(quick, 5.1)  # 5.1 s after its dispatch, .1 s after the one before it
    assert scored(policy, 1000.0, 0.0)[0].terms["prefill"] < before


def test_time_per_output_token_is_the_median_of_answers() -> None:
    policy, stays = Preble(), sent(E0, 0.0, 0.0, 100.0, 0.5)
    policy.dispatched(stays)
    assert scored(policy, 0.0, 0.0)[0].total == pytest.approx(100 * 0.15)
    for ending, per_token_s in [(Ending.OK, 0.02), (Ending.CANCELLED, 9.0), (Ending.OK, 0.02)]:
        end(policy, sent(E0, 0.0, 0.0, 100.0, 0.5), ending, per_token_s)
    assert scored(policy, 0.0, 0.0)[0].total == pytest.approx(100 * 0.02)  # of .15, .02, .02


@pytest.mark.parametrize("ending", list(Ending))
def test_decoding_counts_until_the_request_is_over_and_prefill_for_the_window(ending: Ending) -> None:
    policy = Preble()
    first, second = sent(E0, 1000.0, 0.0, 100.0, 0.5), sent(E0, 1000.0, 0.0, 30.0, 0.5)
    policy.dispatched(first)
    policy.dispatched(second)
    assert policy.describe(E0)["load_s"] == pytest.approx(0.2 + 130 * 0.15)
    end(policy, first, ending, 0.15)
    end(policy, first, ending, 0.15)
    assert policy.describe(E0)["load_s"] == pytest.approx(0.2 + 30 * 0.15)
    end(policy, second, ending, 0.15)
    assert policy.describe(E0)["load_s"] == 0.2


def test_requests_of_a_forgotten_engine_are_not_taken_from_its_namesake() -> None:
    policy, old = Preble(), sent(E0, 0.0, 0.0, 100.0, 0.5)
    policy.dispatched(old)
    policy.forget(E0)
    policy.dispatched(sent(E0, 0.0, 0.0, 10.0, 0.5))
    end(policy, old, Ending.ENGINE_LOST)
    assert policy.describe(E0)["load_s"] == 1.5


def test_slices_are_bounded() -> None:
    policy = Preble()
    for n in range(10 * SLICES):
        policy.dispatched(sent(E0, 10.0, 0.0, 0.0, 3.0 * n))
    assert policy.describe(E0)["load_s"] == pytest.approx(10.0 * SLICES / 10_000)
