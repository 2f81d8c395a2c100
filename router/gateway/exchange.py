"""One client's request on its way through the gateway: the one object that carries it."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.retries import Retries
from router.gateway import headers
from router.gateway.client import Client
from router.gateway.openai_request import OpenAIRequest
from router.types import Decision, Outcome


@dataclass(slots=True)
class Exchange:
    """Times are on the clock of the decisions, seconds."""

    client: Client
    route: str
    query: bytes
    request_id: str
    arrived_s: float
    retries: Retries
    trace_number: int = 0
    """Given by the trace writer at its arrival."""
    request: OpenAIRequest | None = None
    """None until the body was read."""
    decision: Decision | None = None
    """Of the latest try; None until there was one."""
    outcome: Outcome | None = None
    """Of that decision, once it is over."""
    first_token_s: float | None = None

    @property
    def headers(self) -> headers.Headers:
        """What the gateway tells of the request in the head of any answer."""
        return headers.of_decision(self.request_id, self.decision)
