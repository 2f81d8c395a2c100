"""What flags hold."""

import pytest

from router.cli import flags as flag
from router.errors import ConfigError


def test_words() -> None:
    assert flag.words("x", ["a, b", "a,c,"]) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="at least one value"):
        flag.words("x", [" , "])


def test_names_in_both_spellings() -> None:
    assert flag.names("orders", ["rlt,some-order", "some_order"], ("rlt", "some_order")) == ["rlt", "some_order"]
    with pytest.raises(ConfigError, match="'fifo': expected some of lru, rlt"):
        flag.names("orders", ["fifo"], ("lru", "rlt"))


def test_seeds() -> None:
    assert flag.seeds("3") == [0, 1, 2]
    assert flag.seeds("3,7") == [3, 7]
    assert flag.seeds("5,") == [5]


def test_numbers() -> None:
    assert flag.integer("x", "7") == 7
    assert flag.number("x", "0.5") == 0.5
    assert flag.number("x", "0", low=0) == 0
    for text in ("0", "-1", "nan", "inf", "x", "1e400"):
        with pytest.raises(ConfigError, match="expected a number of at least"):
            flag.number("x", text)
    with pytest.raises(ConfigError, match="at most 1"):
        flag.number("x", "1.5", high=1)
