"""One key of the tree of cached prefixes."""

from __future__ import annotations

from typing import Any

from engine_patches.orders.base import Key


class Node:
    """A key of a `Tree`: cached, or, with `block` -1, gone while it has cached children. Small, as there are many."""

    __slots__ = ("block", "free", "free_kids", "key", "kids", "mark", "parent", "place")

    def __init__(self) -> None:
        self.key: Key | None = None  # None: a block given back without one that is worth keeping; a lone leaf
        self.block = -1
        self.parent: Any = None  # a node of the same class, or None
        self.kids = self.free_kids = 0  # children with a block; those of them that are free
        self.free = False
        self.mark = self.place = -1  # the order's own


class Holder(Node):
    """A key of a `Forest`, with its blocks.

    Of several copies `block` is one in use if there is one; the others are in `held` (in use) and `spare`
    (free, in the pile). An order that keeps more about a key subclasses this.
    """

    __slots__ = ("held", "idle", "position", "spare")

    def __init__(self) -> None:
        super().__init__()
        self.position = 0  # number of the block in its request
        self.idle = False  # in use, but no request has reused it since it was free
        self.held: dict[int, None] | None = None
        self.spare: dict[int, None] | None = None

    def drop_copy(self, block: int) -> None:
        """`block`, which does not stand for the key, is a copy of it no longer."""
        copies = self.spare if self.spare and block in self.spare else self.held
        assert copies is not None
        del copies[block]
