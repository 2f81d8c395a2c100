"""Rings (doubly linked lists) of keys, and two bases for orders that keep their leaves in rings.

A `RecencyOrder` sorts keys by the time of their last release, as LRU does. A `FifoOrder` leaves a key where it joined,
however often it is used, and judges it when its turn comes. Both remove keys lazily that are no longer to be evicted:
each removal is paid by the event that put the key there, so it is O(1) amortised, without a pass over the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from engine_patches.orders.structures.leaf_order import LeafOrder
from engine_patches.orders.structures.node import BlockNode, Node


class RingNode(BlockNode):
    """A key that is in at most one ring. `left` is None if it is in none. `count` is the order's own."""

    __slots__ = ("count", "left", "right")

    def __init__(self) -> None:
        super().__init__()
        self.left: Any = None
        self.right: Any = None
        self.count = 0

    def unlink(self) -> None:
        """Remove the node from its ring."""
        self.left.right, self.right.left = self.right, self.left
        self.left = self.right = None


class Ring:
    """Keys from the oldest, `end.right`, to the newest, `end.left`. A ring is false if it is empty."""

    def __init__(self) -> None:
        self.end = RingNode()
        self.end.left = self.end.right = self.end

    def __bool__(self) -> bool:
        return self.end.right is not self.end

    def add(self, node: RingNode, right: RingNode | None = None) -> None:
        """Insert `node` as the newest, or directly before `right`."""
        right = right or self.end
        left = right.left
        node.left, node.right = left, right
        left.right = right.left = node

    def walk(self, after: RingNode | None = None) -> Iterator[RingNode]:
        """Yield the nodes from the oldest on, or from the one behind `after`."""
        node = (after or self.end).right
        while node is not self.end:
            yield node
            node = node.right


class RecencyOrder(LeafOrder[RingNode]):
    """Keeps all free keys in one or several rings, each sorted by the time of the keys' last release.

    A key is released after its children, so the oldest key of a single ring is a leaf. With several rings it can be an
    inner key whose children are in another ring. Such a key is removed when it is found in front, and is put back in
    front when it becomes a leaf, because it is older than every key of the ring.
    """

    node_type: ClassVar[type[Node]] = RingNode

    def _ring(self, node: RingNode) -> Ring:
        """Return the ring that the key is in while it is free. Only an access may change which one that is."""
        raise NotImplementedError

    def _free(self, node: RingNode) -> None:
        self._ring(node).add(node)
        super()._free(node)

    def _take(self, node: RingNode) -> None:
        if node.left is not None:
            node.unlink()
        super()._take(node)

    def _add_leaf(self, node: RingNode) -> None:
        node.leaf_index = 0
        if node.left is None:
            ring = self._ring(node)
            ring.add(node, ring.end.right)

    def _remove_leaf(self, node: RingNode) -> None:
        node.leaf_index = -1

    def _on_loss(self, node: RingNode, free: bool) -> None:  # noqa: ARG002
        if node.left is not None:  # the order is being cleared
            node.unlink()
        node.mark = -1
        node.count = 0

    def _oldest_leaf(self, ring: Ring) -> RingNode | None:
        """Return the oldest leaf of the ring, or None. Inner keys found before it are removed from the ring."""
        while ring:
            node: RingNode = ring.end.right
            if node.leaf_index >= 0:
                return node
            node.unlink()
        return None


class FifoOrder(LeafOrder[RingNode]):
    """Keeps leaves where `_enqueue` put them: a leaf that is used stays in its place.

    So a ring also holds keys that are no leaves at the moment (`leaf_index` is -1): they are in use, or have become
    inner keys since. The order removes such a key when its turn comes; if it is a leaf again by then, it is judged as
    one. A key that is in no ring is put into one when it becomes a leaf.
    """

    node_type: ClassVar[type[Node]] = RingNode

    def _enqueue(self, node: RingNode) -> None:
        """Insert the leaf, which is in no ring, into one."""
        raise NotImplementedError

    def _remove(self, node: RingNode) -> None:
        """Remove the key from its ring. An order that holds a pointer into the ring moves it on."""
        node.unlink()

    def _add_leaf(self, node: RingNode) -> None:
        node.leaf_index = 0
        if node.left is None:
            self._enqueue(node)

    def _remove_leaf(self, node: RingNode) -> None:
        node.leaf_index = -1
        if node.free:  # a child became free: the key is an inner one now
            self._remove(node)

    def _on_loss(self, node: RingNode, free: bool) -> None:  # noqa: ARG002
        if node.left is not None:
            self._remove(node)
        node.mark = -1
        node.count = 0
