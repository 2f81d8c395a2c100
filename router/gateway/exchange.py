"""The one object that carries a client's request through the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.retries import Retries
from router.gateway.client import Body, Client
from router.gateway.headers import OVERHEAD, Headers, of_decision
from router.gateway.key_limits import UNLIMITED, Allowance
from router.gateway.openai_request import OpenAIRequest
from router.types import Outcome, Placement


@dataclass(slots=True)
class Exchange:
    """One request, from its arrival to its end. Times are seconds on the clock of the decisions."""

    client: Client
    route: str
    """The route as it is counted: never the path itself, if that has parts that clients choose."""
    method: str
    path: str
    """The path that the engine gets."""
    query: bytes
    request_id: str
    arrived_s: float
    retries: Retries
    trace_number: int = 0
    """The number that the trace writer gave the request on its arrival."""
    body: Body = b""
    """The body as the client sent it; empty until it has been read."""
    request: OpenAIRequest | None = None
    """What is in the body; None until that has been read."""
    placement: Placement | None = None
    """Where the latest try went; None before the first one."""
    outcome: Outcome | None = None
    """How that try ended; None until it is over."""
    first_token_s: float | None = None
    """When the first token of a stream was seen."""
    queued_s: float = 0.0
    """How long it waited for a place."""
    waited_s: float = 0.0
    """How long it waited for anything but this gateway: for its body, a place, and tries that are over."""
    overhead_s: float | None = None
    """What the gateway itself took until the answer began; None until then."""
    allowance: Allowance = UNLIMITED
    """What it takes of the limits of its key."""

    @property
    def headers(self) -> Headers:
        """The headers by which any answer tells how its request was routed, and what is left of its key's limits."""
        told = of_decision(self.request_id, self.placement, predicted=self.client.key.sees_predictions)
        if self.overhead_s is not None:
            told.append((OVERHEAD, b"%.2f" % (self.overhead_s * 1000)))
        return told + self.allowance.headers

    def answer_begins(self, now_s: float, engine_s: float = 0.0) -> Headers:
        """The answer begins now, if it did not before. Returns the headers that it gets. engine_s: how long its try has
        waited for the engine."""
        if not self.client.started:
            self.overhead_s = max(0.0, now_s - self.arrived_s - self.waited_s - engine_s)
        return self.headers
