import random

from engine_patches.orders.structures.ghost_list import GhostList


def test_first_in_first_out_and_what_was_known_comes_back() -> None:
    ghosts = GhostList(2)
    assert [ghosts.add("a", 5), ghosts.add("b", 2**48 - 1), ghosts.add("c", 7)] == [-1, -1, 5]
    assert [ghosts.pop("a"), ghosts.pop("b"), ghosts.pop("b"), ghosts.pop("c")] == [-1, 2**48 - 1, -1, 7]
    assert len(ghosts) == 0


def test_a_key_that_returns_and_goes_again_stands_at_the_end() -> None:
    ghosts = GhostList(2)
    ghosts.add("a", 1)
    ghosts.add("b", 2)
    ghosts.pop("a")
    ghosts.add("a", 3)
    assert ghosts.add("c", 4) == 2
    assert ghosts.pop("a") == 3


def test_agrees_with_a_list_and_keeps_its_cap() -> None:
    """The cap counts keys; places left behind count only beyond twice as many."""
    ghosts, chance = GhostList(30), random.Random(3)
    model: list[tuple[int, int]] = []
    expired = 0
    for step in range(5000):
        key = chance.randrange(60)
        known = dict(model)
        assert ghosts.pop(key) == known.get(key, -1)
        model = [pair for pair in model if pair[0] != key]
        if chance.random() < 0.9:
            lost = ghosts.add(key, step)
            model.append((key, step))
            if lost >= 0:
                assert lost == model[0][1]
                model.pop(0)
                expired += 1
        assert len(ghosts) == len(model) <= 30
        assert len(ghosts._queue) <= 60
    assert expired > 100
