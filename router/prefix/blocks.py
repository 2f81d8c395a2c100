"""Cuts a prompt into chained blocks, as the engine's prefix cache does: the key of a block stands for all content up to
the end of that block.

    key_0 = H(root),  key_i = H(key_{i-1}, content of block i),  H = BLAKE2b cut to 64 bits

Two prompts share their first n keys exactly if they share the root and the first n full blocks. The exception is a hash
collision, of probability 2^-64 for a pair of blocks, which costs a wrong prediction of a hit and never a wrong answer.
Content is either text, with one unit a byte, or token ids, with one unit a token, hashed as 8 bytes. Cost: about 1 us a
block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from router.types import BlockKey, Prompt

KEY_BYTES = 8
MOST_BLOCKS = 1 << 14  # of one prompt; at 64 tokens a block that is a context of a million tokens
TOKEN_BYTES = 8  # a token id is packed by array("q") as a signed 64-bit integer


def chain(root: bytes, content: bytes | Sequence[int], block_units: int) -> Prompt:
    """The prompt `content`, cut into blocks of `block_units` and chained from `root`. The root holds whatever besides
    the content decides which cached blocks the prompt may use (the model, the cache salt). What follows the first
    MOST_BLOCKS blocks has no keys.

    Raises OverflowError or TypeError if a token id is not a 64-bit integer.
    """
    first = _digest(b"", root)
    text = content if isinstance(content, bytes) else _pack(content)
    width = block_units if isinstance(content, bytes) else block_units * TOKEN_BYTES
    keys = _keys(first, text, width)
    tail = content[len(keys) * block_units :] if len(keys) < MOST_BLOCKS else content[:0]
    return Prompt(
        root=_key(first),
        keys=tuple(map(_key, keys)),
        block_units=block_units,
        units=len(content),
        tail=tail if isinstance(tail, bytes) else tuple(tail),
        in_tokens=not isinstance(content, bytes),
    )


def extend(prompt: Prompt, reply: bytes | tuple[int, ...]) -> tuple[BlockKey, ...]:
    """Keys of the full blocks that `prompt` and `reply` fill together beyond those of the prompt. The next turn of the
    conversation repeats both, so its chain goes on with these keys.

    `reply` is in the units of `prompt.tail`: bytes or token ids. An empty reply of either kind gives no keys.
    """
    if not reply or len(prompt.keys) == MOST_BLOCKS:
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
    found, digest = [], blake2b  # a loop of its own: prompts of 100 KB have 400 blocks
    for start in range(0, min(len(text), MOST_BLOCKS * width) - width + 1, width):
        previous = digest(previous + text[start : start + width], digest_size=KEY_BYTES).digest()
        found.append(previous)
    return found


def _digest(previous: bytes, content: bytes) -> bytes:
    return blake2b(previous + content, digest_size=KEY_BYTES).digest()


def _key(digest: bytes) -> BlockKey:
    return BlockKey(int.from_bytes(digest, "little"))


def _pack(tokens: Iterable[int]) -> bytes:
    return array("q", tokens).tobytes()
