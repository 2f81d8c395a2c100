"""The present keys of the gateway, read again when their file changes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from router.config import ServerOptions
from router.gateway.beside import beside
from router.gateway.file_watch import stamp, watch
from router.gateway.key_file import KeyFile, Numbered, decode, names
from router.gateway.tenants import ClientKey, KeyRing

log = logging.getLogger("leafcutter.keys")


class Access:
    """Knows who may come in.

    paths: the files that `read` reads. read: returns the clients' keys; it raises ConfigError, at the start too.
    """

    def __init__(self, options: ServerOptions, paths: Sequence[str] = (), read: Callable[[], Numbered] = list) -> None:
        self._options, self._paths, self._read = options, paths, read
        self._stamp = stamp(paths)
        self.entries = read()
        self.ring = KeyRing(options, self.entries)

    @classmethod
    def of(cls, options: ServerOptions) -> Access:
        """Read the keys that the options name. Raises ConfigError."""
        if options.client_keys is None:
            return cls(options)
        file = KeyFile(options.client_keys)
        return cls(options, file.paths, file.read)

    @classmethod
    def of_copy(cls, options: ServerOptions, path: str) -> Access:
        """Read them from what another process has checked and encoded."""

        def read() -> Numbered:
            with open(path, "rb") as file:
                return decode(file.read())

        return cls(options) if options.client_keys is None else cls(options, (path,), read)

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> ClientKey | None:
        """Who the request comes from; None: nobody that is known."""
        return self.ring.find(headers)

    @asynccontextmanager
    async def running(self, told: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Read the files again when they change. told: called after that."""

        def load() -> None:
            entries = self._read()
            self.ring, self.entries = KeyRing(self._options, entries), entries
            log.info("the clients' keys were read again: %s", names(entries))
            told()

        with beside(watch(self._paths, self._stamp, load)):
            yield
