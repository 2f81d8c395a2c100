"""The values of the flags of `bench` and `simulate`: lists, numbers and seeds.

Every function takes the name of its flag as `key`, and raises ConfigError, which says what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from router.errors import ConfigError


def words(key: str, texts: Sequence[str]) -> list[str]:
    """Return the items of a flag that may be given several times, each time with a list; every item once."""
    found = list(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))
    if not found:
        raise ConfigError(key, ",".join(texts), f"at least one value (--{key})")
    return found


def names(key: str, texts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return some of the `known` names, which may be spelt with - or with _."""
    found = [word.replace("-", "_") for word in words(key, texts)]
    for name in found:
        if name not in known:
            raise ConfigError(key, name, f"some of {', '.join(known)}")
    return list(dict.fromkeys(found))


def integer(key: str, text: str, *, low: int = 1, high: int | None = None) -> int:
    """Return a whole number from `low` to `high`."""
    value = int(text) if text.strip().isascii() and text.strip().isdigit() and len(text) < 20 else low - 1
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(key, text, f"an integer of at least {low}{upper}")
    return value


def number(key: str, text: str, *, low: float = 1e-6, high: float = math.inf) -> float:
    """Return a finite number from `low` to `high`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and low <= value <= high):
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise ConfigError(key, text, f"a number of at least {low:g}{upper}")
    return value


def seeds(text: str) -> list[int]:
    """Return seeds: `3` means the seeds 0, 1 and 2, `3,7` means these two, and `3,` means that one."""
    if "," not in text:
        return list(range(integer("seeds", text)))
    return [integer("seeds", word, low=0) for word in words("seeds", [text])]
