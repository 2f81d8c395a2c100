"""The address of an engine: the base URL of its server in one spelling, and its data-parallel rank if it has one.

`HTTP://Host:80/`, `http://host` and `http://host:80` are one server, and so are the forms of one IPv6 address. Names
are not looked up, so `localhost` and `127.0.0.1` are two.

The engines behind one URL (`core.workers`) have the index of each behind a `#`, which no base URL has:
`http://host:8000#1`. So an address is one text, as a base URL is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from router.errors import ConfigError

EXPECTED = "a base URL such as http://127.0.0.1:8000"
MOST_CHARS = 1024
PORTS = {"http": 80, "https": 443}


def base_url(text: str, key: str = "worker_urls") -> str:
    """The one spelling of a base URL: lower case, the port left out if it is the scheme's own, and no `/` at the end.

    key: names the option in the ConfigError that is raised for what is no base URL.
    """
    if len(text) > MOST_CHARS or not all("!" <= char <= "~" or char.isalnum() for char in text):
        raise ConfigError(key, text[:MOST_CHARS], EXPECTED)
    try:
        parts = urlsplit(text)
        host, port = _host(parts), parts.port
    except ValueError:  # UnicodeError too
        raise ConfigError(key, text, EXPECTED) from None
    if parts.scheme not in PORTS or not host or port == 0 or parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ConfigError(key, text, EXPECTED)
    user, at, _ = parts.netloc.rpartition("@")
    ending = "" if port in (None, PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{user}{at}{host}{ending}"


def _host(parts: SplitResult) -> str:
    """The host as it stands in a URL; empty if there is none. Raises ValueError."""
    host = parts.hostname or ""
    if ":" in host:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    if set(host) & set('%[]\\^`{|}<>"'):
        raise ValueError
    return host.encode("idna").decode() if host else ""


def server_of(url: str) -> str:
    """What tells servers apart: the base URL without the user and the password in it."""
    scheme, _, place = url.partition("://")
    return f"{scheme}://{place.rpartition('@')[2]}"


def base_urls(texts: Iterable[str]) -> list[str]:
    """The base URLs of a list of engines, each in its one spelling.

    Raises ConfigError if there is none, if one is no base URL, and if a server is given twice.
    """
    urls: dict[str, str] = {}
    given: dict[str, str] = {}
    for text in texts:
        url = base_url(text)
        server = server_of(url)
        if server in urls:
            also = "" if given[server] == text else f"; {given[server]!r} is the same one"
            raise ConfigError("worker_urls", text, f"every engine once{also}")
        urls[server], given[server] = url, text
    if not urls:
        raise ConfigError("worker_urls", (), "at least one engine, e.g. --worker-urls http://127.0.0.1:8000")
    return list(urls.values())


def address_of(url: str, index: int) -> str:
    """The address of one of the engines behind a base URL, counted from 0."""
    return f"{url}#{index}"


def check_address(address: str) -> None:
    """Raises ConfigError for a text that is no address."""
    url, mark, index = address.partition("#")
    if base_url(url, "address") != url or (mark and not (index.isascii() and index.isdigit() and len(index) < 5)):
        raise ConfigError("address", address, EXPECTED)


def split_address(address: str) -> tuple[str, int | None]:
    """The base URL in an address, and the index behind it; None if the engine is the only one at its URL."""
    url, mark, index = address.partition("#")
    return url, int(index) if mark else None
