import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prefix import PrefixIndex
from router.types import BlockKey, EngineId, Lookup

A, B = EngineId("a"), EngineId("b")
BLOCK = 10.0


def keys(*names: int) -> tuple[BlockKey, ...]:
    return tuple(BlockKey(n) for n in names)


def index_of(*engines: EngineId, capacity: float = 1000.0, most: int = 1000, guessed: bool = False) -> PrefixIndex:
    index = PrefixIndex(most)
    for engine in engines:
        index.add(engine, capacity, guessed=guessed)
    return index


def answer(
    index: PrefixIndex,
    engine: EngineId,
    prompt: tuple[BlockKey, ...],
    cached: int | None,
    *,
    extra: tuple[BlockKey, ...] = (),
) -> Lookup:
    """One request through the index; what it predicted."""
    matched = index.match(prompt).get(engine, 0)
    lookup = index.book(engine, prompt, matched, BLOCK)
    settle(index, engine, prompt + extra, lookup, cached)
    return lookup


def settle(
    index: PrefixIndex, engine: EngineId, all_keys: tuple[BlockKey, ...], lookup: Lookup, cached: int | None
) -> None:
    index.settle(
        engine,
        all_keys,
        lookup,
        block_tokens=BLOCK,
        slack_tokens=BLOCK,
        predicted_tokens=lookup.blocks * BLOCK,
        cached_tokens=cached,
    )


def test_one_walk_finds_every_engines_longest_prefix():
    index = index_of(A, B)
    index.book(A, keys(1, 2, 3, 4), 0, BLOCK)
    index.book(B, keys(1, 2, 9), 0, BLOCK)
    assert index.match(keys(1, 2, 3, 5)) == {A: 3, B: 2}
    assert index.match(keys(7, 1, 2)) == {}
    assert index.match(()) == {}


def test_a_prompt_is_held_from_its_dispatch_and_its_reply_from_its_answer():
    index = index_of(A)
    lookup = index.book(A, keys(1, 2), 0, BLOCK)
    assert index.match(keys(1, 2, 3)) == {A: 2}
    settle(index, A, keys(1, 2, 3), lookup, None)
    assert index.match(keys(1, 2, 3, 4)) == {A: 3}


def test_the_least_recently_used_goes_first_and_tails_before_roots():
    index = index_of(A, capacity=4 * BLOCK)
    index.book(A, keys(1, 2), 0, BLOCK)
    index.book(A, keys(3, 4), 0, BLOCK)
    index.book(A, keys(1, 2), 2, BLOCK)
    index.book(A, keys(5), 0, BLOCK)
    assert index.match(keys(3, 4)) == {A: 1}
    assert index.match(keys(1, 2)) == {A: 2}
    assert index.blocks(A) == 4


def test_capacity_shrinks_for_hits_promised_in_vain_and_grows_for_more_found():
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


def test_a_guessed_capacity_moves_faster_and_both_are_bounded():
    index = index_of(A, capacity=10_000.0, guessed=True)
    answer(index, A, keys(1, 2), 20)
    assert index.capacity_tokens(A) == 10_500.0
    for n in range(200):
        answer(index, A, keys(10 * n, 10 * n + 1), 20)
    assert index.capacity_tokens(A) == 40_000.0
    for _ in range(400):
        answer(index, A, keys(*range(9000, 9040)), 11)
    assert index.capacity_tokens(A) == 10_000.0 / 64


def test_an_engine_that_tells_its_size_later_keeps_what_it_holds():
    index = index_of(A)
    index.book(A, keys(1, 2, 3), 0, BLOCK)
    index.add(A, 2 * BLOCK, guessed=False)
    assert index.match(keys(1, 2, 3)) == {A: 2}


def test_a_flush_is_noticed_when_certain_hits_are_lost_twice():
    index = index_of(A, B)
    for engine in (A, B):
        answer(index, engine, keys(1, 2, 3, 4), 0)
        answer(index, engine, keys(5, 6, 7, 8), 0)
        answer(index, engine, keys(11, 12, 13), 0)
    assert answer(index, A, keys(1, 2, 3, 4), 0).recent
    assert index.match(keys(11, 12, 13)) == {A: 3, B: 3}
    assert answer(index, A, keys(5, 6, 7, 8), 0).recent
    assert index.match(keys(11, 12, 13)) == {B: 3}
    assert index.match(keys(5, 6, 7, 8)) == {A: 4, B: 4}


def test_one_lost_hit_or_an_old_one_is_no_flush():
    index = index_of(A, capacity=40 * BLOCK)
    prompt = keys(1, 2, 3)
    answer(index, A, prompt, 0)
    answer(index, A, prompt, 0)
    answer(index, A, prompt, 30)  # found again: the count starts anew
    answer(index, A, prompt, 0)
    assert index.match(prompt) == {A: 3}
    for n in range(5):
        answer(index, A, keys(*range(100 + 3 * n, 103 + 3 * n)), None)
    assert not answer(index, A, prompt, 0).recent


def test_an_unanswered_dispatch_is_no_proof_of_a_flush():
    index = index_of(A)
    index.book(A, keys(1, 2, 3), 0, BLOCK)
    assert not index.book(A, keys(1, 2, 3), 3, BLOCK).recent


def test_a_failed_request_takes_back_only_what_no_answer_confirmed():
    index = index_of(A)
    answer(index, A, keys(1, 2), 0)
    lookup = index.book(A, keys(1, 2, 3, 4), 2, BLOCK)
    index.retract(A, keys(1, 2, 3, 4), lookup)
    assert index.match(keys(1, 2, 3, 4)) == {A: 2}


def test_forgotten_and_removed_engines_hold_nothing_and_bits_are_used_again():
    index = index_of(A, B)
    for engine in (A, B):
        index.book(engine, keys(1, 2), 0, BLOCK)
    index.forget(A)
    assert index.match(keys(1, 2)) == {B: 2}
    index.remove(B)
    assert (index.match(keys(1, 2)), len(index)) == ({}, 0)
    index.add(EngineId("c"), 100.0, guessed=False)
    assert index.match(keys(1, 2)) == {}


def test_the_end_of_a_request_whose_engine_has_gone_is_harmless():
    index = index_of(A)
    lookup = index.book(A, keys(1), 0, BLOCK)
    index.remove(A)
    settle(index, A, keys(1), lookup, 0)
    index.retract(A, keys(1), lookup)
    assert len(index) == 0


def test_the_cap_over_all_engines_is_reached_and_held():
    index = index_of(A, B, capacity=1e9, most=100)
    for n in range(500):
        index.book(A if n % 3 else B, keys(*range(10 * n, 10 * n + 5)), 0, BLOCK)
    assert len(index) == 100
    assert (index.blocks(A), index.blocks(B)) == (50, 50)
    index.add(EngineId("c"), 1e9, guessed=False)
    assert len(index) == 66


def test_a_prompt_longer_than_the_cache_leaves_its_root():
    index = index_of(A, capacity=3 * BLOCK)
    index.book(A, keys(*range(10)), 0, BLOCK)
    assert index.match(keys(*range(10))) == {A: 3}


prompts = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(
    lambda path: tuple(BlockKey(hash(tuple(path[: n + 1])) & 0xFFFFFFFF) for n in range(len(path)))
)
operations = st.lists(st.tuples(st.sampled_from("bbbsxfc"), st.sampled_from((A, B)), prompts), max_size=80)


@given(operations, st.integers(2, 30))
def test_match_is_the_run_of_blocks_held_and_the_cap_stands(steps, most):
    index = index_of(A, B, capacity=12 * BLOCK, most=most)
    for what, engine, prompt in steps:
        matched = index.match(prompt)
        if what == "f":
            index.forget(engine)
            assert index.blocks(engine) == 0
        elif what == "c":
            index.add(engine, 8 * BLOCK, guessed=True)
        else:
            lookup = index.book(engine, prompt, matched.get(engine, 0), BLOCK)
            if what == "s":
                settle(index, engine, prompt, lookup, 0)
            elif what == "x":
                index.retract(engine, prompt, lookup)
        assert len(index) <= most
        for each in (A, B):
            held = [each in index.match((key,)) for key in prompt]
            assert index.match(prompt).get(each, 0) == [*held, False].index(False)
            assert index.blocks(each) >= sum(held)
