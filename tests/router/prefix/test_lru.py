import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prefix.lru import SURPLUS_BLOCKS
from router.prefix.observation import CacheObservation
from router.types import BlockKey, EngineId, PrefixExpectation
from tests.support.single_index import SingleLru

A, B = EngineId("a"), EngineId("b")
BLOCK = 10.0


def keys(*names: int) -> tuple[BlockKey, ...]:
    return tuple(BlockKey(n) for n in names)


def index_of(*engines: EngineId, capacity: float = 1000.0, most: int = 1000, guessed: bool = False) -> SingleLru:
    index = SingleLru(most)
    for engine in engines:
        index.join(engine, capacity, guessed=guessed)
    return index


def book(index: SingleLru, engine: EngineId, prompt: tuple[BlockKey, ...], matched: float) -> PrefixExpectation:
    return index.book(engine, prompt, index.held_runs(prompt), matched, BLOCK)


def answer(
    index: SingleLru,
    engine: EngineId,
    prompt: tuple[BlockKey, ...],
    cached: int | None,
    *,
    extra: tuple[BlockKey, ...] = (),
) -> PrefixExpectation:
    """One request through the index; what it predicted."""
    matched = index.match(prompt).get(engine, 0)
    expectation = book(index, engine, prompt, matched)
    settle(index, engine, prompt + extra, expectation, cached)
    return expectation


def settle(
    index: SingleLru,
    engine: EngineId,
    all_keys: tuple[BlockKey, ...],
    expectation: PrefixExpectation,
    cached: int | None,
) -> None:
    expected_tokens = expectation.blocks * BLOCK
    index.settle(engine, CacheObservation(all_keys, (), expectation, BLOCK, 1.0, BLOCK, 0.0, expected_tokens, cached))


def test_one_walk_finds_every_engines_longest_prefix() -> None:
    index = index_of(A, B)
    book(index, A, keys(1, 2, 3, 4), 0)
    book(index, B, keys(1, 2, 9), 0)
    assert index.match(keys(1, 2, 3, 5)) == {A: 3, B: 2}
    assert index.match(keys(7, 1, 2)) == {}
    assert index.match(()) == {}


def test_a_prompt_is_held_from_its_dispatch_and_its_reply_from_its_answer() -> None:
    index = index_of(A)
    expectation = book(index, A, keys(1, 2), 0)
    assert index.match(keys(1, 2, 3)) == {A: 2}
    settle(index, A, keys(1, 2, 3), expectation, None)
    assert index.match(keys(1, 2, 3, 4)) == {A: 3}


def test_the_least_recently_used_goes_first_and_tails_before_roots() -> None:
    index = index_of(A, capacity=4 * BLOCK)
    book(index, A, keys(1, 2), 0)
    book(index, A, keys(3, 4), 0)
    book(index, A, keys(1, 2), 2)
    book(index, A, keys(5), 0)
    assert index.match(keys(3, 4)) == {A: 1}
    assert index.match(keys(1, 2)) == {A: 2}
    assert index.blocks(A) == 4


def test_capacity_shrinks_for_hits_promised_in_vain_and_grows_for_more_found() -> None:
    index = index_of(A)
    prompt = keys(1, 2, 3, 4)
    answer(index, A, prompt, 0)
    assert index.capacity_tokens(A) == 1000.0
    answer(index, A, prompt, 20)
    assert index.capacity_tokens(A) == pytest.approx(980.0)
    answer(index, A, keys(8, 9), 20)
    assert index.capacity_tokens(A) == pytest.approx(980.0 * 1.02)
    answer(index, A, prompt, 35)  # within one block: says nothing
    assert index.capacity_tokens(A) == pytest.approx(980.0 * 1.02)


def test_a_guessed_capacity_moves_faster_and_both_are_bounded() -> None:
    index = index_of(A, capacity=10_000.0, guessed=True)
    answer(index, A, keys(1, 2), 20)
    assert index.capacity_tokens(A) == 10_500.0
    for n in range(200):
        answer(index, A, keys(10 * n, 10 * n + 1), 20)
    assert index.capacity_tokens(A) == 40_000.0
    for _ in range(400):
        answer(index, A, keys(*range(9000, 9040)), 11)
    assert index.capacity_tokens(A) == 10_000.0 / 64


def test_an_engine_that_tells_its_size_later_keeps_what_it_holds() -> None:
    index = index_of(A)
    book(index, A, keys(1, 2, 3), 0)
    index.join(A, 2 * BLOCK, guessed=False)
    assert index.match(keys(1, 2, 3)) == {A: 2}


def test_a_restart_is_noticed_when_certain_hits_are_lost_twice() -> None:
    index = index_of(A, B)
    for engine in (A, B):
        answer(index, engine, keys(1, 2, 3, 4), 0)
        answer(index, engine, keys(5, 6, 7, 8), 0)
        answer(index, engine, keys(11, 12, 13), 0)
    assert answer(index, A, keys(1, 2, 3, 4), 0).telling is not None
    assert index.match(keys(11, 12, 13)) == {A: 3, B: 3}
    answer(index, A, keys(5, 6, 7, 8), 0)
    assert index.match(keys(11, 12, 13)) == {B: 3}
    assert index.match(keys(1, 2, 3, 4)) == index.match(keys(5, 6, 7, 8)) == {A: 4, B: 4}  # cached again


def test_one_lost_hit_or_an_old_one_is_no_restart() -> None:
    index = index_of(A, capacity=40 * BLOCK)
    prompt, other = keys(1, 2, 3), keys(4, 5, 6)
    for each in (prompt, other):
        answer(index, A, each, 0)
    answer(index, A, prompt, 0)
    answer(index, A, other, 30)  # older than the loss and found: there was no restart
    answer(index, A, prompt, 0)
    assert index.match(other) == {A: 3}
    for n in range(9):
        answer(index, A, keys(*range(100 + 3 * n, 103 + 3 * n)), None)
    assert answer(index, A, prompt, 0).telling is None


def test_an_unanswered_dispatch_tells_nothing_of_a_restart() -> None:
    index = index_of(A)
    book(index, A, keys(1, 2, 3), 0)
    assert book(index, A, keys(1, 2, 3), 3).telling is None


def test_a_failed_request_takes_back_only_what_no_answer_confirmed() -> None:
    index = index_of(A)
    answer(index, A, keys(1, 2), 0)
    expectation = book(index, A, keys(1, 2, 3, 4), 2)
    index.retract(A, keys(1, 2, 3, 4), expectation)
    assert index.match(keys(1, 2, 3, 4)) == {A: 2}


def test_forgotten_and_removed_engines_hold_nothing_and_bits_are_used_again() -> None:
    index = index_of(A, B)
    for engine in (A, B):
        book(index, engine, keys(1, 2), 0)
    index.forget(A)
    assert index.match(keys(1, 2)) == {B: 2}
    index.remove(B)
    assert (index.match(keys(1, 2)), len(index)) == ({}, 0)
    index.join(EngineId("c"), 100.0, guessed=False)
    assert index.match(keys(1, 2)) == {}


def test_the_end_of_a_request_whose_engine_has_gone_is_harmless() -> None:
    index = index_of(A)
    expectation = book(index, A, keys(1), 0)
    index.remove(A)
    settle(index, A, keys(1), expectation, 0)
    index.retract(A, keys(1), expectation)
    assert len(index) == 0


def test_a_request_from_before_an_engines_return_is_not_taken_for_one_of_now() -> None:
    index = index_of(A)
    expectation = book(index, A, keys(1, 2), 0)
    index.remove(A)
    index.join(A, 1000.0, guessed=False)
    book(index, A, keys(7, 8), 0)  # its touch has the serial number that the older request's had
    settle(index, A, keys(1, 2), expectation, None)
    assert index.match(keys(1, 2)) == {A: 2}
    assert index.blocks(A) == 4


def test_a_large_correction_of_the_capacity_takes_several_requests() -> None:
    index = index_of(A, capacity=1e6, most=100_000)
    for n in range(100):
        answer(index, A, keys(*range(1000 * n, 1000 * n + 500)), None)
    assert index.blocks(A) == 50_000
    index._parts[A].capacity_tokens = 40_000 * BLOCK
    answer(index, A, keys(1, 2), None)  # each is booked and settled
    assert index.blocks(A) == 50_000 - 2 * (SURPLUS_BLOCKS + 4)
    for _ in range(20):
        answer(index, A, keys(1, 2), None)
    assert index.blocks(A) == 40_000


def test_the_cap_over_all_engines_is_reached_and_held() -> None:
    index = index_of(A, B, capacity=1e9, most=100)
    for n in range(500):
        book(index, A if n % 3 else B, keys(*range(10 * n, 10 * n + 5)), 0)
    assert len(index) == 100
    assert (index.blocks(A), index.blocks(B)) == (50, 50)
    index.join(EngineId("c"), 1e9, guessed=False)
    assert len(index) == 66


def test_what_is_kept_of_touches_follows_what_is_left_of_them() -> None:
    """Prompts of 200 blocks that go on where others fork: each leaves one block behind that nobody asks for again."""
    index = index_of(A, capacity=1e9, most=5000)
    stem = keys(*range(199))
    for n in range(10_000):
        answer(index, A, (*stem, BlockKey(1000 + n)), None)
        if n % 500 == 0:
            touches = index._parts[A].touches.values()
            assert sum(touch.left for touch in touches) == index.blocks(A)
            assert sum(len(touch.keys) for touch in touches) <= 4 * index.blocks(A)
    assert index.blocks(A) == 5000
    for _ in range(10_000):
        answer(index, A, stem, None)
    assert len(index._parts[A].touches) <= 5000


class Plain:
    """The same index for one engine in as few words as it can be said: an ordered dictionary."""

    def __init__(self, limit: int) -> None:
        self.limit, self.confirmed, self.clock = limit, OrderedDict[BlockKey, int](), 0

    def match(self, prompt: tuple[BlockKey, ...]) -> int:
        return [*(key in self.confirmed for key in prompt), False].index(False)

    def touch(self, prompt: tuple[BlockKey, ...], *, confirmed: bool) -> None:
        self.clock += len(prompt)
        for key in reversed(prompt):
            known = self.confirmed.pop(key, 0)
            self.confirmed[key] = self.clock if confirmed else known
        while len(self.confirmed) > self.limit:
            self.confirmed.popitem(last=False)

    def retract(self, prompt: tuple[BlockKey, ...]) -> None:
        for key in prompt:
            if self.confirmed.get(key) == 0:
                del self.confirmed[key]


@pytest.mark.parametrize("seed", range(4))
def test_each_engine_is_as_if_alone_and_as_a_plain_lru(seed: int) -> None:
    chance = random.Random(seed)
    index = index_of(A, B, capacity=60 * BLOCK)
    plain = {A: Plain(60), B: Plain(60)}
    running: list[tuple[EngineId, tuple[BlockKey, ...], PrefixExpectation]] = []
    for _ in range(4000):
        if running and chance.random() < 0.5:
            engine, prompt, expectation = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.3:
                index.retract(engine, prompt, expectation)
                plain[engine].retract(prompt[expectation.blocks :])
            else:
                settle(index, engine, prompt, expectation, None)
                plain[engine].touch(prompt, confirmed=True)
        else:
            path = [chance.randrange(2) for _ in range(chance.randint(1, 12))]
            prompt = tuple(BlockKey(hash(tuple(path[: n + 1]))) for n in range(len(path)))
            engine = chance.choice([A, B])
            assert index.match(prompt) == {e: p.match(prompt) for e, p in plain.items() if p.match(prompt)}
            running.append((engine, prompt, book(index, engine, prompt, plain[engine].match(prompt))))
            plain[engine].touch(prompt, confirmed=False)
        assert {e: index.blocks(e) for e in plain} == {e: len(p.confirmed) for e, p in plain.items()}


def test_a_path_that_repeats_blocks_is_no_chain_and_breaks_nothing() -> None:
    chance = random.Random(0)
    index = index_of(A, B, capacity=30 * BLOCK)
    for n in range(3000):
        prompt = keys(*(chance.randrange(9 if n % 2 else 60) for _ in range(8)))
        engine = chance.choice([A, B])
        expectation = book(index, engine, prompt, index.match(prompt).get(engine, 0))
        if n % 3:
            settle(index, engine, prompt, expectation, None)
        else:
            index.retract(engine, prompt, expectation)
        assert len(index) <= 60
        assert len(index._block_map) <= 69
    index.forget(A)
    index.forget(B)
    assert len(index) == 0


def test_a_prompt_longer_than_the_cache_leaves_its_root() -> None:
    index = index_of(A, capacity=3 * BLOCK)
    book(index, A, keys(*range(10)), 0)
    assert index.match(keys(*range(10))) == {A: 3}


prompts = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(
    lambda path: tuple(BlockKey(hash(tuple(path[: n + 1])) & 0xFFFFFFFF) for n in range(len(path)))
)
operations = st.lists(st.tuples(st.sampled_from("bbbsxfc"), st.sampled_from((A, B)), prompts), max_size=80)


@given(operations, st.integers(2, 30))
def test_match_is_the_run_of_blocks_held_and_the_cap_stands(
    steps: list[tuple[str, EngineId, tuple[BlockKey, ...]]], most: int
) -> None:
    index = index_of(A, B, capacity=12 * BLOCK, most=most)
    for what, engine, prompt in steps:
        matched = index.match(prompt)
        if what == "f":
            index.forget(engine)
            assert index.blocks(engine) == 0
        elif what == "c":
            index.join(engine, 8 * BLOCK, guessed=True)
        else:
            expectation = book(index, engine, prompt, matched.get(engine, 0))
            if what == "s":
                settle(index, engine, prompt, expectation, 0)
            elif what == "x":
                index.retract(engine, prompt, expectation)
        assert len(index) <= most
        for each in (A, B):
            held = [each in index.match((key,)) for key in prompt]
            assert index.match(prompt).get(each, 0) == [*held, False].index(False)
            assert index.blocks(each) >= sum(held)
