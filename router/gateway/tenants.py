"""Who a request comes from: the keys that open the gateway, and what each of them may see.

    no key set            whoever comes is admin (and the gateway stays on loopback, see `check_doors`)
    api_key alone         it is the one client and the admin
    admin_key             the only admin. api_key, if it is set too, is a client's
    client_keys           each is a client's, and so is api_key. Without admin_key nobody is admin

A client's key opens the routes that go to engines and the list of models; all others are the admin's. Keys are looked
up by their SHA-256, of which the file of clients' keys holds nothing else, so the time of a look-up tells nothing of a
key.

A tenant is a client's key, or all keys of one group. If there are several tenants, each has prefix caches of its own:
every request gets a `cache_salt`, which engines mix into the hashes of their blocks and `transcript.root` into ours.
The salt is an HMAC with the hash of the tenant's first key, so it is the same after a restart and at every replica that
has the same file, and nobody can compute it who lacks that file. A salt that a client chooses is mixed with it, so
clients can divide their own cache and reach nobody else's.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from router.config import Config, ServerOptions
from router.errors import BadRequest, ConfigError
from router.gateway.key_file import Entry
from router.options import HIDDEN

MOST_KEY_BYTES = 1024  # what is longer is no key
SALT = "cache_salt"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key; None: there is none. They hold for the whole gateway."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class ClientKey:
    """Who sends a request. It never holds the key itself."""

    name: str
    """It stands in metrics and in the usage log. Empty: nobody was asked for a key."""
    weight: float = 1.0
    """The share of this key, compared with others, where requests have to wait."""
    admin: bool = False
    sees_predictions: bool = True
    """False where a predicted latency would tell which prefixes of other clients are cached."""
    salt: bytes | None = None
    """What its cache salts are derived from; None: it has none of its own."""
    limits: KeyLimits | None = None
    row: int = 0
    """Its place in `key_limits.SharedLimits`."""


ANYONE = ClientKey("", admin=True)


class KeyRing:
    """All keys that open the gateway. entries: those of the file, each with its row.

    Raises ConfigError if a key is there twice.
    """

    def __init__(self, options: ServerOptions, entries: Sequence[tuple[Entry, int]] = ()) -> None:
        self._keys: dict[bytes, ClientKey] = {}
        alone = options.admin_key is None and options.client_keys is None
        firsts: dict[tuple[str, str], bytes] = {}  # the first key of each tenant
        if options.api_key is not None and not alone:
            firsts["api_key", ""] = _digest(options.api_key)
        for entry, _ in entries:
            firsts.setdefault(entry.tenant, entry.digests[0])
        several = len(firsts) > 1
        if options.admin_key is not None:
            self._add(_digest(options.admin_key), ClientKey("admin", admin=True))
        if options.api_key is not None:
            salt = _secret(firsts["api_key", ""]) if several else None
            shared = ClientKey("api-key", admin=alone, sees_predictions=not several, salt=salt)
            self._add(_digest(options.api_key), shared)
        for entry, row in entries:
            limits = KeyLimits(entry.requests_per_minute, entry.tokens_per_minute, entry.concurrency)
            key = ClientKey(
                entry.name,
                weight=entry.weight,
                sees_predictions=not several,
                salt=_secret(firsts[entry.tenant]) if several else None,
                limits=limits if limits != KeyLimits() else None,
                row=row,
            )
            for digest in entry.digests:
                self._add(digest, key)
        self.asks = bool(self._keys) or options.client_keys is not None
        """Whether a key is asked for at all."""
        self.separates = not alone
        """Whether operators and clients have different keys."""

    def _add(self, digest: bytes, key: ClientKey) -> None:
        if digest in self._keys:
            names = f"{self._keys[digest].name!r} and {key.name!r}"
            raise ConfigError("client_keys", HIDDEN, f"another key for each: {names} have the same")
        self._keys[digest] = key

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> ClientKey | None:
        """Who the request comes from, by its bearer token or its x-api-key; None: nobody that is known."""
        if not self.asks:
            return ANYONE
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            elif name == b"x-api-key":
                given = value.strip()
            else:
                continue
            if len(given) <= MOST_KEY_BYTES and (key := self._keys.get(sha256(given).digest())) is not None:
                return key
        return None


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _secret(digest: bytes) -> bytes:
    return hmac.digest(digest, b"leafcutter cache salt", "sha256")


def salt_for(secret: bytes, fields: Mapping[str, Any]) -> str:
    """The cache salt of a request. secret: its tenant's. fields: its body, which may have a salt of its own.

    Raises BadRequest for one that engines refuse: they will not see it.
    """
    own = fields.get(SALT)
    if own is not None and not (isinstance(own, str) and own):
        raise BadRequest(f"`{SALT}` must be text that is not empty.", param=SALT)
    return hmac.new(secret, (own or "").encode("utf-8", "surrogatepass"), "sha256").hexdigest()


def check_doors(options: ServerOptions) -> None:
    """Raises ConfigError if strangers could come in, or if the options of keys and listeners do not fit together."""
    if options.admin_key is not None and options.admin_key == options.api_key:
        raise ConfigError("admin_key", HIDDEN, "another key than api_key, which clients know")
    if options.tls_cert is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(options, name) is not None:
                raise ConfigError(name, getattr(options, name), "tls_cert beside it")
    if options.admin_port is not None and options.admin_port == options.port != 0:
        raise ConfigError("admin_port", options.admin_port, "another port than that for clients (port)")
    if options.allow_no_key:
        return
    keys = [options.api_key, options.admin_key, options.client_keys]
    if not any(keys) and not on_loopback(options.host):
        raise ConfigError("host", options.host, "a loopback address, a key (api_key, client_keys), or allow_no_key")
    # On a listener of their own, operators' routes want the admin's key, and without one (client_keys alone) none.
    admins = options.admin_key or (options.api_key if options.client_keys is None else None)
    if options.admin_port is not None and not admins and not on_loopback(options.admin_host):
        raise ConfigError("admin_host", options.admin_host, "a loopback address, an admin_key, or allow_no_key")


def on_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`. A name counts only if it is localhost: what others mean
    may change."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def own_keys(config: Config) -> bool:
    """Whether the gateway asks for keys of its own, so that a client's key is not for engines."""
    server = config.server
    return any(key is not None for key in (server.api_key, server.admin_key, server.client_keys))
