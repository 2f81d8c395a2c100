"""What simulated clients say, chained as the router chains it."""

import pytest

from router.prefix import blocks
from router.sim.fleet.dialog import Dialog, Turn, append_tokens, chain_ids, chain_tokens


def test_growing_is_chaining_the_whole() -> None:
    prompt = chain_tokens(range(37), 10)
    grown = append_tokens(prompt, tuple(range(37, 64)))
    assert grown == chain_tokens(range(64), 10)
    assert append_tokens(grown, ()) == grown
    assert append_tokens(chain_tokens(range(20), 10), (20,)) == chain_tokens(range(21), 10)


def test_each_prompt_repeats_what_was_said() -> None:
    dialog = Dialog(chain_tokens(range(25), 10), first_token_id=1000)
    first = dialog.next_request(Turn(0, 12, 9), "0", "me", stream=True, sets_max_tokens=False)
    second = dialog.next_request(Turn(0, 30, 5), "1", "me", stream=False, sets_max_tokens=True)
    one, two = first.request.prompt, second.request.prompt
    assert (one.units, two.units) == (37, 37 + 9 + 30)
    assert first.keys == (*one.keys, *blocks.extend(one, first.reply))
    assert two.keys[: len(first.keys)] == first.keys
    assert (first.request.max_tokens, second.request.max_tokens) == (None, 5)
    assert (first.request.stream, second.request.stream) == (True, False)
    assert {first.request.session, second.request.session} == {"me"}


def test_dialogs_share_no_more_than_their_head() -> None:
    head = chain_tokens(range(30), 10)
    one, two = (
        Dialog(head, token).next_request(Turn(0, 20, 1), "0", None, stream=True, sets_max_tokens=False)
        for token in (500, 900)
    )
    shared = [a == b for a, b in zip(one.keys, two.keys, strict=True)]
    assert shared == [True] * 3 + [False] * 2


@pytest.mark.parametrize("block", [16, 64, 512])
def test_the_blocks_of_a_trace(block: int) -> None:
    one, two = chain_ids([5, 6, 7], 512, 1100, block), chain_ids([5, 6, 8], 512, 1536, block)
    each = 512 // block
    assert one.units == len(one.keys) * block == 1100 // block * block
    assert len(two.keys) == 3 * each
    assert one.keys[: 2 * each] == two.keys[: 2 * each]
    assert not set(one.keys[2 * each :]) & set(two.keys)
    # Behind another block it is another one; ids may be words or of 64 bits.
    assert not set(chain_ids([6], 512, 512, block).keys) & set(two.keys)
    assert chain_ids(["a", 2**64 - 1], 512, 1024, block).units == 1024


def test_ids_that_do_not_cover_the_prompt() -> None:
    assert chain_ids([5], 512, 2000, 128).units == 512


def test_ids_of_any_length_share_blocks_as_far_as_all_of_their_ids_are_equal() -> None:
    """Recordings cut text by bytes, so an id is a fraction of tokens: three ids of 51.2 tokens in blocks of 32."""
    one = chain_ids([1, 2, 3], 51.2, 160, 32)
    two = chain_ids([1, 2, 9], 51.2, 160, 32)
    assert len(one.keys) == len(two.keys) == 4  # 153.6 tokens have ids
    assert one.keys[:3] == two.keys[:3]  # 96 tokens, within the first two ids' 102.4
    assert one.keys[3] != two.keys[3]
