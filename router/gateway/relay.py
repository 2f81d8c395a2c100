"""One engine's answer on its way to the client, watched as it passes."""

from __future__ import annotations

from collections.abc import Callable

from router.errors import EngineBusy, EngineLost
from router.gateway.client import Client
from router.gateway.headers import STREAM, Headers, for_client
from router.gateway.observe import ObservedAnswer, StreamObserver, read_json
from router.gateway.upstream import UpstreamAnswer


async def relay_stream(
    client: Client,
    answer: UpstreamAnswer,
    observed: ObservedAnswer,
    headers: Headers,
    *,
    hide_usage: bool,
    on_first_token: Callable[[], None],
) -> None:
    """Passes events on as they come. `headers`: the gateway's own. Raises EngineLost, EngineTimeout."""
    observer = StreamObserver(observed, hide_usage=hide_usage)
    client.open(answer.status, [*for_client(answer.headers), *STREAM, *headers], streams=True)
    waiting = True
    try:
        while chunk := await answer.read():
            shown = observer.feed(chunk)
            if waiting and observed.started:
                waiting = False
                on_first_token()
            client.torn = observer.torn
            if shown:
                await client.write(shown)
    except EngineLost:
        if not observer.done:  # broken off after [DONE] is whole
            raise
    rest = observer.finish()
    if not (observer.done or observed.failed):
        raise EngineLost("The engine broke off its answer.")
    await client.write(rest, last=True)


async def relay_whole(client: Client, answer: UpstreamAnswer, observed: ObservedAnswer, headers: Headers) -> None:
    """Passes on an answer that is no stream. The engine makes it as a whole, so it is read as a whole before any of it
    is sent: if the engine dies on the way, another may still be asked. Raises EngineBusy, EngineLost, EngineTimeout."""
    content = await answer.read_all()
    if answer.status == EngineBusy.status:
        raise EngineBusy(for_client(answer.headers), content)
    if document := read_json(content):
        observed.read(document)
    await client.reply(answer.status, [*for_client(answer.headers), *headers], content)
