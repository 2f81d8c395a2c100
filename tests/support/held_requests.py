"""A router that holds the second request of every session until the test opens the gate."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from router.config import configure
from router.core.holding import Held, Holding, Release
from router.core.router import Router
from router.types import EngineInfo, EngineView, ParsedRequest
from tests.support.decision_place import ENGINES
from tests.support.fake_engine import MODEL


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
        for engine in ENGINES:
            self.add_engine(engine)
            self.set_info(engine, EngineInfo(models=(MODEL,)))
            self.set_health(engine, True)

    def hold(self, request: ParsedRequest, now: float, go: Callable[[], None]) -> Held | None:
        for engine in ENGINES:
            self._index.forget(engine)
        return super().hold(request, now, go)
