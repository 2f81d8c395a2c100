"""What an engine that evicts by RLT would hold: keys without blocks, served with the same requests.

It has the same capacity, and its own lots. What a request uses in the engine is in use here too, so every key in use
there is held here. Blocks in use that stand for no key of their own (not full yet, or computed twice) take their room
here as well: with `reserved` such blocks, at most n - reserved keys are held.
"""

from typing import Any

from engine_patches.orders.base import Key
from engine_patches.orders.rlt import Marking
from engine_patches.orders.structures.node import Node


class Twin(Node):
    """A key held by the shadow. `own`: the guarded order's node of the same key, if it holds it too."""

    __slots__ = ("own",)

    def __init__(self) -> None:
        super().__init__()
        self.own: Any = None


class Shadow(Marking[Twin]):
    """`held`: keys here; `in_use`: those of them in use; `misses`: keys that were not here when they were needed."""

    node_type = Twin

    def __init__(self, seed: int | None) -> None:
        super().__init__(seed)
        self.held = self.in_use = self.misses = 0

    def need(self, key: Key, parent: Twin | None) -> Twin:
        """A request uses the key, which is not in use yet; `parent` is in use. Held now, in use, not marked."""
        twin = self._nodes.get(key)
        if twin is None:
            twin = self._make(key)
        elif twin.block >= 0:
            self._take(twin)
            self.in_use += 1
            return twin
        twin.block = 0
        if parent is not None and twin.parent is None:
            twin.parent = parent
            parent.kids += 1
        self.misses += 1
        self.held += 1
        self.in_use += 1
        return twin

    def use(self, twin: Twin) -> None:
        self._take(twin)
        self.in_use += 1

    def give_back(self, twin: Twin, marked: bool) -> None:
        """The key is free; `marked`: a request used it."""
        if marked and twin.mark != self.phases:
            self.mark(twin)
        self.in_use -= 1
        self._free(twin)

    def evict(self) -> Twin | None:
        """An unmarked leaf, drawn; None if there is none."""
        if not self._unmarked and not self._marked:
            return None
        twin = self._draw()
        self._take(twin)
        self._retire(twin)
        self.held -= 1
        return twin

    def drop(self, twin: Twin) -> None:
        """The key's content is void."""
        if twin.free:
            self._take(twin)
        else:
            self.in_use -= 1
        self.unmark(twin)
        self._retire(twin)
        self.held -= 1

    def clear(self) -> None:
        """Every key is void."""
        self._nodes.clear()
        self._unmarked.clear()
        self._marked.clear()
        self.held = self.in_use = self.marked = 0
