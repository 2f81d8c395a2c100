"""TLS to clients and to engines, as the options ask for it. Whatever is wrong with a file raises ConfigError."""

from __future__ import annotations

import functools
import ssl

from router.config import EngineOptions, ServerOptions
from router.errors import ConfigError


def server_context(options: ServerOptions) -> ssl.SSLContext:
    """TLS to clients. Raises ConfigError."""
    assert options.tls_cert is not None, "asked for only with a certificate"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, options.tls_cert, options.tls_key, "tls_cert")
    if options.tls_client_ca is not None:
        _load_authorities(context, options.tls_client_ca, "tls_client_ca")
        context.verify_mode = ssl.CERT_REQUIRED
        # A client that comes back with a ticket would not be asked for its certificate again.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def engine_context(options: EngineOptions) -> ssl.SSLContext:
    """TLS to engines. Raises ConfigError."""
    if options.worker_key is not None and options.worker_cert is None:
        raise ConfigError("worker_key", options.worker_key, "worker_cert beside it")
    if options.worker_ca is None and options.worker_cert is None:
        return _system_context()
    if options.worker_ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, options.worker_ca, "worker_ca")
    if options.worker_cert is not None:
        _load_pair(context, options.worker_cert, options.worker_key, "worker_cert")
    return context


@functools.cache
def _system_context() -> ssl.SSLContext:
    """The authorities of the system take tens of milliseconds to read, and are asked for by every client of engines."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # as httpx sets it, so that sharing the context changes nothing
    return context


def _load_pair(context: ssl.SSLContext, cert: str, key: str | None, name: str) -> None:
    try:
        context.load_cert_chain(cert, key, password="")  # without a password OpenSSL would ask the terminal for one
    except OSError as error:  # the errors of OpenSSL are OSErrors too
        expected = "PEM files of a certificate and its private key, which has no password"
        raise ConfigError(name, cert, f"{expected} ({_words(error)})") from None


def _load_authorities(context: ssl.SSLContext, path: str, name: str) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise ConfigError(name, path, f"a PEM file of certificates ({_words(error)})") from None


def _words(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error.strerror or error)
