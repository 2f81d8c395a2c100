"""One key of the forest of cached prefixes."""

from engine_patches.orders.base import Key


class Node:
    """A cached key; or, with `block` -1, one that is gone but has cached children.

    Of several copies `block` is one in use if there is one; the others are in `held` (in use) and `spare`
    (free, in the pile). Keys that are gone have no parent and at least one cached child: they are fewer than
    the blocks.
    """

    __slots__ = (
        "block", "free", "free_kids", "held", "idle", "key", "kids", "mark", "parent", "place", "spare",
    )  # fmt: skip

    def __init__(self, key: Key | None) -> None:
        self.key = key  # None: a block given back without a key that is still worth something; a lone leaf
        self.block = -1
        self.parent: Node | None = None
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
