"""Every rule about headers: which ones the gateway reads, which pass to engines and to clients, and which it adds.

Names are bytes in lower case, as in ASGI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.types import Placement

Headers = list[tuple[bytes, bytes]]

# Headers that the gateway reads. A client's session is named by the first of SESSION that it sends.
# x-correlation-id is none of them, although some clients put a session there: to most it is the id of one request.
SESSION = (
    b"x-session-id",
    b"x-claude-code-session-id",
    b"x-dynamo-session-id",
    b"x-session-affinity",
    b"session-id",
    b"x-smg-routing-key",
    b"x-session-token",
    b"x-user-id",
)
PARENT_SESSION, FINAL_SESSION = b"x-dynamo-parent-session-id", b"x-dynamo-session-final"
SLO_TTFT_MS, SLO_TPOT_MS = b"x-slo-ttft-ms", b"x-slo-tpot-ms"
OVERHEAD = b"x-leafcutter-overhead-ms"
EXPLAIN_ROUTE = b"x-leafcutter-route"
REQUEST_ID = b"x-request-id"
REQUEST_ID_CHARS = 128

ENGINE_SESSION = b"x-session-id"  # tells vLLM (from 0.32 on) the session of a chat or a completion, for its order
DATA_PARALLEL_RANK = b"x-data-parallel-rank"  # tells vLLM which of its ranks gets the request

# Headers that belong to one connection and not to the message (RFC 9110, section 7.6.1), or that are set anew for the
# next connection.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade host content-length expect".split()
)
# Headers that are between the client and the gateway.
NOT_FOR_ENGINES = frozenset((REQUEST_ID, b"accept-encoding", b"cookie", b"x-api-key", DATA_PARALLEL_RANK))
NOT_FOR_ENGINES_FAMILY = b"x-leafcutter-"
# The headers of an engine's answer that pass. All others are the engine's own business (server, set-cookie), set anew
# here (date, x-request-id), or would be wrong at another address (location, access-control-*).
FOR_CLIENTS = frozenset(
    b"content-type content-encoding content-language content-disposition retry-after www-authenticate".split()
)
FOR_CLIENTS_FAMILIES = (b"openai-", b"anthropic-")
STREAM: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]  # no proxy may buffer a stream


def end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The headers that are not HOP_BY_HOP and that no `connection` header names."""
    named = {name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")}
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP and name not in named]


def for_engine(
    headers: Sequence[tuple[bytes, bytes]],
    request_id: str,
    engine_key: str | None,
    own_keys: bool,
    session: str | None = None,
) -> Headers:
    """The client's headers as the engine gets them.

    They ask for an uncompressed answer, so that it can be read as it passes. engine_key: the key sent to the engine in
    place of the client's. own_keys: the client's key is one of this gateway's, which are never passed on. session: the
    engine gets this id of the session in place of the client's name.
    """
    passed = [
        (name, value)
        for name, value in end_to_end(headers)
        if not (name in NOT_FOR_ENGINES or name.startswith(NOT_FOR_ENGINES_FAMILY))
    ]
    if engine_key or own_keys:
        passed = [header for header in passed if header[0] != b"authorization"]
    if session is not None:
        passed = [header for header in passed if header[0] != ENGINE_SESSION]
        passed.append((ENGINE_SESSION, session.encode()))
    passed += [(REQUEST_ID, request_id.encode()), (b"accept-encoding", b"identity")]
    return [*passed, (b"authorization", b"Bearer " + engine_key.encode())] if engine_key else passed


def for_client(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The headers of an engine's answer as the client gets them. headers: those that are end-to-end."""
    return [(name, value) for name, value in headers if name in FOR_CLIENTS or name.startswith(FOR_CLIENTS_FAMILIES)]


def of_decision(request_id: str, decision: Placement | None, *, predicted: bool = True) -> Headers:
    """The headers by which any answer tells how its request was routed. decision: None if there was none. predicted:
    whether the client may know the predicted latency, and with it what is cached."""
    headers = [(REQUEST_ID, request_id.encode())]
    if decision is not None:
        headers.append((b"x-leafcutter-engine", decision.engine.encode()))
        headers.append((b"x-leafcutter-policy", decision.policy.encode()))
        headers.append((b"x-leafcutter-reason", decision.reason.encode()))
        if decision.fallback is not None:
            headers.append((b"x-leafcutter-fallback", decision.fallback.encode()))
        if predicted and decision.predicted_s is not None:
            headers.append((b"x-leafcutter-predicted-ms", b"%.0f" % (decision.predicted_s * 1000)))
    return headers


def request_id(headers: Mapping[bytes, bytes], names: Sequence[bytes]) -> str | None:
    """The client's id of the request: the value of the first header in `names` that has 1 to 128 visible ASCII
    characters. None: the client sent none."""
    for name in names:
        value = headers.get(name, b"")
        if 0 < len(value) <= REQUEST_ID_CHARS and all(0x21 <= char <= 0x7E for char in value):
            return value.decode()
    return None
