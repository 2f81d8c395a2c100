"""A router that holds the second request of every session until the test opens the gate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from router.config import configure
from router.core.holding import Held, Holding, Release
from router.core.router import Router
from router.types import EngineView, ParsedRequest
from tests.support.decision_place import ENGINES, with_engines
from tests.support.gateway_server import until


class Gate(Holding):
    """Holds all whose cache is lost; that all others are true is pretended."""

    opened: Release | None = None

    def _passes(self, session: str, own_tokens: float, views: Sequence[EngineView], now: float) -> Release | None:
        return self.opened

    def _pays(self, tokens: float) -> bool:
        return False


class HoldingRouter(Router):
    """Two engines. Whatever a session has cached counts as lost when it comes back."""

    def __init__(self, longest_s: float = 60.0) -> None:
        config = configure(policy="least_loaded", session_hold_secs=longest_s, default_output_tokens=1.0)
        super().__init__(config.routing, config.policies, rng=random.Random(1))
        self.holding = self.gate = Gate(self._working_set, longest_s)
        with_engines(self)

    def let_in(self, reason: Release) -> None:
        """Let all that are held go on, for that reason."""
        self.gate.opened = reason
        self.holding.let_in(time.monotonic())

    async def lose_engines(self) -> None:
        """No engine is left, once a request is held, which then goes on."""
        await until(lambda: self.holding.status().held == 1)
        for engine in ENGINES:
            self.set_health(engine, False)
        self.let_in(Release.IDLE)

    def hold(self, request: ParsedRequest, now: float, go: Callable[[], None]) -> Held | None:
        for engine in ENGINES:
            self._index.forget(engine)
        return super().hold(request, now, go)
