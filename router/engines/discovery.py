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
from urllib.parse import urlsplit

import httpx

from router.config import Config
from router.core.router import Router
from router.engines import probe
from router.errors import ConfigError
from router.types import EngineId, EngineInfo

log = logging.getLogger("leafcutter.discovery")
HANGS_S = 20.0  # An engine that gives no sign of life must answer a request for one token within that time.
REFRESH_CHECKS = 12  # After so many passed checks facts are read again; they change only when an engine restarts.


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
        self._warned: set[EngineId] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check every engine once, and then watch them until the context ends."""
        async with self._client or probe.open_client(self.config) as client:
            watchers = [_Watcher(self, client, engine, url) for engine, url in self.engines.items()]
            await asyncio.gather(*(watcher.check() for watcher in watchers))
            log.info("%d of %d engines are healthy", sum(map(self.router.healthy, self.engines)), len(self.engines))
            tasks = [asyncio.create_task(watcher.watch()) for watcher in watchers]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def learned(self, engine: EngineId, info: EngineInfo) -> None:
        """Take in what an engine reports. Log once for each engine that it has no plugin, which makes routing worse."""
        self.router.set_info(engine, info)
        if info.order is None and engine not in self._warned:
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

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(self._owner.config.engines.health_check_interval_secs)
            try:
                await self.check()
            except Exception:  # A fault of ours in one check must not end the watch over the engine.
                log.exception("%s: the check itself failed", self._engine)

    async def check(self) -> None:
        config, router = self._owner.config, self._owner.router
        passed = await probe.healthy(self._client, self._url) and not await self._is_hanging()
        was = router.healthy(self._engine)
        self._run = max(1, self._run + 1) if passed else min(-1, self._run - 1)
        if passed and (self._run % REFRESH_CHECKS == 1 or not was):
            passed = await self._refresh()
        if passed and not was and self._run >= config.engines.health_success_threshold:
            router.set_health(self._engine, True)
            log.info("%s is healthy", self._engine)
        elif not passed and -self._run == (1 if self._hangs else config.engines.health_failure_threshold):
            router.take_out(self._engine)
            log.warning("%s is out: %s", self._engine, "it hangs" if self._hangs else f"{-self._run} failed checks")

    async def _is_hanging(self) -> bool:
        """Whether the engine, whose health check has passed, computes nothing any more."""
        router, owner = self._owner.router, self._owner
        if self._hangs or router.is_silent(self._engine, owner.clock()):
            models = router.models(self._engine)
            self._hangs = not await probe.computes(self._client, self._url, models, HANGS_S)
            if not self._hangs:
                router.heard(self._engine, owner.clock())
        return self._hangs

    async def _refresh(self) -> bool:
        try:
            self._owner.learned(self._engine, await probe.read_info(self._client, self._url, self._state))
        except (httpx.HTTPError, KeyError, ValueError) as error:
            log.warning("%s: its facts could not be read: %r", self._engine, error)
            self._run = -1
            return False
        return True
