"""A shadow cache: what an engine that evicts by RLT (`rlt`) would hold, as keys without blocks, for the same requests.

It has the capacity of the real cache, and draws its own random numbers. Whatever a request uses in the engine is in use
here too, so every key in use there is held here. Blocks in use that carry no key of their own (not full yet, or
computed twice) take their room here as well: with `reserved` such blocks, at most n - reserved keys are held. `rlt_gix`
keeps these rules.
"""

from typing import Any

from engine_patches.orders.base import Key
from engine_patches.orders.rlt import MarkingTree
from engine_patches.orders.structures.node import Node


class ShadowNode(Node):
    """A key of the shadow cache; `block` is 0 while it is held. `guarded_node` is the order's node of the same key, or
    None if the order does not hold that key."""

    __slots__ = ("guarded_node",)

    def __init__(self) -> None:
        super().__init__()
        self.guarded_node: Any = None


class ShadowCache(MarkingTree[ShadowNode]):
    """`num_keys`: keys held; `num_in_use`: those of them in use; `misses`: calls of `acquire` for a key not held."""

    node_type = ShadowNode

    def __init__(self, seed: int | None) -> None:
        super().__init__(seed)
        self.num_keys = self.num_in_use = self.misses = 0

    def acquire(self, key: Key, parent: ShadowNode | None) -> ShadowNode:
        """A request uses `key`, which is not in use yet: hold it from now on, in use and not marked.

        `parent` is in use.
        """
        node = self._nodes.get(key)
        if node is None:
            node = self._make_node(key)
        elif node.block >= 0:
            self._take(node)
            self.num_in_use += 1
            return node
        node.block = 0
        if parent is not None and node.parent is None:
            node.parent = parent
            parent.num_children += 1
        self.misses += 1
        self.num_keys += 1
        self.num_in_use += 1
        return node

    def use(self, node: ShadowNode) -> None:
        """A key that is held and free is taken into use."""
        self._take(node)
        self.num_in_use += 1

    def release(self, node: ShadowNode, marked: bool) -> None:
        """The key becomes free; with `marked`, because a request used it, it is marked."""
        if marked and node.mark != self.phases:
            self.mark(node)
        self.num_in_use -= 1
        self._free(node)

    def evict(self) -> ShadowNode | None:
        """Evict a random unmarked leaf and return it, or None if there is no free leaf."""
        if not self._unmarked and not self._marked:
            return None
        node = self._choose_victim()
        self._take(node)
        self._retire_node(node)
        self.num_keys -= 1
        return node

    def drop(self, node: ShadowNode) -> None:
        """The engine voided the key's content: hold it no longer, free or in use."""
        if node.free:
            self._take(node)
        else:
            self.num_in_use -= 1
        self.unmark(node)
        self._retire_node(node)
        self.num_keys -= 1

    def clear(self) -> None:
        """Every key is void."""
        self._nodes.clear()
        self._unmarked.clear()
        self._marked.clear()
        self.num_keys = self.num_in_use = self.marked = 0
