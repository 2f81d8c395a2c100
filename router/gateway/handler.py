"""START HERE: the life of a request, in the order in which it happens.

    limits of its key -> read body -> parse -> wait for a place
        -> [ route -> send -> relay and observe -> complete ] -> answer -> finish
           '---- again on another engine, if `core.retries` allows ----'

An `Exchange` carries the request. For every `route`, `complete` runs exactly once, in a `finally`, and gives the try
its `Outcome`. For every request, `_finish` runs exactly once, whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from router.config import Config
from router.core.failure_log import FailureLog
from router.core.retries import Breaks, Retries, RetryBudget
from router.errors import (
    EngineFailed,
    GatewayFault,
    NoEngine,
    OutOfFiles,
    RateLimited,
    RequestError,
    RetryReason,
    ShuttingDown,
)
from router.gateway import headers
from router.gateway.access_log import AccessLog
from router.gateway.admission import Admission
from router.gateway.body_reader import BodyReader
from router.gateway.client import BodyMemory, Client, ClientGone, Receive, Scope, Send
from router.gateway.decider import Decider
from router.gateway.exchange import Exchange
from router.gateway.key_limits import SharedLimits
from router.gateway.metrics import Metrics
from router.gateway.observe import ObservedAnswer
from router.gateway.openai_request import OpenAIRequest
from router.gateway.relay import relay_stream, relay_whole
from router.gateway.routes import read_aliases
from router.gateway.trace_writer import Recorder
from router.gateway.upstream import Upstream, UpstreamAnswer
from router.gateway.usage_log import UsageLog
from router.types import BlockKey, Ending, EngineId, Outcome, Placement, Stop

log = logging.getLogger("leafcutter.gateway")
BODIES = 32  # so many of the largest bodies are held at a time, or more of smaller ones


class Gateway:
    """Serves the requests that go to engines.

    engines: the base URL of each engine. trace_writer: records the traffic; None: it is not recorded. limits: those of
    clients' keys; None: no other process shares them. usage_log: None: there is none. clock: monotonic, seconds.
    new_id: makes the id of a request whose client sent none.
    """

    def __init__(
        self,
        config: Config,
        decider: Decider,
        engines: Mapping[EngineId, str],
        upstream: Upstream,
        body_reader: BodyReader,
        metrics: Metrics,
        *,
        trace_writer: Recorder | None = None,
        limits: SharedLimits | None = None,
        usage_log: UsageLog | None = None,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._config, self._decider, self._engines = config, decider, engines
        self._upstream, self.metrics, self._trace_writer = upstream, metrics, trace_writer
        self._body_reader, self._clock, self._new_id = body_reader, clock, new_id
        self._breaks, self._budget = Breaks(), RetryBudget()
        self._failures = FailureLog(log, lambda s, call: asyncio.get_running_loop().call_later(s, call))
        self._admission = Admission(config.server, metrics, clock)
        self._memory = BodyMemory(BODIES * config.server.max_payload_size, metrics.refused)
        self._aliases = read_aliases(config.engines.model_alias)
        self._limits, self._usage_log = limits or SharedLimits(clock), usage_log
        self._access_log = AccessLog(as_json=config.server.log_format == "json") if config.server.access_log else None
        self._id_headers = tuple(name.lower().encode() for name in config.server.request_id_headers)

    async def handle(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that goes to an engine, and count it, whatever happens. route: one of `apis.TABLE`, or the
        template of a path that the operator has opened."""
        exchange = self._open(route, scope, Client(scope, receive, send))
        client, ending = exchange.client, Ending.CANCELLED  # this stays if the task is cancelled or the client leaves
        try:
            exchange.allowance = self._limits.admit(client.key)
            exchange.body = await client.read_body(self._config.server.max_payload_size, self._memory)
            exchange.waited_s = self._clock() - exchange.arrived_s
            exchange.request = await self._read(exchange)
            exchange.allowance.charge(exchange.request.prompt_estimate)
            with client.waiting(self._config.reliability.request_timeout_secs):
                outcome = await self._serve_in_turn(exchange, exchange.request)
            ending = outcome.ending
        except ClientGone:
            pass
        except RateLimited as error:
            ending = error.ending
            self.metrics.limited(client.key, error.type)
            await self._fail(exchange, error)
        except RequestError as error:
            ending = error.ending
            await self._fail(exchange, error)
        except asyncio.CancelledError:  # only the server cancels, at its end, and this is the last that the task does
            await self._fail(exchange, ShuttingDown("The gateway shuts down."))
        except Exception:
            ending = Ending.GATEWAY_FAULT
            log.exception("request %s failed by a fault of the gateway", exchange.request_id)
            await self._fail(exchange, GatewayFault("The gateway failed."))
        finally:
            self._memory.give_back(client.held_bytes)
            self._finish(exchange, ending)

    def _open(self, route: str, scope: Scope, client: Client) -> Exchange:
        request_id = headers.request_id(client.headers, self._id_headers) or self._new_id()
        retries = Retries(self._config.reliability.retry_max_retries)
        asked = scope["method"], scope["path"], scope["query_string"]
        exchange = Exchange(client, route, *asked, request_id, self._clock(), retries)
        if self._trace_writer:
            exchange.trace_number = self._trace_writer.arrived(exchange.arrived_s)
        return exchange

    async def _read(self, exchange: Exchange) -> OpenAIRequest:
        return await self._body_reader.read(
            exchange.body,
            route=exchange.route,
            headers=exchange.client.headers,
            request_id=exchange.request_id,
            block_tokens=self._config.routing.prefix_block_tokens,
            aliases=self._aliases,
            salt=exchange.client.key.salt,
        )

    async def _serve_in_turn(self, exchange: Exchange, request: OpenAIRequest) -> Outcome:
        """Serve the request when there is a place for it. Raises GatewayFull, and what `_serve` raises."""
        begun_s = self._clock()
        try:
            await self._admission.enter(exchange.client.key)
        finally:
            entered_s = self._clock()
            exchange.queued_s = entered_s - begun_s
            exchange.waited_s += exchange.queued_s
        try:
            return await self._serve(exchange, request)
        finally:
            self._admission.leave(self._clock() - entered_s)

    async def _serve(self, exchange: Exchange, request: OpenAIRequest) -> Outcome:
        """Try engines until one answers.

        Raises the error of the last one, or what `Decider.route` raises if there was no engine to try.
        """
        placement = await self._place(exchange, request)
        while True:
            try:
                return await self._attempt(exchange, request, placement)
            except RequestError as failure:
                reason = failure.retry_reason
                if reason is None or not self._may_retry(exchange, placement, reason):
                    raise
                try:
                    placement = await self._place(exchange, request)
                except NoEngine:
                    raise failure from None
                self.metrics.retried(reason)

    def _may_retry(self, exchange: Exchange, placement: Placement, reason: RetryReason) -> bool:
        """Whether a try that failed for that reason may be followed by another one, which is then paid for."""
        now_s = self._clock()
        alone = self._breaks.alone(placement.engine, now_s)
        return exchange.retries.failed(
            reason, answer_begun=exchange.client.started, alone=alone
        ) and self._budget.spend(reason, now_s - placement.dispatched_s, placement.predicted_s)

    async def _place(self, exchange: Exchange, request: OpenAIRequest) -> Placement:
        begun_s = self._clock()
        placement = await self._decider.route(request.parsed, exchange.retries.tried)
        exchange.queued_s += placement.held_s
        exchange.waited_s += placement.held_s
        self.metrics.decided(placement, max(0.0, self._clock() - begun_s - placement.held_s))
        exchange.placement, exchange.outcome, exchange.first_token_s = placement, None, None
        exchange.retries.began(placement.engine)
        return placement

    async def _attempt(self, exchange: Exchange, request: OpenAIRequest, placement: Placement) -> Outcome:
        """Try one engine. Its load was booked with `placement` and is released here on every path."""
        observed = request.api.answer()
        answer: UpstreamAnswer | None = None
        ending = Ending.GATEWAY_FAULT  # this stays if the code below fails in a way that it does not expect
        try:
            answer = await self._upstream.send(
                self._engines[placement.engine],
                exchange.path,
                exchange.query,
                exchange.client.raw_headers,
                exchange.request_id,
                request.body_for_engine(exchange.body),
                exchange.method,
                placement.conversation,
            )
            await self._relay(exchange, request, placement, answer, observed)
            ending = _ending_of(answer, observed)
            self._tell_failed_answer(exchange, placement, answer.status, observed)
        except RequestError as error:
            ending = error.ending
            self._tell(exchange, placement, error.code, error.message, ours=isinstance(error, OutOfFiles))
            if error.retry_reason is RetryReason.CONNECT:
                self._decider.unreachable(placement.engine)
            raise
        except asyncio.CancelledError:
            ending = Ending.TIMEOUT if exchange.client.expired else Ending.CANCELLED
            if exchange.client.expired:
                self._tell(exchange, placement, "request_timeout", "The request took too long.")
            raise
        finally:
            outcome = exchange.outcome = self._outcome(exchange, request, observed, ending)
            if answer is not None:
                answer.close()
            if not exchange.client.started:  # what this try took is not the gateway's own time
                exchange.waited_s += outcome.done_s - placement.dispatched_s
            self._decider.complete(placement.booking, outcome)
            self.metrics.completed(placement, outcome)
        if ending is Ending.OK:
            self._budget.answered(outcome.done_s - placement.dispatched_s)
        return outcome

    def _tell(self, exchange: Exchange, placement: Placement, reason: str, words: str, *, ours: bool = False) -> None:
        """Log that the engine failed, or this machine if the fault is `ours`. The log has no words of an engine or a
        client, which may be those of a prompt."""
        self._failures.tell("this machine" if ours else placement.engine, reason, words, exchange.request_id)

    def _tell_failed_answer(
        self, exchange: Exchange, placement: Placement, status: int, observed: ObservedAnswer
    ) -> None:
        if status == 429 or status >= 500:
            self._tell(exchange, placement, f"status {status}", f"The engine answered {status}.")
        elif observed.failed and status < 400:
            self._tell(exchange, placement, "error event", "The engine sent an error in place of its answer.")

    async def _relay(
        self,
        exchange: Exchange,
        request: OpenAIRequest,
        placement: Placement,
        answer: UpstreamAnswer,
        observed: ObservedAnswer,
    ) -> None:
        told = exchange.answer_begins(self._clock(), answer.waited_s)
        if not answer.streamed:
            return await relay_whole(exchange.client, answer, observed, told)

        def on_first_token() -> None:
            exchange.first_token_s = self._clock()
            self._decider.first_token(placement.booking, exchange.first_token_s)

        await relay_stream(
            exchange.client,
            answer,
            observed,
            told,
            hide_usage=request.hide_usage,
            on_first_token=on_first_token,
        )

    def _outcome(self, exchange: Exchange, request: OpenAIRequest, observed: ObservedAnswer, ending: Ending) -> Outcome:
        usage = observed.usage
        output_tokens = usage.output_tokens
        if output_tokens is None and ending is not Ending.OK:
            output_tokens = observed.tokens or None  # a stream that broke off has not told its usage
        reply_keys: tuple[BlockKey, ...] = ()
        if ending is Ending.OK:
            reply_keys = request.reply_keys(observed.message.fields(), observed.message.token_ids)
        return Outcome(
            ending=ending,
            done_s=self._clock(),
            first_token_s=exchange.first_token_s,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=output_tokens,
            reply_keys=reply_keys,
            stop=observed.stop if ending is Ending.OK else Stop.UNKNOWN,
            tool=observed.tool,
        )

    async def _fail(self, exchange: Exchange, error: RequestError) -> None:
        await exchange.client.fail(error, exchange.answer_begins(self._clock()))

    def _finish(self, exchange: Exchange, ending: Ending) -> None:
        """The client's request is over: count it, and write it into the usage log and the trace."""
        done_s, last_try = self._clock(), exchange.outcome
        final = Outcome(ending, done_s) if last_try is None else last_try
        if final.ending is not ending:  # as when the client left between two tries
            final = replace(final, ending=ending, done_s=done_s)
        exchange.allowance.end(final)
        self.metrics.ended(exchange, final)
        if self._access_log:
            self._access_log.ended(exchange, final)
        if self._usage_log:
            self._usage_log.ended(exchange, final)
        if self._trace_writer:
            self._trace_writer.ended(exchange.trace_number, exchange.arrived_s, exchange.placement, last_try)


def _ending_of(answer: UpstreamAnswer, observed: ObservedAnswer) -> Ending:
    """How a try ended whose answer came to its end."""
    status = observed.error_status if observed.failed and answer.status < 400 else answer.status
    if EngineFailed.of(status):
        return Ending.ENGINE_FAILED  # an error inside a stream, or in place of an answer
    return Ending.REJECTED if status >= 400 else Ending.OK
