"""The flags of the commands: those that options declare, in groups, and the values of those of `bench` and `simulate`.

Every function that reads a value takes the name of its flag as `key`, and raises ConfigError, which says what was
expected.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from router.config import Config, UpConfig
from router.errors import ConfigError
from router.options import Option, options_of
from router.sim.hints import HINTS, OFF

MOST_USED = {
    Config: (
        "worker_urls",
        "host",
        "port",
        "api_key",
        "worker_api_key",
        "policy",
        "lbgr_objective",
        "shadow",
        "snapshot",
        "log_level",
    ),
    UpConfig: (
        "model",
        "engines",
        "hardware",
        "eviction",
        "num_gpu_blocks",
        "engine_args",
        "host",
        "port",
        "api_key",
        "policy",
    ),
}
"""The ten options that help shows first, by the tree that a command takes."""


def add_options(command: argparse.ArgumentParser, spec: type[Config]) -> None:
    """All options of a tree as flags, the most used first, the others by their groups."""
    command.add_argument("--config", metavar="FILE", help="YAML file of options, by their names with underscores")
    options = {option.name: option for option in options_of(spec)}
    first = [options.pop(name) for name in MOST_USED[spec]]
    groups: dict[str, list[Option]] = {"most used": first}
    for option in options.values():
        groups.setdefault(option.group, []).append(option)
    for title, members in groups.items():
        group = command.add_argument_group(title)
        for option in members:
            _add_option(group, option)


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    default = " ".join(map(str, option.default)) if option.many else option.default
    words = f"{option.help}. {option.expected[0].upper()}{option.expected[1:]}."
    words += f" Default: {'none' if default in (None, '') else default}. Environment: {option.env}"
    keywords: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": words.replace("%", "%%"),
        "dest": option.name,
    }
    if option.kind is bool:
        group.add_argument(*option.flags, action=argparse.BooleanOptionalAction, **keywords)
    elif option.many:
        group.add_argument(*option.flags, nargs="+", metavar=option.name.upper(), **keywords)
    else:
        group.add_argument(*option.flags, metavar=option.name.upper(), **keywords)


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


def choice(key: str, text: str, known: Sequence[str]) -> str:
    """Return one of the `known` words."""
    if text not in known:
        raise ConfigError(key, text, f"one of {', '.join(known)}")
    return text


USERS = 16


def add_agents_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of traces of agents (`sim.agents`) and of what orders are told of sessions (`sim.hints`)."""
    add = command.add_argument
    add("--users", metavar="N[,...]", help=f"of a trace of agents: how many use it at a time; default: {USERS}")
    add("--think-cap", metavar="S", help="of a trace of agents: the longest think time in seconds; default: any")
    add(
        "--hints",
        metavar="MODE",
        default=OFF,
        help=f"what orders are told of sessions: {', '.join(HINTS)}; default: off",
    )


def agents_flags(arguments: argparse.Namespace) -> tuple[list[int], float]:
    """Return the numbers of users and the cap of think times in seconds."""
    users = [integer("users", word) for word in words("users", [arguments.users])] if arguments.users else [USERS]
    return users, math.inf if arguments.think_cap is None else number("think-cap", arguments.think_cap, low=0)
