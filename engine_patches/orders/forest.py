"""The forest of cached prefixes: which free keys are leaves. An order on leaves adds the choice among them.

Keys form a forest: the parent of a key is the prefix one block shorter. A block whose parent is gone cannot
be hit, so only leaves are evicted. Blocks without a key, and spare copies of a key, cost nothing to lose:
they form the pile, which goes first.

A leaf here is a free key with no *free* child. Requests in full-attention groups hold whole prefixes, so
there the children of a free key are all free, and this is the same as "no cached child". Sliding-window and
state-space groups give back an early block while a later one is in use; by this rule the early one may go.
The free keys are always a forest of their own, so while a block is free there is a victim, whatever the
groups do.

Children belong to the key, not to the block: with two copies of a key, losing one changes nothing. A key
that is lost while it has cached children (`evict_blocks`, a window) is remembered until they are gone too, so
that on its return it is an inner key again.
"""

from collections.abc import Iterator, Sequence

from engine_patches.orders.base import Key
from engine_patches.orders.node import Node
from engine_patches.orders.pile import Pile


class Forest:
    """All verbs of `EvictionOrder`; a subclass says what is done with leaves (the methods that raise here).

    Memory: one small object a key, at most 2n keys. `self.free` is the number of free blocks.
    """

    def __init__(self, num_blocks: int) -> None:
        self.free = num_blocks
        self.cached = self.hits = self.evictions = self.phases = self.marked = 0
        self._nodes: dict[Key, Node] = {}
        self._node: list[Node | None] = [None] * num_blocks  # by block
        self._pile = Pile(num_blocks)  # free blocks with a worthless content

    # What an order on leaves adds.

    def _touch(self, node: Node) -> None:
        """A request cached, hit or released the key. The key is not among the leaves now."""
        raise NotImplementedError

    def _forget(self, node: Node) -> None:
        """The last block of the key is gone. The key is not among the leaves now."""
        raise NotImplementedError

    def _join_leaves(self, node: Node) -> None:
        """The key becomes a free leaf: set `node.place` >= 0."""
        raise NotImplementedError

    def _leave_leaves(self, node: Node) -> None:
        """It is a free leaf no longer: set `node.place` to -1."""
        raise NotImplementedError

    def _draw(self) -> Node:
        """The free leaf to evict; it leaves afterwards. IndexError if there is none."""
        raise NotImplementedError

    def _leaves(self, after: Node | None = None) -> Iterator[Node]:
        """The free leaves, soonest victim first, from behind `after` (a free leaf) if given."""
        raise NotImplementedError

    # Keys come and go.

    def cache(self, block: int, key: Key, parent: Key | None, position: int) -> None:  # noqa: ARG002
        node = self._node[block]
        if node is not None:
            if node.key == key:
                return
            self.uncache(block)
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(key)
        self._node[block] = node
        self.cached += 1
        if node.block < 0:
            node.block = block
        else:
            self._add_held(node, block)
        if node.parent is None and parent is not None and (above := self._nodes.get(parent)) is not None:
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
                self._free(node)
        else:
            if node.free:
                self._take(node)
                self._pile.add(block)
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
                self._forget(node)
                if node.free:
                    self._pile.add(block)
        self._node = [None] * len(self._node)
        self._nodes.clear()
        self.cached = 0

    # Blocks are used and given back.

    def hit(self, block: int) -> None:
        self.hits += 1
        self.pin(block)
        node = self._node[block]
        if node is not None:
            node.idle = False
            self._touch(node)

    def pin(self, block: int) -> None:
        node = self._node[block]
        if block in self._pile:
            self.free -= 1
            self._pile.remove(block)
            if node is not None:
                node.drop_copy(block)
                self._add_held(node, block)
        elif node is not None and node.free and node.block == block:
            self.free -= 1
            self._take(node)
            if node.key is None:
                self._node[block] = None
                self._retire(node)

    def release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            node = self._node[block]
            assert block not in self._pile, f"block {block} is free already"
            assert node is None or not node.free, f"block {block} is free already"
            if node is None:
                node = self._node[block] = Node(None)
                node.block = block
            if not node.idle:
                self._touch(node)
            if block != node.block:
                node.drop_copy(block)
                self._add_spare(node, block)
            elif node.held:
                node.block = node.held.popitem()[0]
                self._add_spare(node, block)
            else:
                self._free(node)
        self.free += len(blocks)

    def discard(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.uncache(block)
            assert block not in self._pile, f"block {block} is free already"
            self._pile.add(block)
        self.free += len(blocks)

    # The choice.

    def pop(self) -> int:
        if self._pile:
            block = self._pile.pop()
            node = self._node[block]
            if node is not None:
                node.drop_copy(block)
                self.cached -= 1
        else:
            node = self._draw()
            block = node.block
            self._take(node)
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
        waiting: dict[Node, int] = {}  # free children not reached yet
        for node in reached:
            parent = node.parent
            if parent is not None and parent.free:
                waiting[parent] = waiting.get(parent, parent.free_kids) - 1
                if waiting[parent] == 0:
                    reached.append(parent)
                    yield parent.block

    # A key becomes free, in use, unknown. `self.free` counts blocks and is kept by the callers.

    def _free(self, node: Node) -> None:
        node.free = True
        parent = node.parent
        if parent is not None:
            parent.free_kids += 1
            if parent.place >= 0:
                self._leave_leaves(parent)
        if node.free_kids == 0:
            self._join_leaves(node)

    def _take(self, node: Node) -> None:
        if node.place >= 0:
            self._leave_leaves(node)
        node.free = False
        node.idle = True
        parent = node.parent
        if parent is not None:
            parent.free_kids -= 1
            if parent.free and parent.free_kids == 0:
                self._join_leaves(parent)

    def _retire(self, node: Node) -> None:
        self._forget(node)
        node.block = -1
        parent, node.parent = node.parent, None
        if parent is not None:
            parent.kids -= 1
            if parent.block < 0 and parent.kids == 0:
                del self._nodes[parent.key]
        if node.key is not None and node.kids == 0:
            del self._nodes[node.key]

    # Copies.

    def _add_held(self, node: Node, block: int) -> None:
        """A further copy is in use. If the others are free, it now stands for the key."""
        if node.free:
            self._take(node)
            self._add_spare(node, node.block)
            node.block = block
        else:
            node.held = node.held or {}
            node.held[block] = None

    def _add_spare(self, node: Node, block: int) -> None:
        node.spare = node.spare or {}
        node.spare[block] = None
        self._pile.add(block)
