from router.policies.lbgr.engine_steps import EngineSteps
from router.types import Decision, EngineId
from tests.support.virtual_fleet import ask_for, decided


def sent(at_s: float, tokens: float = 100.0, hit: float = 0.0) -> Decision:
    return decided(ask_for(1), EngineId("e0"), prompt_tokens=tokens, hit_tokens=hit, booking=0, dispatched_s=at_s)


def test_first_tokens_within_three_milliseconds_are_one_step() -> None:
    steps = EngineSteps()
    assert steps.add(sent(0.0, 100, 20), 1.0, clean=True) is None
    assert steps.add(sent(0.5, 50, 10), 1.002, clean=True) is None
    step = steps.close(1.01)
    assert step is not None
    assert (step.requests, step.miss_tokens, step.hit_tokens, step.duration_s) == (2, 120.0, 30.0, 1.0)
    assert step.token_pairs == 80 * (20 + 40) + 40 * (10 + 20)


def test_a_later_first_token_ends_the_step_and_starts_the_next_at_the_previous_token() -> None:
    steps = EngineSteps()
    steps.add(sent(0.0), 1.0, clean=True)
    first = steps.add(sent(0.0), 1.5, clean=True)
    second = steps.close(2.0)
    assert first is not None
    assert second is not None
    assert (first.duration_s, second.duration_s) == (1.0, 0.5)


def test_an_open_step_waits_and_an_unclean_member_spoils_it() -> None:
    steps = EngineSteps()
    steps.add(sent(0.0), 1.0, clean=True)
    assert steps.close(1.003) is None
    steps.add(sent(0.0), 1.001, clean=False)
    step = steps.close(1.1)
    assert step is not None
    assert not step.clean
    assert steps.close(2.0) is None
