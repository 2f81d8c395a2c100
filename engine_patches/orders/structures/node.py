"""The nodes of the tree of cached prefixes: one node for each key."""

from __future__ import annotations

from typing import Any

from engine_patches.orders.base import Key


class Node:
    """A key of a `PrefixTree`: cached, or (with `block` -1) lost while it still has cached children.

    Nodes are many, so they are kept small.
    """

    __slots__ = ("block", "free", "key", "leaf_index", "mark", "num_children", "num_free_children", "parent")

    def __init__(self) -> None:
        # None: the node stands for a block that was released without a key; it is a leaf without a parent.
        self.key: Key | None = None
        self.block = -1
        self.parent: Any = None  # a node of the same class, or None
        self.num_children = 0  # children that have a block
        self.num_free_children = 0  # those of them that are free
        self.free = False
        self.leaf_index = -1  # at least 0 while the node is a free leaf; its meaning is the order's own
        self.mark = -1  # the order's own


class BlockNode(Node):
    """A key of a `LeafOrder`, with all blocks that carry it. An order that keeps more about a key subclasses this.

    Of several copies, `block` is one in use if there is one. The other copies are in `copies_in_use` and in
    `free_copies`; the free ones are also among the order's expendable blocks.
    """

    __slots__ = ("copies_in_use", "free_copies", "pinned", "position")

    def __init__(self) -> None:
        super().__init__()
        self.position = 0  # number of the block in its request
        self.pinned = False  # the key is in use, but no request has reused it since it was free
        self.copies_in_use: dict[int, None] | None = None
        self.free_copies: dict[int, None] | None = None

    def drop_copy(self, block: int) -> None:
        """Remove `block` from the copies. It must be a copy other than `self.block`."""
        copies = self.free_copies if self.free_copies and block in self.free_copies else self.copies_in_use
        assert copies is not None
        del copies[block]
