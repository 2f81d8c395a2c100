"""Hints about sessions over HTTP: how a gateway tells an engine's eviction order when it expects a session again.

    POST /hints HTTP/1.1                       on the port of the order's state (LEAFCUTTER_STATE_PORT)
    Authorization: Bearer KEY                  KEY is LEAFCUTTER_HINT_KEY of the engine
    Content-Type: application/json
    Content-Length: BYTES                      at most 65,536

    [{"session": "name", "seconds": 12.5}, {"session": "other", "seconds": null}]

    session   the session as the engine knows it: the request's header X-Session-ID, or `session_id` in its `vllm_xargs`
              (`adapter.session_of`); text of 1 to 256 characters
    seconds   from now on, a number of at least 0, until its next request; null: it will not ask again

There are at most 512 hints in a message. A session that stands in it twice has the later hint. The answer has no body:

    204  taken     400  not such a message: nothing of it was taken     401  not the key     404  the engine has no key
    405  not POST  411  no length     413  too long     429  more than 20 messages a second in the mean, 40 at once

A hint only changes which learned class the session's blocks are in, so one that is lost, late, wrong or malicious costs
hits at most, within the bound of `orders.rlt_gix`. Hints wait in a queue of 4,096, the oldest of which is dropped when
it is full, and the engine's scheduler takes up to 64 of them before it takes new blocks.
"""

from __future__ import annotations

import hmac
import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from engine_patches.adapter import LONGEST_SESSION, Hint

PATH = "/hints"
MOST_BYTES = 65_536
MOST_HINTS = 512
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 20.0, 40.0

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class HintDesk:
    """Takes messages and passes their hints to `deliver`, one by one. Threads may call it at the same time."""

    def __init__(self, key: str, deliver: Callable[[Hint], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._key = f"Bearer {key}".encode()
        self._deliver, self._clock = deliver, clock
        self._credit, self._credited_s = MESSAGES_AT_ONCE, clock()

    def take(self, environ: Environ) -> str:
        """Take one request and return the status line of its answer."""
        if environ.get("REQUEST_METHOD") != "POST":
            return "405 Method Not Allowed"
        # WSGI gives headers as Latin-1.
        if not hmac.compare_digest(environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace"), self._key):
            return "401 Unauthorized"
        length = environ.get("CONTENT_LENGTH", "")
        if not (length.isascii() and length.isdigit()):
            return "411 Length Required"
        if len(length) > 9 or int(length) > MOST_BYTES:
            return "413 Content Too Large"
        if not self._has_credit():
            return "429 Too Many Requests"
        try:
            hints = read_hints(environ["wsgi.input"].read(int(length)))
        except ValueError:
            return "400 Bad Request"
        for hint in hints:
            self._deliver(hint)
        return "204 No Content"

    def _has_credit(self) -> bool:
        """Whether one more message may come now. Two threads at once may count one too few, which does no harm."""
        now = self._clock()
        credit = min(MESSAGES_AT_ONCE, self._credit + (now - self._credited_s) * MESSAGES_A_SECOND)
        self._credited_s = now
        self._credit = credit - 1 if credit >= 1 else credit
        return credit >= 1


def read_hints(body: bytes) -> list[Hint]:
    """Return the hints of a message. Raises ValueError if it is not one."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(entries, list) or len(entries) > MOST_HINTS:
        raise ValueError(f"not an array of at most {MOST_HINTS} hints")
    hints: list[Hint] = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"session", "seconds"}:
            raise ValueError("not an object of session and seconds")
        session, seconds = entry["session"], entry["seconds"]
        if type(session) is not str or not 0 < len(session) <= LONGEST_SESSION:
            raise ValueError(f"session: not text of 1 to {LONGEST_SESSION} characters")
        if seconds is not None and not (
            type(seconds) in (int, float) and 0 <= seconds <= 1e9 and math.isfinite(seconds)
        ):
            raise ValueError("seconds: neither null nor a number from 0 to 1e9")
        hints.append((session, seconds))
    return hints


def build_app(registry: CollectorRegistry, desk: HintDesk | None) -> App:
    """Return the application of the state's port: the metrics everywhere, but hints at PATH. Without a desk nobody
    takes them."""
    metrics: App = make_wsgi_app(registry)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != PATH:
            return metrics(environ, start_response)
        status = "404 Not Found" if desk is None else desk.take(environ)
        start_response(status, [("Content-Length", "0")])
        return [b""]

    return app
