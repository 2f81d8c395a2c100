"""A toy engine: requests over a tree of prefixes, a cache of blocks, and any eviction order to drive.

It does to an order what the host's block pool does, with the book-keeping a test wants to look into. A prompt is a
tuple of ints, one for each block; the key of block i is the prompt up to and with i.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

Prefix = tuple[int, ...]


class Driven(Protocol):
    """The verbs of `EvictionOrder` that the engine calls: `pin` and `uncache` in rough steps only."""

    def cache(self, block: int, key: Any, parent: Any, position: int) -> None: ...
    def uncache(self, block: int) -> None: ...
    def hit(self, block: int) -> None: ...
    def pin(self, block: int) -> None: ...
    def release(self, blocks: Sequence[int]) -> None: ...
    def discard(self, blocks: Sequence[int]) -> None: ...
    def pop(self) -> int: ...


D = TypeVar("D", bound=Driven)


@dataclass
class Request:
    prompt: Prefix
    blocks: list[int] = field(default_factory=list)
    pinned: bool = False  # not a request, but an offload manager that copies blocks


class ToyEngine(Generic[D]):
    """An engine of `num_blocks` blocks over `order`. `victims` lists each popped block and the key that it lost."""

    def __init__(self, order: D, num_blocks: int, seed: int, *, windowed: bool = False) -> None:
        self.order = order
        self.random = random.Random(seed)
        self.num_blocks = num_blocks
        self.windowed = windowed
        self.key_of: dict[int, Prefix] = {}
        self.blocks_of: dict[Prefix, list[int]] = {}
        self.refs = [0] * num_blocks
        self.running: list[Request] = []
        self.victims: list[tuple[int, Prefix | None]] = []

    @property
    def num_free(self) -> int:
        return sum(refs == 0 for refs in self.refs)

    def admit(self, prompt: Prefix, *, share: bool = True) -> bool:
        """Start a request: hit what is cached and compute the rest. Return False if there is no room for it.

        With `share` False nothing is hit, as for the second of two requests in one step.
        """
        hits: list[int] = []
        while share and len(hits) < len(prompt) and (found := self.blocks_of.get(prompt[: len(hits) + 1])):
            hits.append(found[0])
        missing = len(prompt) - len(hits)
        if missing > self.num_free - sum(self.refs[block] == 0 for block in hits):
            return False
        for block in hits:
            self.order.hit(block)
            self.refs[block] += 1
        request = Request(prompt, list(hits))
        self.running.append(request)
        request.blocks += [self.allocate() for _ in range(missing)]
        for position in range(len(hits), len(prompt)):
            self.cache(request, position)
        return True

    def grow(self, request: Request) -> None:
        """Add a generated block to the request. With a window, the request gives back its first block."""
        if request.pinned or not self.num_free:
            return
        request.prompt += (self.random.randrange(1_000_000),)
        request.blocks.append(self.allocate())
        self.cache(request, len(request.prompt) - 1)
        if self.windowed and len(request.blocks) > 2:
            kept = [block for block in request.blocks if block >= 0]
            if len(kept) > 2:
                request.blocks[request.blocks.index(kept[0])] = -1
                self.give_back([kept[0]])

    def finish(self, request: Request) -> None:
        self.running.remove(request)
        self.give_back([block for block in reversed(request.blocks) if block >= 0])

    def pin(self, block: int) -> None:
        if self.refs[block] == 0:
            self.order.pin(block)
        self.refs[block] += 1
        self.running.append(Request((), [block], pinned=True))

    def drop_key(self, block: int) -> None:
        self.order.uncache(block)
        self.forget(block)

    def allocate(self) -> int:
        block = self.order.pop()
        assert self.refs[block] == 0, "a block in use was evicted"
        self.victims.append((block, self.key_of.get(block)))
        self.forget(block)
        self.refs[block] = 1
        return block

    def cache(self, request: Request, position: int) -> None:
        block, key = request.blocks[position], request.prompt[: position + 1]
        before = request.blocks[position - 1] if position else -1
        self.order.cache(block, key, self.key_of.get(before), position)
        self.key_of[block] = key
        self.blocks_of.setdefault(key, []).append(block)

    def give_back(self, blocks: list[int]) -> None:
        for block in blocks:
            self.refs[block] -= 1
        free = [block for block in blocks if self.refs[block] == 0]
        self.order.discard([block for block in free if block not in self.key_of])
        self.order.release([block for block in free if block in self.key_of])

    def forget(self, block: int) -> None:
        key = self.key_of.pop(block, None)
        if key is not None:
            self.blocks_of[key].remove(block)
            if not self.blocks_of[key]:
                del self.blocks_of[key]

    def draw_prompt(self, branches: int = 3, longest: int = 6) -> Prefix:
        return tuple(self.random.randrange(branches) for _ in range(self.random.randint(1, longest)))

    def step(self, *, rough: bool) -> None:
        """One random event; `rough` adds pins without reuse and keys lost in the middle of a chain."""
        draw = self.random.random()
        if draw < 0.45:
            self.admit(self.draw_prompt(), share=self.random.random() < 0.8)
        elif draw < 0.6 and self.running:
            self.grow(self.random.choice(self.running))
        elif rough and draw < 0.65:
            self.pin(self.random.randrange(self.num_blocks))
        elif rough and draw < 0.7 and self.key_of:
            self.drop_key(self.random.choice(list(self.key_of)))
        elif self.running:
            self.finish(self.random.choice(self.running))


def count_lines(call: Callable[[], object]) -> int:
    """Return how many lines of the package the call executes: its cost in steps, which no clock disturbs."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if "engine_patches/orders" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return lines
