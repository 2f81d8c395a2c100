"""Requests and routers at a moment, for tests of what is counted of them."""

from __future__ import annotations

from router.core.retries import Retries
from router.core.status import AgreementStatus, ArmStatus, EngineStatus, RouterStatus
from router.gateway.apis import COMPLETIONS
from router.gateway.client import Client, Message
from router.gateway.exchange import Exchange
from router.gateway.openai_request import OpenAIRequest
from router.prefix.blocks import chain
from router.types import Decision, ParsedRequest

REQUEST = ParsedRequest("r", COMPLETIONS, "m", chain(b"", b"", 4), stream=True, max_tokens=None)


async def _receive() -> Message:
    raise AssertionError("nobody speaks here")


async def _send(_message: Message) -> None:
    raise AssertionError("nobody listens here")


def exchange_of(arrived_s: float, decision: Decision | None) -> Exchange:
    """A request to COMPLETIONS with the decision of its only try, or one that reached no engine."""
    client = Client({"path": COMPLETIONS, "headers": []}, _receive, _send)
    exchange = Exchange(client, COMPLETIONS, "POST", COMPLETIONS, b"", "r", arrived_s, Retries(0), placement=decision)
    if decision is not None:
        exchange.request = OpenAIRequest(decision.request, None, False, False, False)
    return exchange


def status_of(
    *engines: EngineStatus, arms: tuple[ArmStatus, ...] = (), agreements: tuple[AgreementStatus, ...] = ()
) -> RouterStatus:
    """A router with these engines and 7 blocks in its index."""
    return RouterStatus("lbgr", {engine.engine: engine for engine in engines}, arms, agreements, 0, 0, 7)
