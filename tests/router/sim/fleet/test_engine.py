"""The simulated engine: its schedule by hand, and what holds whatever comes."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine_patches.orders import ORDERS
from router.sim.fleet.engine import NEVER, Engine
from router.sim.fleet.hardware import Hardware
from router.sim.fleet.job import Job
from router.types import BlockKey

Arrival = tuple[float, Job]
Times = dict[int, float]

# A step: 10 ms, or 1 ms a prompt token if that is longer; 1 ms a sequence; 0.01 ms a token of context.
PLAIN = Hardware("plain", 0, 10, 1.0, 0.0, 1.0, 0.01, 100, 0)


def engine_of(blocks: int = 100, order: str = "lru", cls: type[Engine] = Engine, **changes: Any) -> Engine:
    return cls(replace(PLAIN, **changes), ORDERS[order](blocks, seed=0), 10)


def keys_of(*numbers: int) -> tuple[BlockKey, ...]:
    return tuple(BlockKey(number) for number in numbers)


def number_of(job: Job) -> int:
    assert isinstance(job.tag, int)
    return job.tag


def job(number: int, prompt: int, output: int, shared: Sequence[int] = ()) -> Job:
    """Blocks of 10 tokens; the first of them have the keys `shared`."""
    own = [1000 * number + index for index in range((prompt + output) // 10 - len(shared))]
    return Job(keys_of(*shared, *own), prompt, output, number)


class Slow(Engine):
    """Every step is an event."""

    def _steps_until_change(self) -> int:
        return 1


def drive(engine: Engine, arrivals: Iterable[Arrival]) -> tuple[Times, Times]:
    """All arrivals (time, job) through the engine: when each job had its first token and its last."""
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    first_s: Times = {}
    done_s: Times = {}
    while waiting or engine.next_s < NEVER:
        if waiting and waiting[0][0] < engine.next_s:
            now, each = waiting.pop(0)
            engine.submit(each, now)
            continue
        now = engine.next_s
        first, done = engine.advance()
        first_s |= {number_of(each): now for each in first}
        done_s |= {number_of(each): now for each in done}
    return first_s, done_s


def test_one_request_by_hand() -> None:
    engine = engine_of()
    first, done = drive(engine, [(5.0, job(1, 150, 3))])
    # Steps: 100 tokens in 101 ms; 50 in 51 ms, the first token; two decodes of 10 + 1 + 1.5 and 10 + 1 + 1.51 ms.
    assert first[1] == pytest.approx(5.152)
    assert done[1] == pytest.approx(5.152 + 0.0125 + 0.01251)
    assert engine.busy_s == pytest.approx(done[1] - 5.0)
    assert engine.pool.free == 100


def test_two_requests_share_steps_by_hand() -> None:
    engine = engine_of()
    first, done = drive(engine, [(0.0, job(1, 60, 3)), (0.01, job(2, 120, 2))])
    # 0.061: token 1 of the first. Then 1 decode and 99 of the second's 120: 99 + 2 + 0.6 ms; then 1 and the rest, 21:
    # 21 + 2 + 0.61 ms, the first is done; last the second's decode alone: 10 + 1 + 1.2 ms.
    assert first == {1: pytest.approx(0.061), 2: pytest.approx(0.061 + 0.1016 + 0.02361)}
    assert done == {1: first[2], 2: pytest.approx(first[2] + 0.0122)}


def test_slower_by_a_factor() -> None:
    engine = engine_of()
    engine.slow_down(2.5, 0.0)
    _, done = drive(engine, [(0.0, job(1, 50, 1))])
    assert done[1] == pytest.approx(2.5 * 0.051)


def test_a_slowdown_begins_with_the_next_step() -> None:
    engine = engine_of(context_ms=0.0)
    engine.submit(job(1, 10, 11), 0.0)  # 11 ms for each of 11 steps
    engine.advance()
    engine.slow_down(2.0, 0.011 * 4.5)
    assert engine.next_s == pytest.approx(0.011 * 5)
    _, done = drive(engine, [])
    assert done[1] == pytest.approx(0.011 * 5 + 0.022 * 6)


def test_a_cached_prefix_is_not_computed_again() -> None:
    engine = engine_of()
    shared = (7, 8, 9)
    one, two = job(1, 35, 1, shared), job(2, 35, 1, shared)
    _, done = drive(engine, [(0.0, one), (1.0, two)])
    assert (one.cached_tokens, two.cached_tokens) == (0, 30)
    assert done[2] == pytest.approx(1.011)


def test_never_the_whole_prompt() -> None:
    engine = engine_of()
    one, two = job(1, 30, 1, (7, 8, 9)), job(2, 30, 1, (7, 8, 9))
    drive(engine, [(0.0, one), (1.0, two)])
    assert two.cached_tokens == 20
    assert engine.pool.free == 100


def test_blocks_of_the_answer_are_cached() -> None:
    engine = engine_of()
    one = job(1, 25, 16)
    drive(engine, [(0.0, one)])
    # The last token of the answer is never computed: 40 of 41.
    follow_up = Job((*one.keys, *keys_of(5, 6)), 60, 1, 2)
    drive(engine, [(1.0, follow_up)])
    assert follow_up.cached_tokens == 40


def test_a_burst_of_equal_prefixes_is_computed_once() -> None:
    engine = engine_of(budget_tokens=1000)
    jobs = [job(number, 45, 1, (7, 8, 9)) for number in range(4)]
    engine.submit(job(9, 10, 1), 0.0)
    for each in jobs:
        engine.submit(each, 0.0)
    drive(engine, [])
    assert [each.cached_tokens for each in jobs] == [0, 30, 30, 30]


def test_most_sequences() -> None:
    engine = engine_of(most_sequences=2)
    first, done = drive(engine, [(0.0, job(number, 10, 5)) for number in range(3)])
    assert first[2] > done[0]


def test_first_come_first_served_when_memory_is_short() -> None:
    engine = engine_of(blocks=10)
    first, done = drive(engine, [(0.0, job(1, 60, 4)), (0.001, job(2, 80, 4)), (0.002, job(3, 10, 4))])
    assert first[2] > done[1]
    assert first[3] >= first[2]


def test_the_newest_is_preempted() -> None:
    engine = engine_of(blocks=10)
    old, new = job(1, 39, 40), job(2, 39, 40)
    first, done = drive(engine, [(0.0, old), (0.0, new)])
    assert (old.preemptions, new.preemptions) == (0, 1)
    assert engine.preemptions == 1
    # Both run until they need an eleventh block; the newer one goes on when the older one is done, and its cached
    # tokens stay those of its first admission.
    assert done[2] > done[1]
    assert first[2] < done[1]
    assert new.cached_tokens == 0
    assert engine.pool.free == 10


def test_death() -> None:
    engine = engine_of()
    jobs = [job(number, 50, 5) for number in range(4)]
    for each in jobs:
        engine.submit(each, 0.0)
    engine.advance()
    assert engine.kill() == jobs
    assert engine.next_s == NEVER


def test_an_aborted_request_goes_with_its_step() -> None:
    engine = engine_of(context_ms=0.0)
    left, other = job(1, 10, 90), job(2, 10, 21)
    engine.submit(left, 0.0)
    engine.submit(other, 0.0)  # behind the first step
    engine.advance()
    engine.advance()
    began_s = engine.next_s - engine._duration_s(engine._steps_under_way)
    engine.abort(left, began_s + 0.012 * 3.5)  # 10 + 2 ms a step
    assert engine.next_s == pytest.approx(began_s + 0.012 * 4)
    assert engine.advance() == ([], [])
    assert left.generated == 1 + 1 + 4  # its first, one beside the other's prompt, four steps
    assert list(engine.running) == [other]
    _, done = drive(engine, [])
    assert set(done) == {2}
    assert engine.pool.free == 100
    again = job(1, 10, 90)
    drive(engine, [(9.0, again)])
    assert again.cached_tokens == 0  # one block: the last token of a prompt is always computed
    follow_up = Job(left.keys, 60, 1, 3)
    drive(engine, [(19.0, follow_up)])
    assert follow_up.cached_tokens == 50  # of the answer, too


@pytest.mark.parametrize("prompts", [(500,), (500, 30)])
def test_a_request_is_aborted_while_it_waits_or_is_computed(prompts: tuple[int, ...]) -> None:
    engine = engine_of()
    jobs = [job(number, prompt, 5) for number, prompt in enumerate(prompts)]
    for each in jobs:
        engine.submit(each, 0.0)
    engine.abort(jobs[-1], 0.02)
    first, done = drive(engine, [])
    assert set(first) == set(done) == set(range(len(prompts) - 1))
    assert (engine.pool.free, engine.next_s) == (100, NEVER)
    assert not engine.waiting


def test_a_request_that_is_aborted_in_its_last_step_is_not_done() -> None:
    engine = engine_of()
    engine.submit(only := job(1, 10, 1), 0.0)
    engine.abort(only, 0.005)
    first, done = engine.advance()
    assert (first, done) == ([only], [])
    assert engine.next_s == NEVER


def test_fits() -> None:
    engine = engine_of(blocks=10)
    assert engine.fits(job(1, 90, 10))
    assert not engine.fits(job(1, 91, 10))


def some_arrivals(seed: int, blocks: int) -> Iterator[Arrival]:
    rng, now = random.Random(seed), 0.0
    for number in range(120):
        now += rng.choice([0.0, 0.013, rng.expovariate(6.0)])
        shared = tuple(range(100 * rng.randrange(5), 100 * rng.randrange(5) + 7))[: rng.randrange(8)]
        prompt = 10 * len(shared) + rng.randint(1, 120)
        output = rng.choice([1, 2, rng.randint(1, 90)])
        if prompt + output <= 10 * blocks:
            own = range(10_000 * (number + 1), 10_000 * (number + 1) + 30)
            yield now, Job(keys_of(*shared, *own), prompt, output, number)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blocks", [26, 60, 400])
def test_steps_that_are_one_event_change_nothing(order: str, blocks: int) -> None:
    """The jump over steps against every step on its own: the same times, hits and preemptions."""
    for seed in range(3):
        seen = []
        for cls in (Engine, Slow):
            engine = engine_of(blocks, order, cls)
            arrivals = list(some_arrivals(seed, blocks))
            first, done = drive(engine, arrivals)
            assert set(first) == set(done) == {each.tag for _, each in arrivals}  # each exactly once
            assert engine.pool.free == blocks
            assert not engine.running
            assert not engine.waiting
            assert not engine._decoding_count
            assert engine._context_tokens == 0
            facts = [(each.tag, each.cached_tokens, each.preemptions) for _, each in arrivals]
            seen.append((facts, [first[tag] for tag in sorted(first)], [done[tag] for tag in sorted(done)]))
        (fast_facts, fast_first, fast_done), (slow_facts, slow_first, slow_done) = seen
        assert fast_facts == slow_facts
        assert fast_first == pytest.approx(slow_first)
        assert fast_done == pytest.approx(slow_done)


def test_the_small_cache_above_preempts() -> None:
    engine = engine_of(26)
    drive(engine, some_arrivals(0, 26))
    assert engine.preemptions > 0
