"""Rings of keys, and the two ways in which the orders that queue keep their leaves in them.

`ByRelease`: by the time of the last release, as LRU does. `ByArrival`: a key stays where it joined, whatever its
use, and is judged when its turn comes. Both take keys out of turn lazily, each at the cost of an event that put it
there: O(1) amortised, and no pass over the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from engine_patches.orders.structures.forest import Forest
from engine_patches.orders.structures.node import Holder, Node


class Linked(Holder):
    """A key that stands in at most one ring: `left` is None if it stands in none. `count` is the order's own."""

    __slots__ = ("count", "left", "right")

    def __init__(self) -> None:
        super().__init__()
        self.left: Any = None
        self.right: Any = None
        self.count = 0

    def unlink(self) -> None:
        """It leaves its ring."""
        self.left.right, self.right.left = self.right, self.left
        self.left = self.right = None


class Ring:
    """Keys from the oldest, `end.right`, to the newest, `end.left`; false if it is empty."""

    def __init__(self) -> None:
        self.end = Linked()
        self.end.left = self.end.right = self.end

    def __bool__(self) -> bool:
        return self.end.right is not self.end

    def add(self, node: Linked, right: Linked | None = None) -> None:
        """As the newest, or before `right`."""
        right = right or self.end
        left = right.left
        node.left, node.right = left, right
        left.right = right.left = node

    def walk(self, after: Linked | None = None) -> Iterator[Linked]:
        """From the oldest, or from behind `after`."""
        node = (after or self.end).right
        while node is not self.end:
            yield node
            node = node.right


class ByRelease(Forest[Linked]):
    """All free keys, by the time of their last release, in rings of which the order has one or several.

    A key is released after its children, so the oldest one of a single ring is a leaf. With several rings it can
    be an inner key whose children stand in another one. Found in front it is set aside, and returns to the front
    when it becomes a leaf: it is older than all who stand there.
    """

    node_type: ClassVar[type[Node]] = Linked

    def _ring(self, node: Linked) -> Ring:
        """Where the key stands while it is free; only an access changes it."""
        raise NotImplementedError

    def _free(self, node: Linked) -> None:
        self._ring(node).add(node)
        super()._free(node)

    def _take(self, node: Linked) -> None:
        if node.left is not None:
            node.unlink()
        super()._take(node)

    def _join_leaves(self, node: Linked) -> None:
        node.place = 0
        if node.left is None:
            ring = self._ring(node)
            ring.add(node, ring.end.right)

    def _leave_leaves(self, node: Linked) -> None:
        node.place = -1

    def _forget(self, node: Linked, free: bool) -> None:  # noqa: ARG002
        if node.left is not None:  # the order is cleared
            node.unlink()
        node.mark = -1
        node.count = 0

    def _oldest_leaf(self, ring: Ring) -> Linked | None:
        while ring:
            node: Linked = ring.end.right
            if node.place >= 0:
                return node
            node.unlink()
        return None


class ByArrival(Forest[Linked]):
    """Leaves where `_enqueue` put them. One that is used keeps its place: a use is no reason to move.

    So some who stand in a ring are no leaves (`place` is -1): in use, or inner keys since. The order takes such a
    one out when its turn comes; should it be a leaf again by then, it is judged as one. One taken out, or never
    in, is put in a ring when it becomes a leaf.
    """

    node_type: ClassVar[type[Node]] = Linked

    def _enqueue(self, node: Linked) -> None:
        raise NotImplementedError

    def _remove(self, node: Linked) -> None:
        node.unlink()

    def _join_leaves(self, node: Linked) -> None:
        node.place = 0
        if node.left is None:
            self._enqueue(node)

    def _leave_leaves(self, node: Linked) -> None:
        node.place = -1
        if node.free:  # a child became free
            self._remove(node)

    def _forget(self, node: Linked, free: bool) -> None:  # noqa: ARG002
        if node.left is not None:
            self._remove(node)
        node.mark = -1
        node.count = 0
