from router.prefix.block_map import NOBODY, BlockMap
from router.types import BlockKey


def keys(*numbers):
    return [BlockKey(n) for n in numbers]


def paths_of(**marked):
    """Each engine's blocks, put in one after the other."""
    paths = BlockMap()
    for engine, blocks in marked.items():
        begin = 0
        for marks, length in paths.walk(blocks):
            paths.put(blocks[begin : begin + length], marks, int(engine[1:]), 7)
            begin += length
    return paths


def test_a_path_falls_into_runs_where_its_marks_change():
    paths = paths_of(e0=keys(1, 2, 3, 4), e1=keys(1, 2, 9))
    assert paths.walk(keys(1, 2, 3, 4, 5, 6, 9)) == [({0: 7, 1: 7}, 2), ({0: 7}, 2), ({}, 2), ({1: 7}, 1)]
    assert paths.walk(()) == []
    assert paths.walk(keys(8)) == [(NOBODY, 1)]
    assert len(paths) == 5


def test_blocks_put_together_share_their_marks_and_those_of_others_stay_as_they_are():
    paths = paths_of(e0=keys(1, 2, 3, 4))
    before = paths.marks(BlockKey(4))
    paths.put(keys(1, 2), before, 0, 8)
    assert paths.marks(BlockKey(1)) is paths.marks(BlockKey(2))
    assert (paths.marks(BlockKey(2)), paths.marks(BlockKey(3)), before) == ({0: 8}, {0: 7}, {0: 7})


def test_a_block_that_nobody_holds_is_gone():
    paths = paths_of(e0=keys(1, 2, 3), e1=keys(1, 2))
    paths.take(keys(1, 2, 3, 3, 8), 0)
    assert paths.walk(keys(1, 2, 3)) == [({1: 7}, 2), (NOBODY, 1)]
    paths.take(keys(2, 1), 1)
    assert len(paths) == 0


def test_the_last_blocks_go_first_and_only_as_they_are_marked():
    paths = paths_of(e0=keys(1, 2, 3, 4, 5))
    paths.put(keys(4), paths.marks(BlockKey(4)), 0, 8)
    touched = keys(1, 2, 3, 4, 5)
    assert paths.drain(touched, 0, 7, 2) == 2
    assert touched == keys(1, 2)
    assert paths.held(keys(1, 2, 3, 4, 5), 0, 7) == keys(1, 2)
    assert paths.drain(touched, 0, 7, 9) == 2
    assert (touched, paths.walk(keys(4))) == ([], [({0: 8}, 1)])
