"""The file of clients' keys: a YAML list, one entry for each client.

    - name: research                          letters, digits, `.`, `_` and `-`
      key: sha256:5e88...                     the SHA-256 of the key, or a list of several, as while a key is replaced
      group: labs                             keys of one group share prefix caches
      weight: 2                               its share, compared with others, where requests have to wait
      requests_per_minute: 600
      tokens_per_minute: 200000
      concurrency: 32                         requests at a time

All but name and key may be left out. The file never holds a key, and no error shows what stands in its place. A plain
hash is enough because `leafcutter keys new` makes keys of 256 random bits, which nobody can guess from it.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta, Struct

from router.errors import ConfigError

log = logging.getLogger("leafcutter.keys")
MOST_NAMES = 4096
RESERVED = ("admin", "api-key")  # these stand for keys that are options

Hash = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Limit = Annotated[int, Meta(ge=1, le=10**12)]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One client."""

    name: Name
    key: Hash | Annotated[tuple[Hash, ...], Meta(min_length=1)]
    group: Name | None = None
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = None

    @property
    def digests(self) -> list[bytes]:
        hashes = (self.key,) if isinstance(self.key, str) else self.key
        return [bytes.fromhex(each.removeprefix("sha256:")) for each in hashes]

    @property
    def tenant(self) -> tuple[str, str]:
        """What it shares prefix caches with."""
        return ("name", self.name) if self.group is None else ("group", self.group)


Numbered = list[tuple[Entry, int]]
"""Entries, each with the row that its limits have."""


def is_inline(source: str) -> bool:
    """Whether the option holds the list itself and not the path of a file."""
    return source.lstrip().startswith("[")


class KeyFile:
    """Reads the keys at `source`, the option client_keys, and gives each name a row that it keeps."""

    def __init__(self, source: str) -> None:
        self.paths = () if is_inline(source) else (source,)
        self._source = source
        self._rows: dict[str, int] = {}

    def read(self) -> Numbered:
        """Raises ConfigError."""
        text = self._source if not self.paths else _text(self._source)
        entries = parse(text, self._source if self.paths else "the list itself")
        rows = dict(self._rows)
        for entry in entries:
            rows.setdefault(entry.name, len(rows))
        if len(rows) > MOST_NAMES:
            raise ConfigError("client_keys", self._source, f"at most {MOST_NAMES} names from one start to the next")
        self._rows = rows
        return [(entry, rows[entry.name]) for entry in entries]


def parse(text: str | bytes, where: str) -> list[Entry]:
    """The entries of a file. where: names it in errors. Raises ConfigError."""
    try:
        document = yaml.safe_load(text)
        entries = msgspec.convert(document, list[Entry])
    except (yaml.YAMLError, RecursionError):  # the error would show the line, and with it what may be a key
        raise ConfigError("client_keys", where, "valid YAML") from None
    except msgspec.ValidationError as error:
        raise ConfigError("client_keys", where, f"a list of keys, see docs/operations.md ({error})") from None
    if not entries:
        raise ConfigError("client_keys", where, "at least one key")
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen or entry.name in RESERVED:
            raise ConfigError("client_keys", where, f"a name of its own for each entry, not {entry.name!r} again")
        seen.add(entry.name)
    return entries


def _text(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError("client_keys", path, "a regular file")
            if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
                log.warning("%s can be read, or changed, by others than its owner: chmod 640 it", path)
            return file.read()
    except OSError as error:
        raise ConfigError("client_keys", path, f"a readable file ({error.strerror})") from None


def encode(entries: Numbered) -> bytes:
    """The entries as one process passes them to another."""
    return msgspec.json.encode(entries)


def decode(content: bytes) -> Numbered:
    """The reverse of `encode`."""
    return msgspec.json.decode(content, type=Numbered)


def names(entries: Sequence[tuple[Entry, int]]) -> str:
    """For the log."""
    return ", ".join(entry.name for entry, _ in entries)
