"""The file of options that a gateway was started with: reading it, and following what is changed in it.

What can change while the gateway runs is the list of engines (`worker_urls`). A file that cannot be read as a whole, or
that has an option that cannot be, changes nothing, and the log says why. Other options that have been changed are named
in the log, because they need a restart.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import yaml

from router.config import Config, UpConfig
from router.core.worker_url import base_urls
from router.errors import ConfigError
from router.gateway.file_watch import Stamp, stamp, watch
from router.options import ENV_PREFIX, Option, build, env_of, options_of

log = logging.getLogger("leafcutter.config")
C = TypeVar("C", bound=Config)


def read(spec: type[C], path: str | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> C:
    """The options of one command from its file, the environment and its flags. Raises ConfigError."""
    document = {} if path is None else read_document(path)
    # An environment set for `up` must not stop `serve` or `doctor`: every known option's name passes.
    own = {env_of(name) for o in options_of(spec) for name in (o.name, *o.aliases)}
    others = {o.env for o in options_of(UpConfig)} - own
    return build(spec, document=document, env={k: v for k, v in env.items() if k not in others}, flags=flags)


def read_document(path: str) -> dict[str, Any]:
    """A YAML file of options. Raises ConfigError if it cannot be read or is no mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError("config", path, f"a readable file ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError("config", path, f"valid YAML ({' '.join(str(error).split())})") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError("config", path, "a mapping of option names to values")
    return document


@dataclass(frozen=True)
class ConfigFile:
    """The file at `path`, and the environment and the flags that its options meet. It can be sent to other processes.

    config: the options at the start. first: the stamp of the file from before it was read then.
    """

    path: str
    env: Mapping[str, str]
    flags: Mapping[str, Any]
    config: Config
    first: Stamp

    @classmethod
    def at_start(cls, path: str, env: Mapping[str, str], flags: Mapping[str, Any]) -> ConfigFile:
        """Read the file. Raises ConfigError."""
        first, own = stamp([path]), {name: text for name, text in env.items() if name.startswith(ENV_PREFIX)}
        return cls(path, own, flags, read(Config, path, own, flags), first)

    def reload(self, relist: Callable[[list[str]], None]) -> None:
        """Read the file again. relist: takes the URLs of the engines. A file that is bad changes nothing."""
        try:
            config = read(Config, self.path, self.env, self.flags)
            urls = base_urls(config.engines.worker_urls)
        except ConfigError as error:
            log.error("%s is not taken up, and nothing changes: %s", self.path, error)
            return
        changed = [o.name for o in options_of(Config) if _value(o, config) != _value(o, self.config)]
        if waiting := [name for name in changed if name != "worker_urls"]:
            log.warning("%s: these options take effect with a restart: %s", self.path, ", ".join(waiting))
        log.info("%s is read, %d engines are listed", self.path, len(urls))
        relist(urls)


def _value(option: Option, config: Config) -> Any:
    return reduce(getattr, option.path, config)


@contextmanager
def following(
    file: ConfigFile, relist: Callable[[list[str]], None], *, signals: bool = True
) -> Iterator[Callable[[], None]]:
    """Follow the file within this context. It gives the function that reads it at once. signals: SIGHUP calls that."""

    def reload() -> None:
        file.reload(relist)

    loop, watching = asyncio.get_running_loop(), asyncio.create_task(watch([file.path], file.first, reload))
    if signals:
        loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield reload
    finally:
        watching.cancel()
        if signals:
            loop.remove_signal_handler(signal.SIGHUP)
