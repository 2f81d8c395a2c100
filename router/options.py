"""Options are declared once: a dataclass field made by `option` has a name, a default, a unit, a range and a help text.

A tree of options is a dataclass of groups (`group`). Each group is a dataclass of options that stands beside the code
that uses them. Every option of a tree has a flat name that no other has. The field `objective` of the group with the
prefix `lbgr_` is `lbgr_objective` in YAML, LEAFCUTTER_LBGR_OBJECTIVE in the environment, and the flag
`--lbgr-objective`.

`build` makes such a tree from a YAML document, the environment and command-line flags, of which the later ones win. An
unknown key or a bad value raises ConfigError with the key, the value and what was expected. Nothing is read here:
callers pass in what they have read.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from router.errors import ConfigError

ENV_PREFIX = "LEAFCUTTER_"
HIDDEN = "(not shown)"
"""What stands in an error in place of a value that is, or may be, a key."""
# The eviction plugin inside the engines reads these. They are no options of the gateway, but must not count as unknown.
ENGINE_ENV = (
    "LEAFCUTTER_EVICTION",
    "LEAFCUTTER_EVICTION_SEED",
    "LEAFCUTTER_STATE_PORT",
    "LEAFCUTTER_STATE_HOST",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a tree. `kind`: the Python type of its value, or of each item if it is a list (`many`)."""

    name: str
    path: tuple[str, ...]
    """Its place in the tree: the field names of its groups, then that of the option."""
    group: str
    """The title of the group that it is in."""
    kind: type
    many: bool
    optional: bool
    default: Any
    help: str
    unit: str
    low: float | None
    high: float | None
    among: tuple[str, ...]
    words: tuple[str, ...]
    """Texts that are values too, beside the numbers."""
    aliases: tuple[str, ...]
    """Former flat names, which still work."""
    study: bool
    """True: only simulations set it. It has no flag and no environment variable, and no file of the gateway has it."""
    secret: bool
    """True: the value is a key. No error shows it, and an empty one is refused: it would guard nothing."""

    @property
    def flags(self) -> list[str]:
        return ["--" + name.replace("_", "-") for name in (self.name, *self.aliases)]

    @property
    def env(self) -> str:
        return env_of(self.name)

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
            words = " or ".join((words, *self.words))
        else:
            words = {str: "a key of visible characters" if self.secret else "text", bool: "true or false"}[self.kind]
        if self.many:
            words = f"a list, each {words}"
        if self.unit:
            words += f" ({self.unit})"
        return words + (", or nothing" if self.optional else "")


def env_of(name: str) -> str:
    return ENV_PREFIX + name.upper()


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    among: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    study: bool = False,
    secret: bool = False,
) -> Any:
    """A dataclass field that is an option. `low`, `high`: the range of a number, both included. `among`: the only
    values allowed; kebab spelling is accepted. `words`, `aliases`, `study`, `secret`: see `Option`."""
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "among": among, "words": words}
    metadata["aliases"] = aliases
    # No repr, so that no log of a group of options shows a key.
    return dataclasses.field(default=default, repr=not secret, metadata={**metadata, "study": study, "secret": secret})


def group(spec: type, title: str, prefix: str = "") -> Any:
    """A dataclass field that is a group of options, a `spec`. The flat names of its options begin with `prefix`."""
    return dataclasses.field(default_factory=spec, metadata={"group": title, "prefix": prefix})


def options_of(spec: type, *, study: bool = False) -> list[Option]:
    """All options of a tree in the order of their declaration. study: include those that only simulations set."""
    return [found for found in _declared(spec) if study or not found.study]


@functools.cache  # reading the type hints of a whole tree takes milliseconds
def _declared(spec: type) -> tuple[Option, ...]:
    return tuple(_walk(spec, (), "", ""))


def _walk(spec: type, path: tuple[str, ...], title: str, prefix: str) -> Iterator[Option]:
    """The options in `spec` and in the groups below it. path, title, prefix: those of the group that `spec` is."""
    hints = typing.get_type_hints(spec)
    for field in dataclasses.fields(spec):
        field_path = (*path, field.name)
        if "group" in field.metadata:
            inner = typing.cast(type, field.default_factory)
            yield from _walk(inner, field_path, field.metadata["group"], prefix + field.metadata["prefix"])
        elif "help" in field.metadata:
            kind, many, optional = _shape(hints[field.name])
            yield Option(prefix + field.name, field_path, title, kind, many, optional, field.default, **field.metadata)


def _shape(hint: Any) -> tuple[type, bool, bool]:
    """(type of the value or of each item, whether the value is a list, whether it may be None) by the type hint. Of a
    number that may be a word too (`int | str`), the type is that of the number, which stands first."""
    many = optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        optional = type(None) in typing.get_args(hint)
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        hint, many = typing.get_args(hint)[0], True
    return hint, many, optional


def build(
    spec: type[T],
    *,
    document: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    study: bool = False,
) -> T:
    """A tree of type `spec`. Values come from its defaults, then from `document`, `env` and `flags`; later ones win.

    document, flags: by flat names; env: all environment variables, of which those with ENV_PREFIX count. study: options
    for studies may be set too. Raises ConfigError for an unknown key, for a value of the wrong type or out of range,
    and for an option that one source gives under two names.
    """
    options = options_of(spec, study=study)
    by_name = {name: o for o in options for name in (o.name, *o.aliases)}
    by_env = {env_of(name): o for name, o in by_name.items()}
    values: dict[tuple[str, ...], Any] = {}
    by_key = {str(key).replace("-", "_"): value for key, value in (document or {}).items()}
    prefixed = {key: text for key, text in (env or {}).items() if key.startswith(ENV_PREFIX)}
    gateway_env = {key: text for key, text in prefixed.items() if key in by_env or key not in ENGINE_ENV}
    for known, given in ((by_name, by_key), (by_env, gateway_env), (by_name, flags or {})):
        seen: dict[str, str] = {}
        for key, value in given.items():
            if key not in known:
                raise ConfigError(key, HIDDEN if "key" in key.lower() else value, _hint(key, known))
            found = known[key]
            if found.name in seen:
                raise ConfigError(key, value, f"one name for one option; {seen[found.name]!r} is given too")
            seen[found.name] = key
            values[found.path] = check(found, value)
    return _assemble(spec, values)


def _assemble(spec: type[T], values: Mapping[tuple[str, ...], Any]) -> T:
    """A tree with these values at their paths. All other options have their defaults."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, spec)):
        below = {path[1:]: value for path, value in values.items() if path[0] == field.name}
        if "group" in field.metadata:
            fields[field.name] = _assemble(typing.cast(type, field.default_factory), below)
        elif below:
            fields[field.name] = below[()]
    return spec(**fields)


def check(option: Option, value: Any) -> Any:
    """`value` converted to the option's type. Text is read as a flag or an environment variable gives it. Raises
    ConfigError."""
    if option.secret and value is not None:
        return _secret(option, value)
    if option.optional and (value is None or value == ""):
        return None
    if not option.many:
        return _scalar(option, value)
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, Sequence):
        raise ConfigError(option.name, value, option.expected)
    if option.among:  # no such name contains a comma or a space, so `--shadow a,b` and `--shadow a b` are the same
        items = [name for item in items for name in str(item).replace(",", " ").split()]
    return tuple(_scalar(option, item) for item in items)


def _secret(option: Option, value: Any) -> str:
    if not (isinstance(value, str) and value and all("!" <= char <= "~" for char in value)):
        raise ConfigError(option.name, HIDDEN if value else value, option.expected)
    return value


def _scalar(option: Option, value: Any) -> Any:
    if value in option.words:
        return value
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
    """`value` as `kind`, from a value of that type or from text. Nothing is rounded or guessed. Raises ValueError."""
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
