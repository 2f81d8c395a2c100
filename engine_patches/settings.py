"""The plugin's settings. They are environment variables, as the engine's own command line is not ours to extend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine_patches.errors import SettingError
from engine_patches.orders import ORDERS

OFF = "off"
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Option:
    """One variable. If it is unset or empty it has the default. `parse` raises ValueError for a value out of range."""

    name: str
    default: str
    range: str
    help: str
    parse: Callable[[str], object]
    secret: bool = False
    """Whether its value is shown nowhere."""


def _parse_order(value: str) -> str | None:
    if value != OFF and value not in ORDERS:
        raise ValueError
    return None if value == OFF else value


def _parse_port(value: str) -> int:
    port = int(value)
    if not 1 <= port <= 65535:
        raise ValueError
    return port


def _parse_key(value: str) -> str:
    if len(value) < SHORTEST_KEY or not value.isascii() or not value.isprintable():
        raise ValueError
    return value


EVICTION = Option(
    "LEAFCUTTER_EVICTION",
    OFF,
    f"one of {', '.join([OFF, *ORDERS])}",
    "Eviction order of the prefix cache; off leaves the engine as it is.",
    _parse_order,
)
SEED = Option(
    "LEAFCUTTER_EVICTION_SEED",
    "",
    "an integer",
    "Fixes the random choices of a randomized order; if unset, the operating system gives the seed.",
    int,
)
STATE_PORT = Option(
    "LEAFCUTTER_STATE_PORT",
    "",
    "1 to 65535",
    "TCP port on which the engine process serves the order's state as Prometheus metrics; if unset, it does not. "
    "Data-parallel rank r takes the port plus r.",
    _parse_port,
)
STATE_HOST = Option("LEAFCUTTER_STATE_HOST", "127.0.0.1", "an address", "Address that this port is bound to.", str)
HINT_KEY = Option(
    "LEAFCUTTER_HINT_KEY",
    "",
    f"at least {SHORTEST_KEY} printable ASCII characters",
    "Key of those who may post hints about sessions to the state's port; if unset, nobody may.",
    _parse_key,
    secret=True,
)
OPTIONS = (EVICTION, SEED, STATE_PORT, STATE_HOST, HINT_KEY)


@dataclass(frozen=True)
class Settings:
    """The settings as read. With `order` None the plugin does nothing, with `seed` None the operating system gives the
    seed, with `state_port` None no state is served, and with `hint_key` None no hints are taken."""

    order: str | None
    seed: int | None
    state_port: int | None
    state_host: str
    hint_key: str | None = field(default=None, repr=False)


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read all settings. Raises SettingError for a value that cannot be used."""
    order, seed, port, host, key = (_read(option, environ) for option in OPTIONS)
    assert order is None or isinstance(order, str)
    assert seed is None or isinstance(seed, int)
    assert port is None or isinstance(port, int)
    assert isinstance(host, str)
    assert key is None or isinstance(key, str)
    return Settings(order, seed, port, host, key)


def _read(option: Option, environ: Mapping[str, str]) -> object:
    value = environ.get(option.name, "").strip() or option.default
    if not value:
        return None
    try:
        return option.parse(value)
    except ValueError:
        shown = "..." if option.secret else repr(value)
        raise SettingError(f"{option.name}={shown}: expected {option.range}") from None
