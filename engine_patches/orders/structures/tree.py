"""The tree of cached prefixes: which free keys are leaves. A subclass says what is done with the leaves.

Keys form a forest: the parent of a key is the prefix one block shorter. A key whose parent is gone cannot be
hit, so only leaves are evicted. A leaf here is a free key with no *free* child. Requests in full-attention
groups hold whole prefixes, so there the children of a free key are all free, and this is the same as "no cached
child". Sliding-window and state-space groups give back an early block while a later one is in use; by this rule
the early one may go. The free keys are always a forest of their own, so while one is free there is a victim,
whatever the groups do.

A key that is lost while it has cached children (a window, an explicit eviction) is remembered until they are
gone too, so that on its return it is an inner key again. Such keys have at least one cached child each: with n
keys cached there are at most n of them.
"""

from collections.abc import Iterator
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.base import Key
from engine_patches.orders.structures.node import Node

N = TypeVar("N", bound=Node)


class Tree(Generic[N]):
    """Nodes by key. `_free` and `_take` keep the leaves; every operation is O(1).

    A node that is no longer needed serves the next new key: a full cache makes no objects. It comes back as it was when
    new, but for what an order keeps in it.
    """

    node_type: ClassVar[type[Node]] = Node

    def __init__(self) -> None:
        self._nodes: dict[Key, N] = {}
        self._unused: list[N] = []

    # What is done with the leaves.

    def _join_leaves(self, node: N) -> None:
        """The key becomes a free leaf: set `node.place` >= 0."""
        raise NotImplementedError

    def _leave_leaves(self, node: N) -> None:
        """It is a free leaf no longer: set `node.place` to -1. `node.free` is still true if a child became free."""
        raise NotImplementedError

    def _draw(self) -> N:
        """The free leaf to evict; it leaves afterwards. IndexError if there is none."""
        raise NotImplementedError

    def _leaves(self, after: N | None = None) -> Iterator[N]:
        """The free leaves, soonest victim first, from behind `after` (a free leaf) if given."""
        raise NotImplementedError

    # A key becomes known, free, in use, unknown.

    def _make(self, key: Key | None) -> N:
        node: N = self._unused.pop() if self._unused else self.node_type()  # type: ignore[assignment]  # as a subclass says
        node.key = key
        if key is not None:
            self._nodes[key] = node
        return node

    def _free(self, node: N) -> None:
        """The key, in use so far, is free."""
        node.free = True
        parent: N | None = node.parent
        if parent is not None:
            parent.free_kids += 1
            if parent.place >= 0:
                self._leave_leaves(parent)
        if node.free_kids == 0:
            self._join_leaves(node)

    def _take(self, node: N) -> None:
        """The key, free so far, is in use or about to be lost."""
        node.free = False
        if node.place >= 0:
            self._leave_leaves(node)
        parent: N | None = node.parent
        if parent is not None:
            parent.free_kids -= 1
            if parent.free and parent.free_kids == 0:
                self._join_leaves(parent)

    def _retire(self, node: N) -> None:
        """The key, not free, is lost."""
        node.block = -1
        parent, node.parent = node.parent, None
        if parent is not None:
            parent.kids -= 1
            if parent.block < 0 and parent.kids == 0:
                del self._nodes[parent.key]
                self._unused.append(parent)
        if node.kids == 0:
            if node.key is not None:
                del self._nodes[node.key]
            self._unused.append(node)
