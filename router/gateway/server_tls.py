"""TLS to clients, with certificates that are replaced without a restart."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.config import ServerOptions
from router.gateway.beside import beside
from router.gateway.file_watch import stamp, watch
from router.tls import server_context

log = logging.getLogger("leafcutter.tls")


class ServerTls:
    """TLS as the options ask for it. Raises ConfigError if a file cannot be used.

    `context` is what a server takes. While a client says hello, it gives way to the context that was loaded last, so
    each new connection has the present certificate and is measured by the present authorities.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        files = (options.tls_cert, options.tls_key, options.tls_client_ca)
        self._paths = [path for path in files if path is not None]
        self._stamp = stamp(self._paths)
        self.context = self._present = server_context(options)
        self.context.sni_callback = self._take_present

    @classmethod
    def of(cls, options: ServerOptions) -> ServerTls | None:
        """None: the gateway speaks plain HTTP."""
        return None if options.tls_cert is None else cls(options)

    def _take_present(self, connection: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = self._present

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the files again when they change. Files that do not fit each other change nothing."""

        def load() -> None:
            self._present = server_context(self._options)
            log.info("the certificate was read again")

        with beside(watch(self._paths, self._stamp, load)):
            yield
