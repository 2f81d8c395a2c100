"""Passing the answer of one engine on to the client, and observing it on the way."""

from __future__ import annotations

from collections.abc import Callable

from router.errors import EngineFailed, EngineLost
from router.gateway.client import Client
from router.gateway.headers import STREAM, Headers, for_client
from router.gateway.lenient_json import read_object
from router.gateway.observe import ObservedAnswer
from router.gateway.stream_observer import StreamObserver
from router.gateway.upstream import UpstreamAnswer

WHOLE_BYTES = 1 << 21  # a whole answer is kept up to this size, until it is complete; reading it takes some 5 ms


async def relay_stream(
    client: Client,
    answer: UpstreamAnswer,
    observed: ObservedAnswer,
    headers: Headers,
    *,
    hide_usage: bool,
    on_first_token: Callable[[], None],
) -> None:
    """Pass the events of a stream on as they arrive. Raises EngineLost, EngineTimeout, and EngineFailed if an error is
    all there is.

    headers: those that the gateway adds. on_first_token: called once, before the first token is sent on.
    """
    observer = StreamObserver(observed, hide_usage=hide_usage)
    client.open(answer.status, [*for_client(answer.headers), *STREAM, *headers], streams=True)
    first_token_seen = False
    try:
        while chunk := await answer.read():
            visible = observer.feed(chunk)
            if observed.started and not first_token_seen:
                first_token_seen = True
                on_first_token()
            if observed.failed and not client.started and EngineFailed.of(observed.error_status):
                json_answer = [(b"content-type", b"application/json")]
                raise EngineFailed(observed.error_status, json_answer, observed.error_body())
            client.torn = observer.torn
            if visible:
                await client.write(visible)
        await _end(client, observer)
    except EngineLost:
        observer.read_rest()
        if not observed.done:  # a stream that breaks after its end mark is complete
            raise
        await _end(client, observer)
    finally:
        observer.read_rest()  # the client has its answer by now


async def _end(client: Client, observer: StreamObserver) -> None:
    rest, observed = observer.finish(), observer.observed
    if not observed.done:
        observer.read_rest()
        if not observed.done and not observed.failed and observed.marks_end:
            raise EngineLost("The engine broke off its answer.")
    await client.write(rest, last=True)


async def relay_whole(client: Client, answer: UpstreamAnswer, observed: ObservedAnswer, headers: Headers) -> None:
    """Pass on an answer that is not a stream. Raises EngineFailed, EngineLost and EngineTimeout.

    It is read to its end before any of it is sent on, so that another engine may still be asked if this one dies. That
    costs no time, because the engine sends such an answer at once. Of an answer longer than WHOLE_BYTES, the rest is
    passed on as it comes, and nothing is learned from it.
    """
    chunks, size = [], 0
    while size <= WHOLE_BYTES and (chunk := await answer.read()):
        chunks.append(chunk)
        size += len(chunk)
    content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if size <= WHOLE_BYTES:
        if EngineFailed.of(answer.status):
            raise EngineFailed(answer.status, for_client(answer.headers), content)
        if document := read_object(content):
            observed.read(document)
        return await client.reply(answer.status, [*for_client(answer.headers), *headers], content)
    client.open(answer.status, [*for_client(answer.headers), *headers])
    while content:
        await client.write(content)
        content = await answer.read()
    await client.write(b"", last=True)
