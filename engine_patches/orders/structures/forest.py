"""An eviction order on leaves: the blocks of the pool over the tree of their keys. A subclass chooses among the leaves.

Blocks without a key, and spare copies of a key, cost nothing to lose: they form the pile, which goes first.
Children belong to the key, not to the block: with two copies of a key, losing one changes nothing.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from engine_patches.orders.base import Counters, Key
from engine_patches.orders.structures.indexed_stack import IndexedStack
from engine_patches.orders.structures.node import Holder, Node
from engine_patches.orders.structures.tree import Tree

H = TypeVar("H", bound=Holder)


class Forest(Tree[H], Counters, Generic[H]):
    """All verbs of `EvictionOrder`. A subclass says what is done with leaves (`Tree`), and overrides the hooks below.

    Memory: one small object a key, at most 2n keys.
    """

    node_type: ClassVar[type[Node]] = Holder

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.free = num_blocks
        self._node: list[H | None] = [None] * num_blocks  # by block
        self._pile = IndexedStack(num_blocks)  # free blocks with a worthless content
        self._worthless, self._piled = self._pile.stack, self._pile.place

    # Hooks.

    def _touch(self, node: H) -> None:
        """A request hit or cached the key: an access. (A new key is linked to its parent already.)"""

    def _give_back(self, node: H, last: int) -> None:  # noqa: ARG002
        """The key is free now, its last user gone: a request whose deepest block is number `last` of the key's group;
        -1: somebody who did not reuse it."""
        self._free(node)

    def _use(self, node: H) -> None:
        """The key, free so far, is in use now; a `_touch` follows if a request reuses it."""
        self._take(node)

    def _forget(self, node: H, free: bool) -> None:
        """The last block of the key is gone: popped, or lost for another reason. `free`: it was until now."""

    # Keys come and go.

    def cache(self, block: int, key: Key, parent: Key | None, position: int) -> None:
        node = self._node[block]
        if node is not None:
            if node.key == key:
                return
            self.uncache(block)
        node = self._nodes.get(key)
        if node is None:
            node = self._make(key)
        self._node[block] = node
        self.cached += 1
        if node.block < 0:
            self.misses += 1
            node.block = block
            node.position = position
        else:
            self._add_held(node, block)
        if parent is not None and node.parent is None and (above := self._nodes.get(parent)) is not None:
            node.parent = above
            above.kids += 1
        node.idle = False
        self._touch(node)

    def uncache(self, block: int) -> None:
        node = self._node[block]
        if node is None or node.key is None:
            return
        self._node[block] = None
        self.cached -= 1
        if block != node.block:
            node.drop_copy(block)
        elif node.held:
            node.block = node.held.popitem()[0]
        elif node.spare:
            node.block = node.spare.popitem()[0]
            self._pile.remove(node.block)
            if node.free:
                self._pile.add(block)
            else:
                self._give_back(node, -1)
        else:
            free = node.free
            if free:
                self._take(node)
                self._pile.add(block)
            self._forget(node, free)
            self._retire(node)

    def move(self, source: int, target: int) -> None:
        node = self._node[source]
        if node is None:
            return
        self._node[source], self._node[target] = None, node
        if node.block == source:
            node.block = target
        else:
            node.drop_copy(source)
            self._add_held(node, target)

    def clear(self) -> None:
        for block, node in enumerate(self._node):
            if node is not None and node.block == block:
                if node.place >= 0:
                    self._leave_leaves(node)
                if node.free:
                    self._pile.add(block)
                self._forget(node, node.free)
        self._node = [None] * len(self._node)
        self._nodes.clear()
        self.cached = 0

    # Blocks are used and given back.

    def hit(self, block: int) -> None:
        self.hits += 1
        node = self._node[block]
        if node is None or node.block != block or node.key is None:
            self.pin(block)
            node = self._node[block]
            if node is None:
                return
        elif node.free:  # as `pin` does; by far the most frequent case
            self.free -= 1
            self._use(node)
        node.idle = False
        self._touch(node)

    def pin(self, block: int) -> None:
        node = self._node[block]
        if self._piled[block] >= 0:
            self.free -= 1
            self._pile.remove(block)
            if node is not None:
                node.drop_copy(block)
                self._add_held(node, block)
        elif node is not None and node.free and node.block == block:
            self.free -= 1
            node.idle = True
            if node.key is None:
                self._take(node)
                self._node[block] = None
                self._forget(node, True)
                self._retire(node)
            else:
                self._use(node)

    def release(self, blocks: Sequence[int]) -> None:
        last = before = -1
        for block in blocks:
            node = self._node[block]
            assert self._piled[block] < 0, f"block {block} is free already"
            if node is None:
                node = self._node[block] = self._make(None)
                node.block = block
                node.position = 0
                node.idle = False
            assert not node.free, f"block {block} is free already"
            if node.position >= before:  # positions fall within a group: the first block of one
                last = node.position
            before = node.position
            if block != node.block:
                node.drop_copy(block)
                self._add_spare(node, block)
            elif node.held:
                node.block = node.held.popitem()[0]
                self._add_spare(node, block)
            else:
                self._give_back(node, -1 if node.idle else last)
        self.free += len(blocks)

    def discard(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.uncache(block)
            assert self._piled[block] < 0, f"block {block} is free already"
            self._pile.add(block)
        self.free += len(blocks)

    # The choice.

    def pop(self) -> int:
        if self._worthless:
            block = self._pile.pop()
            node = self._node[block]
            if node is not None:
                node.drop_copy(block)
                self.cached -= 1
        else:
            node = self._draw()
            block = node.block
            self._take(node)
            self._forget(node, True)
            self._retire(node)
            if node.key is not None:
                self.evictions += 1
                self.cached -= 1
        self._node[block] = None
        self.free -= 1
        return block

    def walk(self, after: int | None = None) -> Iterator[int]:
        """As in `EvictionOrder`: the pile, the leaves, then inner keys, children before parents.

        To go on behind a block of the pile or a leaf is O(1); behind an inner key it takes a pass over the
        leaves.
        """
        node = None if after is None else self._node[after]
        inner = self._walk_inner()
        if after is not None and after in self._pile:
            yield from self._pile.walk(after)
            yield from (leaf.block for leaf in self._leaves())
        elif node is None or not node.free:
            yield from self._pile.walk()
            yield from (leaf.block for leaf in self._leaves())
        elif node.place >= 0:
            yield from (leaf.block for leaf in self._leaves(node))
        else:
            next(block for block in inner if block == after)
        yield from inner

    def _walk_inner(self) -> Iterator[int]:
        reached = list(self._leaves())
        waiting: dict[H, int] = {}  # free children not reached yet
        for node in reached:
            parent: H | None = node.parent
            if parent is not None and parent.free:
                waiting[parent] = waiting.get(parent, parent.free_kids) - 1
                if waiting[parent] == 0:
                    reached.append(parent)
                    yield parent.block

    # Copies.

    def _add_held(self, node: H, block: int) -> None:
        """A further copy is in use. If the others are free, it now stands for the key."""
        if node.free:
            node.idle = True
            self._use(node)
            self._add_spare(node, node.block)
            node.block = block
        else:
            node.held = node.held or {}
            node.held[block] = None

    def _add_spare(self, node: H, block: int) -> None:
        node.spare = node.spare or {}
        node.spare[block] = None
        self._pile.add(block)
