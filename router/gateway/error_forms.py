"""How errors are told to the clients of each API, as an answer and as an event of a stream.

    all APIs but the two below   {"error": {"message", "type", "param", "code"}}, as OpenAI has it
    /v1/messages and below       {"type": "error", "error": {"type", "message"}}, as Anthropic has it
    /v1/responses, in a stream   an event `error` with the fields that OpenAI gives it, and the object `error` beside
                                 them, by which OpenAI's own clients know that the stream has failed

An error is told in the form of the path that was asked for, so it has that form before anything else of the request is
known: for a missing key as for a broken stream.
"""

from __future__ import annotations

import json

from router.errors import RequestError

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def body(error: RequestError, path: str) -> bytes:
    """The error as a whole answer to a request for `path`. What an engine has answered stays as it is."""
    if error.quotes_engine or not (path == MESSAGES or path.startswith(MESSAGES + "/")):
        return error.body()
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return json.dumps({"type": "error", "error": {"type": kind, "message": error.message}}).encode()


def event(error: RequestError, path: str) -> bytes:
    """The error as the last event of the stream that answers a request for `path`."""
    if path == RESPONSES:
        told = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        content = json.dumps({**told, "sequence_number": 0, **json.loads(error.body())}).encode()
        return b"event: error\ndata: " + content + b"\n\n"
    name = b"event: error\n" if path == MESSAGES else b""
    return name + b"data: " + body(error, path) + b"\n\n"
