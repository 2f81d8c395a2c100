"""The tree of cached prefixes. It knows which free keys are leaves; a subclass says what is done with the leaves.

The parent of a key is the prefix that is one block shorter, so the keys form a forest. A key whose parent is gone
cannot be hit; therefore only leaves are evicted. A leaf here is a free key without a *free* child. Requests in
full-attention groups hold whole prefixes, so there all children of a free key are free, and the rule is the same as "no
cached child". Groups of sliding windows or state spaces give back an early block while a later one is still in use; by
this rule the early block may be evicted. The free keys by themselves always form a forest, so whatever the groups do,
there is a victim as long as one key is free.

A key that is lost while it has cached children (by a window, or by an explicit eviction) stays known until they are
gone too, so that it is an inner key again when it returns. Each such key has at least one cached child: with n keys
cached there are at most n of them.
"""

from collections.abc import Iterator
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.base import Key
from engine_patches.orders.structures.node import Node

N = TypeVar("N", bound=Node)


class PrefixTree(Generic[N]):
    """Nodes by key. `_free` and `_take` keep track of the leaves; every operation is O(1).

    A node that is no longer needed is used again for the next new key, so that a full cache creates no objects. It is
    then as it was when new, except for the attributes that belong to the order.
    """

    node_type: ClassVar[type[Node]] = Node

    def __init__(self) -> None:
        self._nodes: dict[Key, N] = {}
        self._retired: list[N] = []  # nodes to use again

    # What is done with the leaves.

    def _add_leaf(self, node: N) -> None:
        """The key becomes a free leaf. Must set `node.leaf_index` to at least 0."""
        raise NotImplementedError

    def _remove_leaf(self, node: N) -> None:
        """The key is no longer a free leaf. Must set `node.leaf_index` to -1.

        `node.free` is still true if the reason is that a child became free.
        """
        raise NotImplementedError

    def _choose_victim(self) -> N:
        """Return the free leaf to evict; the caller removes it. IndexError if there is none."""
        raise NotImplementedError

    def _walk_leaves(self, after: N | None = None) -> Iterator[N]:
        """Yield the free leaves, the next victim first, starting behind `after` (a free leaf) if it is given."""
        raise NotImplementedError

    # A key becomes known, free, in use, unknown.

    def _make_node(self, key: Key | None) -> N:
        # `node_type` of a subclass is its N.
        node: N = self._retired.pop() if self._retired else self.node_type()  # type: ignore[assignment]
        node.key = key
        if key is not None:
            self._nodes[key] = node
        return node

    def _free(self, node: N) -> None:
        """The key, in use so far, becomes free."""
        node.free = True
        parent: N | None = node.parent
        if parent is not None:
            parent.num_free_children += 1
            if parent.leaf_index >= 0:
                self._remove_leaf(parent)
        if node.num_free_children == 0:
            self._add_leaf(node)

    def _take(self, node: N) -> None:
        """The key, free so far, is taken into use or is about to be lost."""
        node.free = False
        if node.leaf_index >= 0:
            self._remove_leaf(node)
        parent: N | None = node.parent
        if parent is not None:
            parent.num_free_children -= 1
            if parent.free and parent.num_free_children == 0:
                self._add_leaf(parent)

    def _retire_node(self, node: N) -> None:
        """The key, which is not free, is lost. Its node stays known while it has children."""
        node.block = -1
        parent, node.parent = node.parent, None
        if parent is not None:
            parent.num_children -= 1
            if parent.block < 0 and parent.num_children == 0:
                del self._nodes[parent.key]
                self._retired.append(parent)
        if node.num_children == 0:
            if node.key is not None:
                del self._nodes[node.key]
            self._retired.append(node)
