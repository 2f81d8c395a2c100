"""The host's order, on a small example; `test_adapter` compares it with the host's own queue."""

from engine_patches.orders import LRU


def test_least_recently_used_goes_first_and_tails_before_heads() -> None:
    order = LRU(5)
    for block in range(5):
        assert order.pop() == block
        order.cache(block, f"key {block}", None, 0)
    order.release([1, 0])  # a request of two blocks, deepest first
    order.release([2])
    order.release([4, 3])
    assert list(order.walk()) == [1, 0, 2, 4, 3]
    order.hit(1)
    order.release([1])
    order.pin(2)
    order.discard([2])
    assert list(order.walk()) == [2, 0, 4, 3, 1]
    assert list(order.walk(4)) == [3, 1]
    assert [order.pop() for _ in range(5)] == [2, 0, 4, 3, 1]
    assert (order.phases, order.marked) == (0, 0)
