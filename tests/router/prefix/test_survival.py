"""The survival index against a plain model of its definition, its curve, and its bounds."""

import math
import random
from collections import Counter

import pytest

from router.prefix.index import PrefixIndex
from router.prefix.observation import CacheObservation
from router.prefix.recency import IN_USE
from router.prefix.survival import CAPACITIES
from router.prefix.survival_curve import BINS, EDGES, PRIOR
from router.types import BlockKey, EngineId, PrefixExpectation
from tests.support.single_index import SingleSurvival, all_marks

A, B = EngineId("a"), EngineId("b")


Path = tuple[BlockKey, ...]


def keys(*numbers: int) -> Path:
    return tuple(BlockKey(n) for n in numbers)


def index_of(
    *engines: EngineId, capacity: float = 100.0, most: int = 100_000, order: str = "rlt_gix"
) -> SingleSurvival:
    index = SingleSurvival(most)
    for engine in engines:
        index.join(engine, capacity, order)
    return index


def book(index: SingleSurvival, engine: EngineId, prompt: Path) -> PrefixExpectation:
    return index.start(engine, prompt)


def serve(
    index: SingleSurvival, engine: EngineId, prompt: Path, cached: float | None = None, reply: Path = ()
) -> PrefixExpectation:
    expectation = book(index, engine, prompt)
    index.finish(engine, reply, expectation, cached)
    return expectation


def serve_both(index_of_both: PrefixIndex, engine: EngineId, prompt: Path, reply: Path = ()) -> None:
    """The same through both indexes, of one token a block; nothing was found."""
    expectation = index_of_both.book(engine, prompt, index_of_both.match(prompt), 1.0)
    observation = CacheObservation(prompt, reply, expectation, 1.0, 1.0, 1.0, len(prompt), 0.0, 0)
    index_of_both.settle(engine, observation)


def test_what_was_never_sent_there_is_not_expected() -> None:
    index = index_of(A, B)
    assert index.match(keys(1, 2)) == {}
    serve(index, A, keys(1, 2, 3))
    assert index.match(keys(9, 1)) == {}
    assert index.match(keys(1, 2, 7)) == {A: pytest.approx(2 * PRIOR[0])}


def test_blocks_in_use_are_certain_and_later_ones_are_not() -> None:
    index = index_of(A)
    serve(index, A, keys(1, 2, 3, 4))
    index._parts[A].curve.chance = [0.5] * BINS
    assert index.match(keys(1, 2, 3, 4)) == {A: pytest.approx(2)}
    expectation = book(index, A, keys(1, 2))
    assert index.match(keys(1, 2, 3, 4)) == {A: pytest.approx(2 + 2 * 0.5)}
    book(index, A, keys(1, 2))
    index.finish(A, (), expectation, None)
    assert index.match(keys(1, 2)) == {A: 2}  # the second request still runs


def test_a_block_survives_at_most_as_well_as_its_parent() -> None:
    index = index_of(A)
    serve(index, A, keys(1, 2, 3))
    serve(index, A, keys(*range(100, 150)))
    expectation = book(index, A, keys(7))  # nothing of the path
    index.finish(A, keys(3), expectation, None)  # block 3 alone is young again
    old, young = (index._parts[A].bin_of(index._block_map.marks(BlockKey(n))[0]) for n in (1, 3))
    assert young < old
    curve = index._parts[A].curve
    curve.chance = [1 - bin_ / BINS for bin_ in range(BINS)]
    assert index.match(keys(1, 2, 3)) == {A: pytest.approx(3 * curve.chance[old])}


def test_an_answer_teaches_the_bins_of_its_walk() -> None:
    index = index_of(A)
    serve(index, A, keys(1, 2, 3, 4))
    serve(index, A, keys(*range(10, 70)))
    curve = index._parts[A].curve
    bin_ = index._parts[A].bin_of(index._block_map.marks(BlockKey(1))[0])
    assert 0 < bin_ < BINS
    before = curve.chance[bin_]
    expectation = serve(index, A, keys(1, 2, 3, 4), cached=1.0)  # a quarter of them
    assert expectation.bins == ((bin_, 0, 4),)
    assert curve.chance[bin_] < before
    expectation = serve(index, A, keys(1, 2, 3, 4), cached=math.inf)
    assert expectation.bins == ((0, 0, 4),)


def test_orders_have_curves_of_their_own() -> None:
    index = SingleSurvival(1000)
    index.join(A, 100.0, "rlt")
    index.join(B, 100.0, "rlt_gix")
    for _ in range(50):
        serve(index, A, keys(1, 2), cached=0.5)
    serve(index, B, keys(1, 2))
    hits = index.match(keys(1, 2))
    assert hits[A] < 1.5 < hits[B]


def test_rank_counts_what_was_touched_since_over_the_capacity() -> None:
    """The bin of a path grows with each hundredth of the capacity touched after it, within a generation's width."""
    index = index_of(A, capacity=1000.0)
    serve(index, A, keys(1, 2))
    touched = 0
    for number in range(300):
        serve(index, A, keys(*range(1000 + 20 * number, 1020 + 20 * number)))
        touched += 20
        generation = index._block_map.marks(BlockKey(1)).get(0)
        if generation is None:
            break
        bin_ = index._parts[A].bin_of(generation)
        rank = touched / 1000
        low = next((i for i, edge in enumerate(EDGES) if rank - 0.15 < edge), BINS - 1)
        high = next((i for i, edge in enumerate(EDGES) if rank + 0.15 < edge), BINS - 1)
        assert low <= bin_ <= high
    assert touched > 5000


def test_a_request_that_never_began_leaves_nothing_of_its_own() -> None:
    index = index_of(A)
    serve(index, A, keys(1, 2))
    expectation = book(index, A, keys(1, 2, 3))
    index.take_back(A, expectation)
    assert index.blocks(A) == 2
    assert set(all_marks(index._block_map)) == set(keys(1, 2))


def test_a_forgotten_engine_is_expected_to_hold_nothing() -> None:
    index = index_of(A)
    serve(index, A, keys(1, 2), cached=2.0)
    index.forget(A)
    assert index.match(keys(1, 2)) == {}
    assert index.blocks(A) == 0
    index.remove(A)
    assert len(index) == 0


def check(index: SingleSurvival) -> None:
    for engine, part in index._parts.items():
        held = {key: marks[part.number] for key, marks in all_marks(index._block_map).items() if part.number in marks}
        young = [max(mark, part.first) for mark in held.values() if mark < IN_USE]
        in_use = Counter(key for prompt in part.unfinished.values() for key in prompt)
        assert {key: mark - IN_USE for key, mark in held.items() if mark >= IN_USE} == in_use
        assert index.blocks(engine) == len(held)
        assert part.in_use == len(in_use)
        for place, count in enumerate(part.counts):
            assert count == young.count(part.first + place)
        assert all(key in part.lists[max(0, mark - part.first)] for key, mark in held.items() if mark < IN_USE)
        assert len(part.lists) == len(part.counts) == len(part.ranks)
    assert all(all_marks(index._block_map).values())


@pytest.mark.parametrize("seed", range(3))
def test_books_agree_after_random_traffic(seed: int) -> None:
    chance = random.Random(seed)
    index = index_of(A, B, capacity=60.0)
    running: list[tuple[EngineId, Path, PrefixExpectation]] = []
    for step in range(3000):
        if running and chance.random() < 0.5:
            engine, prompt, expectation = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.2:
                index.take_back(engine, expectation)
            else:
                cached = chance.choice([None, 0.0, 2.0, math.inf])
                index.finish(engine, keys(chance.randrange(10_000, 20_000)), expectation, cached)
        else:
            stem = chance.randrange(40)
            prompt = keys(*(100 * stem + n for n in range(chance.randint(1, 9))), 5000 + step)
            engine = chance.choice([A, B])
            expected = index.match(prompt).get(engine, 0.0)
            assert 0 <= expected <= len(prompt)
            running.append((engine, prompt, book(index, engine, prompt)))
        if step % 50 == 0:
            check(index)
        if step == 2000:
            index.forget(A)
            running = [each for each in running if each[0] != A]
    check(index)


def test_a_path_that_repeats_blocks_is_no_chain_and_breaks_nothing() -> None:
    chance = random.Random(0)
    index, running = index_of(A, B, capacity=30.0), []
    for n in range(3000):
        prompt, engine = keys(*(chance.randrange(9 if n % 2 else 60) for _ in range(8))), chance.choice([A, B])
        assert all(0 <= hit <= 8 for hit in index.match(prompt).values())
        running.append((engine, book(index, engine, prompt)))
        engine, expectation = running.pop(chance.randrange(len(running))) if n % 9 else running[-1]
        if n % 3:
            index.finish(engine, (), expectation, chance.choice([None, 0.0, 2.0]))
        else:
            index.take_back(engine, expectation)
    index.forget(A)
    index.forget(B)
    assert len(index._block_map) == len(index) == 0


def test_what_is_old_stays_known_while_others_come_again_and_again() -> None:
    """Age is counted in blocks touched since, each once: a hundred capacities of the same few are a few."""
    index = index_of(A)
    serve(index, A, keys(1, 2, 3))
    for _ in range(500):
        serve(index, A, keys(*range(10, 20)))
    assert index.match(keys(1, 2, 3))[A] > 2
    assert sum(map(len, index._parts[A].lists)) < 2 * 128 * 10 + 200  # as many touches as the generations hold
    check(index)


def test_a_mixed_fleet_shares_one_cap() -> None:
    index_of_both = PrefixIndex(1000)
    engines = {A: "lru", B: "rlt_gix"}
    for engine, order in engines.items():
        index_of_both.add(engine, 1e6, guessed=False, order=order)
    for n in range(400):
        for engine in engines:
            prompt = keys(*range(20 * n, 20 * n + 20))
            serve_both(index_of_both, engine, prompt)
    assert 700 < len(index_of_both) <= 1000 + 500 / 16 + 20  # a generation and a prompt may lie above it for a moment


def test_memory_reaches_its_caps_and_keeps_them() -> None:
    """Eight capacities an engine, and the cap of the whole index, whichever is less."""
    for most, bound in ((100_000, CAPACITIES * 100 * 1.2), (500, 500)):
        index = index_of(A, B, capacity=100.0, most=most)
        largest = 0
        for number in range(3000):
            engine = (A, B)[number % 2]
            serve(index, engine, keys(*range(10 * number, 10 * number + 10)))
            largest = max(largest, index.blocks(A))
        assert 0.3 * bound / (1 if most > 1000 else 2) < largest <= bound
        assert len(index._block_map) <= 2 * bound
        assert sum(map(len, index._parts[A].lists)) <= 2 * bound


def test_each_engine_is_in_the_index_of_its_order() -> None:
    index_of_both = PrefixIndex(1000)
    index_of_both.add(A, 100.0, guessed=False, order=None)
    index_of_both.add(B, 100.0, guessed=False, order="rlt_gix")
    for engine in (A, B):
        serve_both(index_of_both, engine, keys(1, 2), reply=keys(3))
    assert index_of_both.match(keys(1, 2, 3)).blocks == {A: 3, B: pytest.approx(3 * PRIOR[0])}
    assert (index_of_both.blocks(A), index_of_both.blocks(B), len(index_of_both)) == (3, 3, 6)
    index_of_both.add(A, 100.0, guessed=False, order="rlt")  # restarted under another order: starts empty there
    assert index_of_both.match(keys(1)).blocks == {B: pytest.approx(PRIOR[0])}
    index_of_both.remove(A)
    index_of_both.remove(B)
    assert len(index_of_both) == 0
