from router.prefix.block_map import NOBODY, BlockMap
from router.types import BlockKey


def keys(*numbers: int) -> list[BlockKey]:
    return [BlockKey(n) for n in numbers]


def map_of(**blocks_of: list[BlockKey]) -> BlockMap:
    """A block map in which each engine holds these blocks with the mark 7; they are put in engine by engine."""
    block_map = BlockMap()
    for engine, blocks in blocks_of.items():
        begin = 0
        for marks, length in block_map.walk(blocks):
            block_map.put(blocks[begin : begin + length], marks, int(engine[1:]), 7)
            begin += length
    return block_map


def test_a_path_falls_into_runs_where_its_marks_change() -> None:
    block_map = map_of(e0=keys(1, 2, 3, 4), e1=keys(1, 2, 9))
    assert block_map.walk(keys(1, 2, 3, 4, 5, 6, 9)) == [({0: 7, 1: 7}, 2), ({0: 7}, 2), ({}, 2), ({1: 7}, 1)]
    assert block_map.walk(()) == []
    assert block_map.walk(keys(8)) == [(NOBODY, 1)]
    assert len(block_map) == 5


def test_the_walk_of_a_choice_ends_at_the_first_block_that_nobody_holds() -> None:
    block_map = map_of(e0=keys(1, 2, 3, 4), e1=keys(1, 2, 9))
    assert block_map.held_runs(keys(1, 2, 3, 4)) == [({0: 7, 1: 7}, 2), ({0: 7}, 2)]
    assert block_map.held_runs(keys(1, 2, 5, 9)) == [({0: 7, 1: 7}, 2)]
    assert block_map.held_runs(keys(5, 1)) == block_map.held_runs(()) == []


def test_blocks_are_claimed_up_to_the_first_that_somebody_holds() -> None:
    block_map = map_of(e0=keys(3))
    assert block_map.claim(keys(1, 2, 3, 4), 1, 8) == 2
    assert block_map.walk(keys(1, 2, 3, 4)) == [({1: 8}, 2), ({0: 7}, 1), (NOBODY, 1)]
    assert block_map.claim(keys(4, 5), 1, 8) == 2
    assert block_map.claim((), 1, 8) == 0
    assert block_map.walk(keys(4, 5)) == [({1: 8}, 2)]


def test_blocks_put_together_share_their_marks_and_those_of_others_stay_as_they_are() -> None:
    block_map = map_of(e0=keys(1, 2, 3, 4))
    before = block_map.marks(BlockKey(4))
    block_map.put(keys(1, 2), before, 0, 8)
    assert block_map.marks(BlockKey(1)) is block_map.marks(BlockKey(2))
    assert (block_map.marks(BlockKey(2)), block_map.marks(BlockKey(3)), before) == ({0: 8}, {0: 7}, {0: 7})


def test_a_block_that_nobody_holds_is_gone() -> None:
    block_map = map_of(e0=keys(1, 2, 3), e1=keys(1, 2))
    block_map.take(keys(1, 2, 3, 3, 8), 0)
    assert block_map.walk(keys(1, 2, 3)) == [({1: 7}, 2), (NOBODY, 1)]
    block_map.take(keys(2, 1), 1)
    assert len(block_map) == 0


def test_the_last_blocks_go_first_and_only_as_they_are_marked() -> None:
    block_map = map_of(e0=keys(1, 2, 3, 4, 5))
    block_map.put(keys(4), block_map.marks(BlockKey(4)), 0, 8)
    touched = keys(1, 2, 3, 4, 5)
    assert block_map.drain(touched, 0, 7, 2) == 2
    assert touched == keys(1, 2)
    assert block_map.held(keys(1, 2, 3, 4, 5), 0, 7) == keys(1, 2)
    assert block_map.drain(touched, 0, 7, 9) == 2
    assert (touched, block_map.walk(keys(4))) == ([], [({0: 8}, 1)])
