"""START HERE: the life of a request, in the order it happens.

    read body -> parse -> [ route -> forward -> observe -> complete ] -> answer
                          '-- again on another engine, if that is safe --'

`complete` runs exactly once for every `route`, in a `finally`. A request is tried again only while the client has seen
nothing of an answer, and only where that costs no work twice or the work is lost anyway:

- the engine could not be reached, or answered 503 (it did not start): up to `retry_max_retries` times;
- the connection broke (the engine died, and what it generated with it): once, lest a request that kills engines kill
  them all.

A timeout is never tried again: the engine may still be at work, and elsewhere the prompt would be computed anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.config import Config
from router.core.router import Router
from router.errors import (
    EngineBusy,
    EngineLost,
    EngineTimeout,
    EngineUnreachable,
    GatewayFault,
    NoEngine,
    RequestError,
)
from router.gateway.client import Client, ClientGone, Receive, Scope, Send
from router.gateway.metrics import Metrics, Record
from router.gateway.observe import Seen
from router.gateway.openai_request import Parsed, parse
from router.gateway.relay import relay_stream, relay_whole
from router.gateway.trace_writer import Recorder
from router.gateway.upstream import Answer, Headers, Upstream
from router.types import Decision, Ending, EngineId, Outcome, Unit

log = logging.getLogger("leafcutter.gateway")

MOST_BREAKS = 2  # of the connection, for one request
REQUEST_ID_CHARS = 128


@dataclass(slots=True)
class Exchange:
    """One client's request on its way through the gateway."""

    client: Client
    record: Record
    request_id: str
    query: bytes

    @property
    def headers(self) -> Headers:
        """What the gateway tells of the request in the head of any answer."""
        headers = [(b"x-request-id", self.request_id.encode())]
        if decision := self.record.decision:
            headers.append((b"x-leafcutter-engine", decision.engine.encode()))
            headers.append((b"x-leafcutter-policy", decision.policy.encode()))
            headers.append((b"x-leafcutter-reason", decision.reason.encode()))
            if decision.fallback is not None:
                headers.append((b"x-leafcutter-fallback", decision.fallback.encode()))
            if decision.predicted_s is not None:
                headers.append((b"x-leafcutter-predicted-ms", b"%.0f" % (decision.predicted_s * 1000)))
        return headers


class Gateway:
    """engines: base URL of each. recorder: writes the traffic as a trace; None: nobody does. clock: monotonic, seconds.
    new_id: makes a fresh request id."""

    def __init__(
        self,
        config: Config,
        router: Router,
        engines: Mapping[EngineId, str],
        forwarder: Upstream,
        metrics: Metrics,
        *,
        recorder: Recorder | None = None,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._config, self._router, self._engines = config, router, engines
        self._forwarder, self._metrics, self._recorder = forwarder, metrics, recorder
        self._clock, self._new_id = clock, new_id
        self._id_headers = tuple(name.lower().encode() for name in config.request_id_headers)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request to a path of parse.ROUTES, and counts it, whatever happens."""
        client = Client(scope, receive, send)
        record = Record(route=scope["path"], started_s=self._clock())
        exchange = Exchange(client, record, self._request_id(client), scope["query_string"])
        number = self._recorder.arrived(record.started_s) if self._recorder else 0
        try:
            body = await client.read_body(self._config.max_payload_size)
            parsed = self._parse(exchange, body)
            with client.waiting(self._config.request_timeout_secs):
                await self._serve(exchange, parsed)
        except ClientGone:
            record.ending = Ending.CANCELLED
        except EngineBusy as error:
            await client.reply(error.status, [*error.headers, *exchange.headers], error.content)
        except RequestError as error:
            record.ending = _ending(error)
            await client.fail(error, exchange.headers)
        except Exception:
            record.ending = Ending.GATEWAY_FAULT
            log.exception("request %s failed by a fault of the gateway", exchange.request_id)
            await client.fail(GatewayFault("The gateway failed."), exchange.headers)
        finally:
            self._metrics.ended(record, self._clock())
            if self._recorder:
                self._recorder.ended(number, record.started_s, record.decision, record.outcome)

    def _parse(self, exchange: Exchange, body: bytes) -> Parsed:
        return parse(
            body,
            route=exchange.record.route,
            headers=exchange.client.headers,
            request_id=exchange.request_id,
            block_tokens=self._config.prefix_block_tokens,
        )

    async def _serve(self, exchange: Exchange, parsed: Parsed) -> None:
        """Tries engines until one answers. Raises what the last one failed with, or NoEngine if there was none."""
        tried: list[EngineId] = []
        breaks = 0
        decision = self._decide(parsed, tried)
        while True:
            exchange.record.decision, exchange.record.outcome = decision, None
            tried.append(decision.engine)
            try:
                return await self._try(exchange, parsed, decision)
            except (EngineLost, EngineBusy) as failure:
                reason = _reason(failure)
                breaks += reason == "reset"
                if exchange.client.started or breaks >= MOST_BREAKS or len(tried) > self._config.retry_max_retries:
                    raise
                try:
                    decision = self._decide(parsed, tried)
                except NoEngine:
                    raise failure from None
                self._metrics.retried(reason)

    def _decide(self, parsed: Parsed, tried: list[EngineId]) -> Decision:
        now_s = self._clock()
        decision = self._router.route(parsed.request, now_s, exclude=tried)
        self._metrics.decided(decision, self._clock() - now_s)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request %s to %s (%s)", parsed.request.request_id, decision.engine, _explain(decision))
        return decision

    async def _try(self, exchange: Exchange, parsed: Parsed, decision: Decision) -> None:
        """One request to one engine, booked by `decision` and released here on every path."""
        client, record = exchange.client, exchange.record
        seen = Seen()
        answer: Answer | None = None
        record.ending = Ending.CANCELLED
        try:
            url = self._engines[decision.engine] + record.route
            answer = await self._forwarder.post(url, exchange.query, self._outgoing(exchange), parsed.body)
            await self._relay(exchange, parsed, answer, seen)
            record.ending = Ending.REJECTED if seen.failed or answer.status >= 400 else Ending.OK
        except RequestError as error:
            record.ending = _ending(error)
            if isinstance(error, EngineUnreachable):
                self._router.fleet.set_health(decision.engine, False)  # until discovery sees it answer again
            raise
        except asyncio.CancelledError:
            record.ending = Ending.TIMEOUT if client.expired else Ending.CANCELLED
            raise
        except Exception:
            record.ending = Ending.GATEWAY_FAULT
            raise
        finally:
            if answer is not None:
                answer.close()
            self._complete(record, parsed, decision, seen)

    async def _relay(self, exchange: Exchange, parsed: Parsed, answer: Answer, seen: Seen) -> None:
        record = exchange.record

        def on_first_token() -> None:
            assert record.decision is not None, "an answer comes after a decision"
            record.first_token_s = self._clock()
            self._router.first_token(record.decision, record.first_token_s)

        if answer.streamed:
            await relay_stream(
                exchange.client,
                answer,
                seen,
                exchange.headers,
                hide_usage=parsed.hide_usage,
                on_first_token=on_first_token,
            )
        else:
            await relay_whole(exchange.client, answer, seen, exchange.headers)

    def _complete(self, record: Record, parsed: Parsed, decision: Decision, seen: Seen) -> None:
        output_tokens = seen.usage.output_tokens
        if output_tokens is None and record.ending is not Ending.OK:
            output_tokens = seen.tokens or None  # a stream that breaks off does so before it tells its usage
        outcome = Outcome(
            ending=record.ending,
            done_s=self._clock(),
            first_token_s=record.first_token_s,
            prompt_tokens=seen.usage.prompt_tokens,
            cached_tokens=seen.usage.cached_tokens,
            output_tokens=output_tokens,
            reply=parsed.reply(seen.message.fields(), seen.message.token_ids),
        )
        record.outcome = outcome
        self._router.complete(decision, outcome)
        self._metrics.completed(decision, outcome)

    def _outgoing(self, exchange: Exchange) -> Headers:
        kept = [(name, value) for name, value in exchange.client.raw_headers if name != b"x-request-id"]
        return [*kept, (b"x-request-id", exchange.request_id.encode())]

    def _request_id(self, client: Client) -> str:
        """The client's, if it is 1 to 128 visible ASCII characters; else a fresh one."""
        for name in self._id_headers:
            value = client.headers.get(name, b"")
            if 0 < len(value) <= REQUEST_ID_CHARS and all(0x21 <= char <= 0x7E for char in value):
                return value.decode()
        return self._new_id()


def _explain(decision: Decision) -> str:
    """Why this engine: every engine's cost, in milliseconds with its terms, or its rank."""
    engines = []
    for score in decision.scores:
        if decision.scores.unit is Unit.RANK:
            cost = f"rank {score.total_s:.6g}"
        else:
            terms = " + ".join(f"{name} {1000 * term:.0f}" for name, term in score.terms_s.items())
            cost = f"{1000 * score.total_s:.0f} ms = {terms}"
        engines.append(f"{score.engine}: {cost}, {score.hit_tokens:.0f} tokens cached")
    return "; ".join([f"{decision.policy}, {decision.reason}", *engines])


def _ending(error: RequestError) -> Ending:
    if isinstance(error, EngineTimeout):
        return Ending.TIMEOUT
    return Ending.ENGINE_LOST if isinstance(error, EngineLost) else Ending.REJECTED


def _reason(failure: EngineLost | EngineBusy) -> str:
    """Why an engine failed, as the metrics' label."""
    if isinstance(failure, EngineBusy):
        return "busy"
    return "connect" if isinstance(failure, EngineUnreachable) else "reset"
