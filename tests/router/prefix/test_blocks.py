from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prefix.blocks import chain, extend

ROOT = b"root"


def test_only_full_blocks_have_keys() -> None:
    prompt = chain(ROOT, b"abcdefghij", 4)
    assert (len(prompt.keys), prompt.tail, prompt.units, prompt.in_tokens) == (2, b"ij", 10, False)
    assert all(0 <= key < 1 << 64 for key in (prompt.root, *prompt.keys))


def test_equal_beginnings_share_keys_and_nothing_after_a_difference() -> None:
    one, two = chain(ROOT, b"aaaabbbbcccc", 4), chain(ROOT, b"aaaaXbbbcccc", 4)
    assert one.keys[0] == two.keys[0]
    assert not set(one.keys[1:]) & set(two.keys[1:])


def test_the_same_block_at_another_place_or_under_another_root_is_another_key() -> None:
    assert len(set(chain(ROOT, b"aaaa" * 5, 4).keys)) == 5
    assert not set(chain(ROOT, b"aaaa", 4).keys) & set(chain(b"other", b"aaaa", 4).keys)


def test_token_ids_are_units() -> None:
    prompt = chain(ROOT, [1, 2, 3, 128_000, 5], 2)
    assert (len(prompt.keys), prompt.tail, prompt.units, prompt.in_tokens) == (2, (5,), 5, True)


@pytest.mark.parametrize(("ids", "error"), [([1 << 63], OverflowError), ([1.5], TypeError), (["a"], TypeError)])
def test_what_is_no_token_id_is_refused(ids: list[int], error: type[Exception]) -> None:
    with pytest.raises(error):
        chain(ROOT, ids, 2)


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 9))
def test_extending_by_text_is_chaining_the_whole(prompt: bytes, reply: bytes, block: int) -> None:
    before, after = chain(ROOT, prompt, block), chain(ROOT, prompt + reply, block)
    assert before.keys + extend(before, reply) == after.keys


@given(st.lists(st.integers(0, 300_000)), st.lists(st.integers(0, 300_000)), st.integers(1, 9))
def test_extending_by_tokens_is_chaining_the_whole(prompt: list[int], reply: list[int], block: int) -> None:
    before, after = chain(ROOT, prompt, block), chain(ROOT, prompt + reply, block)
    assert before.keys + extend(before, tuple(reply)) == after.keys


def test_an_empty_reply_of_either_kind_extends_nothing() -> None:
    assert extend(chain(ROOT, [1, 2], 2), b"") == () == extend(chain(ROOT, b"ab", 2), ())


def test_a_reply_of_the_wrong_kind_is_our_fault() -> None:
    with pytest.raises(AssertionError):
        extend(chain(ROOT, [1, 2], 2), b"text")
    with pytest.raises(AssertionError):
        extend(chain(ROOT, b"ab", 2), (1,))
