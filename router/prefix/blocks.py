"""Prompt -> chained block keys, as in the engine's prefix cache: a key stands for all text up to its block's end.

    key_0 = H(root),  key_i = H(key_{i-1}, content of block i),  H = BLAKE2b cut to 64 bits

Two prompts share their first n keys exactly if they share root and the first n full blocks (but for hash collisions,
2^-64 a pair; one costs a wrong guess of a hit, never a wrong answer). Content is text (bytes, one unit each) or token
ids (one unit each, hashed as 8 bytes). Cost: about 1 us a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from router.types import BlockKey, Prompt

KEY_BYTES = 8
TOKEN_BYTES = 8  # array("q"): a signed 64-bit integer


def chain(root: bytes, content: bytes | Sequence[int], block_units: int) -> Prompt:
    """The prompt `content`, cut into blocks of `block_units` and chained from what `root` says of its surroundings.

    Raises OverflowError or TypeError if a token id is not a 64-bit integer.
    """
    first = _digest(b"", root)
    text = content if isinstance(content, bytes) else _pack(content)
    width = block_units if isinstance(content, bytes) else block_units * TOKEN_BYTES
    keys = _keys(first, text, width)
    tail = content[len(keys) * block_units :]
    return Prompt(
        root=_key(first),
        keys=tuple(map(_key, keys)),
        block_units=block_units,
        units=len(content),
        tail=tail if isinstance(tail, bytes) else tuple(tail),
        in_tokens=not isinstance(content, bytes),
    )


def extend(prompt: Prompt, reply: bytes | tuple[int, ...]) -> tuple[BlockKey, ...]:
    """Keys of the further full blocks that `prompt` and `reply` fill: those the next turn's chain goes on with.

    `reply` is in the units of `prompt.tail`; an empty one of either kind extends nothing.
    """
    if not reply:
        return ()
    last = prompt.keys[-1] if prompt.keys else prompt.root
    if isinstance(prompt.tail, bytes):
        assert isinstance(reply, bytes), "a text prompt is extended by text"
        text, width = prompt.tail + reply, prompt.block_units
    else:
        assert isinstance(reply, tuple), "a prompt of token ids is extended by token ids"
        text, width = _pack((*prompt.tail, *reply)), prompt.block_units * TOKEN_BYTES
    return tuple(map(_key, _keys(last.to_bytes(KEY_BYTES, "little"), text, width)))


def _keys(previous: bytes, text: bytes, width: int) -> list[bytes]:
    """Chained digests of the full blocks of `width` bytes in `text`."""
    found = []
    for start in range(0, len(text) - width + 1, width):
        previous = _digest(previous, text[start : start + width])
        found.append(previous)
    return found


def _digest(previous: bytes, content: bytes) -> bytes:
    return blake2b(previous + content, digest_size=KEY_BYTES).digest()


def _key(digest: bytes) -> BlockKey:
    return BlockKey(int.from_bytes(digest, "little"))


def _pack(tokens: Iterable[int]) -> bytes:
    return array("q", tokens).tobytes()
