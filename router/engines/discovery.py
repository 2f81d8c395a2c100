"""Discovery keeps the health of the engines, and what they report of themselves, up to date.

It asks every engine again and again, beside the data path. It never touches load: a booking is released by the request
that made it, and by nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn
from urllib.parse import urlsplit

import httpx

from router.config import Config
from router.core.failure_log import FailureLog
from router.core.router import Router
from router.engines import probe
from router.errors import ConfigError
from router.types import EngineId

log = logging.getLogger("leafcutter.discovery")
HANGS_S = 20.0  # An engine that gives no sign of life must answer a request for one token within that time.
REFRESH_CHECKS = 12  # After so many passed checks facts are read again; they change only when an engine restarts.
FIRST_ROUND_S = 1.0  # The start waits so long at most for the first round of checks, whatever engines do.
QUIET_S = 60.0  # A check that goes on failing is logged so often.


def engines_of(urls: Sequence[str]) -> dict[EngineId, str]:
    """Name the engines at `urls` in their order engine-0, engine-1, and so on, and return their base URLs by name.

    Raises ConfigError if there is none, if one is no base URL, and if one is given twice.
    """
    if not urls:
        raise ConfigError("worker_urls", (), "at least one engine, e.g. --worker-urls http://127.0.0.1:8000")
    engines = {}
    for index, url in enumerate(urls):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError("worker_urls", url, "a base URL such as http://127.0.0.1:8000")
        engines[EngineId(f"engine-{index}")] = url.rstrip("/")
    if len(set(engines.values())) < len(engines):
        raise ConfigError("worker_urls", tuple(urls), "every engine once")
    return engines


class Discovery:
    """The watch over `engines`, which maps ids to base URLs. Use it as `async with discovery.running():`.

    clock: that of the router's decisions, seconds.
    """

    def __init__(
        self,
        config: Config,
        router: Router,
        engines: Mapping[EngineId, str],
        client: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.router, self.engines, self.clock = config, router, engines, clock
        self._client = client
        self.failures = FailureLog(log, lambda s, call: asyncio.get_running_loop().call_later(s, call), quiet_s=QUIET_S)
        self._warned: set[EngineId] = set()
        self._oddities: dict[EngineId, tuple[str, ...]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the engines until the context ends. It begins when each has been checked once, or after FIRST_ROUND_S:
        one that does not answer holds up nobody."""
        async with self._client or probe.open_client(self.config) as client:
            watchers = [_Watcher(self, client, engine, url) for engine, url in self.engines.items()]
            tasks = [asyncio.create_task(watcher.watch()) for watcher in watchers]
            try:
                checked = [asyncio.create_task(watcher.checked.wait()) for watcher in watchers]
                await asyncio.wait(checked, timeout=FIRST_ROUND_S)
                for task in checked:
                    task.cancel()
                log.info("%d of %d engines are healthy", sum(map(self.router.healthy, self.engines)), len(self.engines))
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def learned(self, engine: EngineId, report: probe.Report) -> None:
        """Take in what an engine reports. Log once for each engine that it has no plugin, which makes routing worse,
        and what it reports that cannot be true whenever that changes."""
        self.router.set_info(engine, report.info)
        if report.oddities != self._oddities.get(engine, ()):
            self._oddities[engine] = report.oddities
            if report.oddities:
                log.warning("%s reports what cannot be used: %s", engine, "; ".join(report.oddities))
        if report.info.order is None and engine not in self._warned:
            self._warned.add(engine)
            log.warning(
                "%s shows no eviction state: plugin off, or LEAFCUTTER_STATE_PORT is not its port %+d"
                " (`leafcutter doctor` tells more)",
                engine,
                self.config.engines.state_port_offset,
            )


class _Watcher:
    """The checks of one engine. `_run` counts its last passes in a row (positive) or its last failures (negative)."""

    def __init__(self, owner: Discovery, client: httpx.AsyncClient, engine: EngineId, url: str) -> None:
        self._owner, self._client, self._engine, self._url = owner, client, engine, url
        self._state = probe.state_url(url, owner.config.engines.state_port_offset)
        self._run = 0
        self._hangs = False  # it passes its health checks, but gives no other sign of life
        self.checked = asyncio.Event()
        """The first check is over."""

    async def watch(self) -> NoReturn:
        while True:
            try:
                await self.check()
            except Exception:  # A fault of ours in one check must not end the watch over the engine, nor the start.
                log.exception("%s: the check itself failed", self._engine)
            self.checked.set()
            await asyncio.sleep(self._owner.config.engines.health_check_interval_secs)

    async def check(self) -> None:
        config, router = self._owner.config, self._owner.router
        was = router.healthy(self._engine)
        due = not was or self._run < 0 or self._run % REFRESH_CHECKS == 0
        try:
            await probe.check_health(self._client, self._url)
            await self._check_computes()
            if due:
                self._owner.learned(self._engine, await probe.read_report(self._client, self._url, self._state))
        except probe.BadAnswer as error:
            self._owner.failures.tell(self._engine, error.kind, f"a check failed: {error}")
            if error.ours:
                return
            self._run = min(-1, self._run - 1)
        else:
            self._run = max(1, self._run + 1)
        if self._run >= config.engines.health_success_threshold and not was:
            router.set_health(self._engine, True)
            log.info("%s is healthy", self._engine)
        elif -self._run == (1 if self._hangs else config.engines.health_failure_threshold):
            router.take_out(self._engine)
            log.warning("%s is out: %s", self._engine, "it hangs" if self._hangs else f"{-self._run} failed checks")

    async def _check_computes(self) -> None:
        """Raise BadAnswer if the engine, whose health check has passed, computes nothing any more."""
        router, owner = self._owner.router, self._owner
        if self._hangs or router.is_silent(self._engine, owner.clock()):
            self._hangs = True
            await probe.check_computes(self._client, self._url, router.models(self._engine), HANGS_S)
            self._hangs = False
            router.heard(self._engine, owner.clock())
