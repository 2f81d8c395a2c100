"""One key of the tree of cached prefixes."""

from __future__ import annotations

from typing import Any

from engine_patches.orders.base import Key


class Node:
    """A cached key; or, with `block` -1, one that is gone but has cached children.

    Of several copies `block` is one in use if there is one; the others are in `held` (in use) and `spare`
    (free, in the pile). An order that keeps more about a key subclasses this.
    """

    __slots__ = (
        "block", "free", "free_kids", "held", "idle", "key", "kids", "mark", "parent", "place", "position", "spare",
    )  # fmt: skip

    def __init__(self) -> None:
        self.key: Key | None = None  # None: a block given back without one that is worth keeping; a lone leaf
        self.block = -1
        self.position = 0  # number of the block in its request
        self.parent: Any = None  # a node of the same class, or None
        self.kids = self.free_kids = 0  # children with a block; those of them that are free
        self.free = False
        self.idle = False  # in use, but no request has reused it since it was free
        self.held: dict[int, None] | None = None
        self.spare: dict[int, None] | None = None
        self.mark = self.place = -1  # the order's own

    def drop_copy(self, block: int) -> None:
        """`block`, which does not stand for the key, is a copy of it no longer."""
        copies = self.spare if self.spare and block in self.spare else self.held
        assert copies is not None
        del copies[block]
