"""Every error that a user can meet, in one tree.

    LeafcutterError
    |- ConfigError            a wrong option: key, value, what was expected     (exit status 2)
    |- TraceError             a trace that cannot be read: file, line, what was found and expected (exit status 2)
    |- SnapshotError          learned state that cannot be restored: place, what was found and expected
    |- SetupError             an engine, model or tool that is not available    (exit status 1)
    '- RequestError           answered to the client as an OpenAI error body
       |- BadRequest 400      |- Unauthorized 401    |- NotFound 404
       |- BadMethod 405       |- RequestTooSlow 408  |- HeadTooLarge 431
       |- Forbidden 403       |- RateLimited 429
       |- PayloadTooLarge 413 |- EngineLost 502      |- NoEngine 503
       |                      |  |- EngineUnreachable, its connection refused
       |                      |  |- EngineOut, taken out before the first byte
       |                      |  '- EngineGarbled, its answer is of no use
       |- EngineFailed 429 5xx|- EngineTimeout 504   |- RouterAway 503
       |- GatewayFull 503     |- ShuttingDown 503    |- BadVersion 505
       |- WorkerConflict 409  |- OutOfFiles 503      '- GatewayFault 500

No message holds the URL of an engine, because clients must not learn the addresses inside the fleet.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Any, ClassVar

from router.types import Ending

MOST_RETRY_AFTER_S = 600  # a prediction beyond this says no more than that it takes long


class RetryReason(StrEnum):
    """Why a request may be tried on another engine. `core.retries` decides what each reason allows."""

    CONNECT = "connect"  # the connection was refused or not made in time, so nothing was sent
    BUSY = "busy"  # the engine declined the request before it began: 429, 502 or 503
    RESET = "reset"  # the connection broke
    FAILED = "failed"  # the engine answered with another error of its own: 500 and above
    MOVED = "moved"  # the engine was taken out while the request waited for its first byte


BUSY = frozenset((429, 502, 503))
"""HTTP statuses by which an engine declines a request before it begins."""


class LeafcutterError(Exception):
    """The base of all errors of the project."""


class ConfigError(LeafcutterError):
    """An option has a value that cannot be used. The message names the key, the value and what was expected."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"option {key!r} = {value!r}: expected {expected}")
        self.key, self.value, self.expected = key, value, expected


class TraceError(LeafcutterError):
    """A trace cannot be read. `line` counts from 1; it is None where the file as a whole is meant."""

    def __init__(self, file: str, line: int | None, found: str, expected: str) -> None:
        place = file if line is None else f"{file}, line {line}"
        super().__init__(f"trace {place}: found {found}; expected {expected}")
        self.file, self.line, self.found, self.expected = file, line, found, expected

    def __reduce__(self) -> tuple[Any, ...]:
        return TraceError, (self.file, self.line, self.found, self.expected)  # the error is pickled between processes


class SnapshotError(LeafcutterError):
    """Learned state cannot be restored. `place` is the path to the value in the file, such as
    `learned.policies.lbgr.duplication.repeated`."""

    def __init__(self, place: str, found: object, expected: str) -> None:
        shown = repr(found)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        super().__init__(f"{place} is {shown}; expected {expected}")


class SetupError(LeafcutterError):
    """Something that the command needs is not available. The message says what to do."""


class RequestError(LeafcutterError):
    """A request failed, and its client gets an OpenAI error body.

    Each class knows its HTTP status and its OpenAI error type and code, the `Ending` that it gives the request, and the
    reason for which the request may be tried on another engine (None: it may not).
    """

    ending: ClassVar[Ending] = Ending.REJECTED
    retry_reason: RetryReason | None = None
    status: int = 500
    type: str = "server_error"
    code: ClassVar[str] = "internal_error"
    retry_after_s: int | None = None
    quotes_engine: ClassVar[bool] = False
    """Whether `body` is the answer of an engine, which the client gets as it is."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer, with names in lower case."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after_s))
        return headers

    def body(self) -> bytes:
        """The OpenAI error object, `{"error": {"message", "type", "param", "code"}}`, as JSON bytes."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


class BadRequest(RequestError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class Unauthorized(RequestError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(RequestError):
    """The key is a client's, and the route is for operators."""

    status, type, code = 403, "invalid_request_error", "insufficient_permissions"


class NotFound(RequestError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class UnknownUrl(NotFound):
    code = "unknown_url"


class UnknownRequest(NotFound):
    """The decision log holds no decision for that request id."""

    code = "request_not_found"


class UnknownWorker(NotFound):
    code = "worker_not_found"


class WorkerConflict(RequestError):
    """What is asked of a server of engines does not go with its present state."""

    status, type, code = 409, "invalid_request_error", "worker_conflict"


class BadMethod(RequestError):
    status, type, code = 405, "invalid_request_error", "unknown_url"


class RequestTooSlow(RequestError):
    status, type, code = 408, "invalid_request_error", "request_too_slow"


class HeadTooLarge(RequestError):
    status, type, code = 431, "invalid_request_error", "head_too_large"


class BadVersion(RequestError):
    status, type, code = 505, "invalid_request_error", "http_version_not_supported"


class PayloadTooLarge(RequestError):
    status, type, code = 413, "invalid_request_error", "payload_too_large"


class RateLimited(RequestError):
    """A limit of the client's key is reached. type: what is limited (`requests`, `tokens` or `concurrency`). own:
    headers that tell of the limits. wait_s: when the request may be tried again, seconds from now."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, type: str, wait_s: float, *, own: list[tuple[bytes, bytes]]) -> None:
        super().__init__(message)
        self.type, self.retry_after_s, self._own = type, max(1, math.ceil(wait_s)), own

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers, *self._own]


class EngineLost(RequestError):
    status, type, code = 502, "server_error", "engine_lost"
    ending, retry_reason = Ending.ENGINE_LOST, RetryReason.RESET


class EngineUnreachable(EngineLost):
    code, retry_reason = "engine_unreachable", RetryReason.CONNECT


class EngineOut(EngineLost):
    code, retry_reason = "engine_out", RetryReason.MOVED


class EngineGarbled(EngineLost):
    """The engine answered with something that no client may get: it is not HTTP, it points elsewhere, or the like."""

    code = "engine_bad_answer"


class OutOfFiles(RequestError):
    """This machine has no file descriptor left. No engine is to blame, and another one would not help."""

    status, type, code, retry_after_s = 503, "server_error", "gateway_overloaded", 1


class NoEngine(RequestError):
    status, type, code, retry_after_s = 503, "server_error", "no_available_workers", 5


class EngineFailed(RequestError):
    """The engine answered with 429 or an error of its own. The client gets that answer as it is, unless another engine
    has a better one: `content`, with `headers`. It never happens inside a stream."""

    ending, code = Ending.ENGINE_FAILED, "engine_failed"

    quotes_engine = True

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        super().__init__(f"The engine answered {status}.")
        self.status, self._headers, self._content = status, headers, content
        self.retry_reason = RetryReason.BUSY if status in BUSY else RetryReason.FAILED

    @staticmethod
    def of(status: int) -> bool:
        """Whether an answer of that status is one that another engine might not give."""
        return status == 429 or status >= 500

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers

    def body(self) -> bytes:
        return self._content


class GatewayFull(RequestError):
    """The gateway has as many requests, or connections, as it may. wait_s: when there may be a place."""

    status, type, code = 503, "server_error", "gateway_full"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = min(MOST_RETRY_AFTER_S, max(1, math.ceil(wait_s)))


class ShuttingDown(RequestError):
    """The gateway ends, and the grace for running requests is over."""

    status, type, code, retry_after_s = 503, "server_error", "shutting_down", 1
    ending = Ending.CANCELLED


class RouterAway(RequestError):
    """With several processes: the one that knows the answer is being started again."""

    status, type, code, retry_after_s = 503, "server_error", "router_away", 1


class EngineTimeout(RequestError):
    status, type, code = 504, "server_error", "engine_timeout"
    ending = Ending.TIMEOUT


class GatewayFault(RequestError):
    """The gateway itself failed. Its log has the traceback."""

    status, type, code = 500, "server_error", "gateway_fault"
    ending = Ending.GATEWAY_FAULT
