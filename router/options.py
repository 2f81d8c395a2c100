"""Options, declared once: each dataclass field made by `option` holds its name, default, unit, range and help.

`build` makes such a dataclass from a YAML document, the environment and command-line flags (later ones win);
an unknown key or a bad value stops with key, value and what was expected. No I/O here: callers hand in what they read.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from router.errors import ConfigError

ENV_PREFIX = "LEAFCUTTER_"
# Read by the eviction plugin inside the engines, so known here though no option of the gateway.
ENGINE_ENV = (
    "LEAFCUTTER_EVICTION",
    "LEAFCUTTER_EVICTION_SEED",
    "LEAFCUTTER_STATE_PORT",
    "LEAFCUTTER_STATE_HOST",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `kind` is the Python type of its value (of its items, if `many`)."""

    name: str
    kind: type
    many: bool
    optional: bool
    default: Any
    help: str
    unit: str
    low: float | None
    high: float | None
    among: tuple[str, ...]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def expected(self) -> str:
        """What a value must be, in words: `an integer from 1 to 65535 (TCP port)`."""
        if self.among:
            words = "one of " + ", ".join(self.among)
        elif self.kind in (int, float):
            words = "an integer" if self.kind is int else "a number"
            if self.low is not None and self.high is not None:
                words += f" from {self.low:g} to {self.high:.15g}"
            elif self.low is not None:
                words += f" of at least {self.low:g}"
        else:
            words = {str: "text", bool: "true or false"}[self.kind]
        if self.many:
            words = f"a list, each {words}"
        if self.unit:
            words += f" ({self.unit})"
        return words + (", or nothing" if self.optional else "")


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    among: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is an option. `among`: the only values allowed (kebab spelling is accepted)."""
    return dataclasses.field(
        default=default, metadata={"help": help, "unit": unit, "low": low, "high": high, "among": among}
    )


def options_of(spec: type) -> list[Option]:
    """The options of a dataclass made of `option` fields, in the order of their declaration."""
    hints = typing.get_type_hints(spec)
    found = []
    for field in dataclasses.fields(spec):
        hint, many, optional = hints[field.name], False, False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(a for a in typing.get_args(hint) if a is not type(None))
            optional = True
        if typing.get_origin(hint) is tuple:
            hint, many = typing.get_args(hint)[0], True
        found.append(Option(field.name, hint, many, optional, field.default, **field.metadata))
    return found


def build(
    spec: type[T],
    *,
    document: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> T:
    """A `spec` from its defaults, then `document`, then `env`, then `flags` (by option name).

    Raises ConfigError for an unknown key, a value of the wrong type or out of range.
    """
    options = {o.name: o for o in options_of(spec)}
    by_env = {o.env: o for o in options.values()}
    values: dict[str, Any] = {}
    for key, value in (document or {}).items():
        name = str(key).replace("-", "_")
        if name not in options:
            raise ConfigError(str(key), value, _hint(name, options))
        values[name] = check(options[name], value)
    for key, text in (env or {}).items():
        if key in by_env:
            values[by_env[key].name] = check(by_env[key], text)
        elif key.startswith(ENV_PREFIX) and key not in ENGINE_ENV:
            raise ConfigError(key, text, _hint(key, by_env))
    for name, value in (flags or {}).items():
        values[name] = check(options[name], value)
    return spec(**values)


def check(option: Option, value: Any) -> Any:
    """`value` as the option's type; text is read as a flag or an environment variable would write it."""
    if option.optional and (value is None or value == ""):
        return None
    if not option.many:
        return _scalar(option, value)
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, Sequence):
        raise ConfigError(option.name, value, option.expected)
    if option.among:  # no name has a comma or a blank in it: `--shadow a,b` and `--shadow a b` are the same
        items = [name for item in items for name in str(item).replace(",", " ").split()]
    return tuple(_scalar(option, item) for item in items)


def _scalar(option: Option, value: Any) -> Any:
    try:
        found = _convert(option.kind, value)
    except ValueError:
        raise ConfigError(option.name, value, option.expected) from None
    if option.among:
        found = found.replace("-", "_")
        if found not in option.among:
            raise ConfigError(option.name, value, option.expected)
    if option.kind in (int, float):
        low, high = option.low, option.high
        if not math.isfinite(found) or (low is not None and found < low) or (high is not None and found > high):
            raise ConfigError(option.name, value, option.expected)
    return found


def _convert(kind: type, value: Any) -> Any:
    """`value` as `kind`, from its own type or from text; nothing is rounded or guessed."""
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return kind(value)


def _hint(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"a known option; did you mean {near[0]!r}?" if near else "a known option (see --help)"
