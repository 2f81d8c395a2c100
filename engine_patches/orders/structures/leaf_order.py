"""The base of every order that evicts leaves only: the pool's blocks on top of the tree of their keys.

A subclass chooses among the leaves. Free blocks whose loss costs nothing are *expendable* and are reused before any
leaf: blocks without a key that were discarded, and free copies of a key that another block carries. Children belong to
the key, not to the block: while a key has two copies, losing one changes nothing else.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.base import Defaults, Key
from engine_patches.orders.structures.indexed_stack import IndexedStack
from engine_patches.orders.structures.node import BlockNode, Node
from engine_patches.orders.structures.prefix_tree import PrefixTree

H = TypeVar("H", bound=BlockNode)


class LeafOrder(PrefixTree[H], Defaults, Generic[H]):
    """All verbs of `EvictionOrder`. A subclass keeps the leaves (see `PrefixTree`) and may override the hooks below.

    Memory: one small object for each key, and at most 2n keys.
    """

    node_type: ClassVar[type[Node]] = BlockNode

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.free = num_blocks
        self._node_of: list[H | None] = [None] * num_blocks  # by block
        # The stack of expendable blocks: free blocks whose content is worth nothing. They are reused before any leaf.
        self._expendable = IndexedStack(num_blocks)
        # Its two lists by names of their own, as the inner loops read them without a call.
        self._expendable_stack, self._expendable_index = self._expendable.stack, self._expendable.index_of

    # Hooks. An override of `_on_release` calls `_free`, one of `_on_use` calls `_take`.

    def _on_access(self, node: H) -> None:
        """A request accesses the key: it hits it or caches it. A new key is linked to its parent already."""

    def _on_release(self, node: H, last: int) -> None:  # noqa: ARG002
        """The last user of the key gives it back, and the key becomes free.

        `last` is the number of the deepest block of that request, within the key's own group of layers; it is -1 if
        the last user did not reuse the key (a pin).
        """
        self._free(node)

    def _on_use(self, node: H) -> None:
        """The key, free so far, is taken into use. A call of `_on_access` follows if a request reuses it."""
        self._take(node)

    def _on_loss(self, node: H, free: bool) -> None:
        """The key loses its last block, by `pop` or otherwise. `free` says whether the key was free until now."""

    # Keys come and go.

    def cache(self, block: int, key: Key, parent: Key | None, position: int) -> None:
        node = self._node_of[block]
        if node is not None:
            if node.key == key:
                return
            self.uncache(block)
        node = self._nodes.get(key)
        if node is None:
            node = self._make_node(key)
        self._node_of[block] = node
        self.cached += 1
        if node.block < 0:
            self.misses += 1
            node.block = block
            node.position = position
        else:
            self._add_copy_in_use(node, block)
        if parent is not None and node.parent is None and (above := self._nodes.get(parent)) is not None:
            node.parent = above
            above.num_children += 1
        node.pinned = False
        self._on_access(node)

    def uncache(self, block: int) -> None:
        node = self._node_of[block]
        if node is None or node.key is None:
            return
        self._node_of[block] = None
        self.cached -= 1
        if block != node.block:
            node.drop_copy(block)
        elif node.copies_in_use:
            node.block = node.copies_in_use.popitem()[0]
        elif node.free_copies:
            node.block = node.free_copies.popitem()[0]
            self._expendable.remove(node.block)
            if node.free:
                self._expendable.add(block)
            else:
                self._on_release(node, -1)
        else:
            free = node.free
            if free:
                self._take(node)
                self._expendable.add(block)
            self._on_loss(node, free)
            self._retire_node(node)

    def move(self, source: int, target: int) -> None:
        node = self._node_of[source]
        if node is None:
            return
        self._node_of[source], self._node_of[target] = None, node
        if node.block == source:
            node.block = target
        else:
            node.drop_copy(source)
            self._add_copy_in_use(node, target)

    def clear(self) -> None:
        for block, node in enumerate(self._node_of):
            if node is not None and node.block == block:
                if node.leaf_index >= 0:
                    self._remove_leaf(node)
                if node.free:
                    self._expendable.add(block)
                self._on_loss(node, node.free)
        self._node_of = [None] * len(self._node_of)
        self._nodes.clear()
        self.cached = 0

    # Blocks are used and given back.

    def hit(self, block: int) -> None:
        self.hits += 1
        node = self._node_of[block]
        if node is None or node.block != block or node.key is None:
            self.pin(block)
            node = self._node_of[block]
            if node is None:
                return
        elif node.free:  # as `pin` does; by far the most frequent case
            self.free -= 1
            self._on_use(node)
        node.pinned = False
        self._on_access(node)

    def pin(self, block: int) -> None:
        node = self._node_of[block]
        if self._expendable_index[block] >= 0:
            self.free -= 1
            self._expendable.remove(block)
            if node is not None:
                node.drop_copy(block)
                self._add_copy_in_use(node, block)
        elif node is not None and node.free and node.block == block:
            self.free -= 1
            node.pinned = True
            if node.key is None:
                self._take(node)
                self._node_of[block] = None
                self._on_loss(node, True)
                self._retire_node(node)
            else:
                self._on_use(node)

    def release(self, blocks: Sequence[int]) -> None:
        last = before = -1
        for block in blocks:
            node = self._node_of[block]
            assert self._expendable_index[block] < 0, f"block {block} is free already"
            if node is None:
                node = self._node_of[block] = self._make_node(None)
                node.block = block
                node.position = 0
                node.pinned = False
            assert not node.free, f"block {block} is free already"
            if node.position >= before:  # positions fall within a group, so this is the first block of the next group
                last = node.position
            before = node.position
            if block != node.block:
                node.drop_copy(block)
                self._add_free_copy(node, block)
            elif node.copies_in_use:
                node.block = node.copies_in_use.popitem()[0]
                self._add_free_copy(node, block)
            else:
                self._on_release(node, -1 if node.pinned else last)
        self.free += len(blocks)

    def discard(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.uncache(block)
            assert self._expendable_index[block] < 0, f"block {block} is free already"
            self._expendable.add(block)
        self.free += len(blocks)

    # The choice.

    def pop(self) -> int:
        if self._expendable_stack:
            block = self._expendable.pop()
            node = self._node_of[block]
            if node is not None:
                node.drop_copy(block)
                self.cached -= 1
        else:
            node = self._choose_victim()
            block = node.block
            self._take(node)
            self._on_loss(node, True)
            self._retire_node(node)
            if node.key is not None:
                self.evictions += 1
                self.cached -= 1
        self._node_of[block] = None
        self.free -= 1
        return block

    def walk(self, after: int | None = None) -> Iterator[int]:
        """As in `EvictionOrder`: the expendable blocks, then the leaves, then inner keys with children before parents.

        To start behind an expendable block or a leaf is O(1); to start behind an inner key takes a pass over the
        leaves.
        """
        node = None if after is None else self._node_of[after]
        inner = self._walk_inner()
        if after is not None and after in self._expendable:
            yield from self._expendable.walk(after)
            yield from (leaf.block for leaf in self._walk_leaves())
        elif node is None or not node.free:
            yield from self._expendable.walk()
            yield from (leaf.block for leaf in self._walk_leaves())
        elif node.leaf_index >= 0:
            yield from (leaf.block for leaf in self._walk_leaves(node))
        else:
            next(block for block in inner if block == after)
        yield from inner

    def _walk_inner(self) -> Iterator[int]:
        """Yield the blocks of free inner keys, each after all its free children."""
        reached = list(self._walk_leaves())
        waiting: dict[H, int] = {}  # by key: how many of its free children were not reached yet
        for node in reached:
            parent: H | None = node.parent
            if parent is not None and parent.free:
                waiting[parent] = waiting.get(parent, parent.num_free_children) - 1
                if waiting[parent] == 0:
                    reached.append(parent)
                    yield parent.block

    # Copies.

    def _add_copy_in_use(self, node: H, block: int) -> None:
        """A further copy of the key is in use. If all others are free, it becomes `node.block`."""
        if node.free:
            node.pinned = True
            self._on_use(node)
            self._add_free_copy(node, node.block)
            node.block = block
        else:
            node.copies_in_use = node.copies_in_use or {}
            node.copies_in_use[block] = None

    def _add_free_copy(self, node: H, block: int) -> None:
        node.free_copies = node.free_copies or {}
        node.free_copies[block] = None
        self._expendable.add(block)
