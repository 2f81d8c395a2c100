"""Discovery keeps the health of the engines, and what they report of themselves, up to date.

It asks every engine again and again, beside the data path. It never touches load: a booking is released by the request
that made it, and by nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import httpx

from router.config import Config
from router.core.failure_log import FailureLog
from router.core.worker_url import base_urls
from router.core.workers import Worker, Workers
from router.engines import probe
from router.engines.hint_sender import HintSender
from router.types import EngineId

log = logging.getLogger("leafcutter.discovery")
HANGS_S = 20.0  # An engine that gives no sign of life must answer a request for one token within that time.
REFRESH_CHECKS = 12  # After so many passed checks facts are read again; they change only when an engine restarts.
FIRST_ROUND_S = 1.0  # The start waits so long at most for the first round of checks, whatever engines do.
QUIET_S = 60.0  # A check that goes on failing is logged so often.


def engines_of(urls: Sequence[str]) -> dict[EngineId, str]:
    """Name the engines at `urls` in their order engine-0, engine-1, and so on, and return their base URLs by name.

    Raises ConfigError as `base_urls` does.
    """
    return {EngineId(f"engine-{index}"): url for index, url in enumerate(base_urls(urls))}


class Discovery:
    """The watch over all workers, those that come later too. Use it as `async with discovery.running():`.

    clock: that of the router's decisions, seconds.
    """

    def __init__(
        self,
        config: Config,
        workers: Workers,
        client: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.workers, self.clock = config, workers, clock
        self._watchers: dict[Worker, _Watcher] = {}
        self._client = client
        self.failures = FailureLog(log, lambda s, call: asyncio.get_running_loop().call_later(s, call), quiet_s=QUIET_S)
        self._warned: set[EngineId] = set()
        self._oddities: dict[EngineId, tuple[str, ...]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the engines until the context ends. It begins when each has been checked once, or after FIRST_ROUND_S:
        one that does not answer holds up nobody."""
        async with self._client or probe.open_client(self.config) as client:

            def follow() -> None:
                self._follow(client)

            follow()
            self.workers.listeners.append(follow)
            hints = self._hints()
            sending = None if hints is None else asyncio.create_task(hints.send_on(client))
            try:
                checked = [asyncio.create_task(watcher.checked.wait()) for watcher in self._watchers.values()]
                await asyncio.wait(checked, timeout=FIRST_ROUND_S)
                for task in checked:
                    task.cancel()
                log.info("%d of %d engines are healthy", *self.workers.healthy_engines())
                yield
            finally:
                self.workers.listeners.remove(follow)
                tasks: list[asyncio.Task[Any]] = [watcher.task for watcher in self._watchers.values()]
                if sending is not None:
                    tasks.append(sending)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _hints(self) -> HintSender | None:
        """What tells the engines of sessions, if they take hints."""
        options = self.config.engines
        if options.hint_key is None:
            return None
        addresses, offset = self.workers.addresses, options.state_port_offset
        sender = HintSender(options.hint_key, offset, addresses, self.failures, self.clock)
        self.workers.on_idle(sender.tell)
        return sender

    def _follow(self, client: httpx.AsyncClient) -> None:
        """Watch the workers that are there now, and no others."""
        present, engines = set(self.workers), self.workers.addresses.keys()
        for worker in self._watchers.keys() - present:
            self._watchers.pop(worker).task.cancel()
        for worker in present - self._watchers.keys():
            self._watchers[worker] = _Watcher(self, client, worker)
        self._warned &= engines
        self._oddities = {engine: odd for engine, odd in self._oddities.items() if engine in engines}

    def learned(self, engine: EngineId, report: probe.Report) -> None:
        """Take in what an engine reports. Log once for each engine that it has no plugin, which makes routing worse,
        and what it reports that cannot be true whenever that changes."""
        self.workers.set_info(engine, report.info)
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
    """The checks of one worker. `_run` counts its last passes in a row (positive) or its last failures (negative)."""

    def __init__(self, owner: Discovery, client: httpx.AsyncClient, worker: Worker) -> None:
        self._owner, self._client, self._worker = owner, client, worker
        self._run = 0
        self._hangs = False  # it passes its health checks, but gives no other sign of life
        self.checked = asyncio.Event()
        """The first check is over."""
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> NoReturn:
        while True:
            try:
                await self.check()
            except Exception:  # A fault of ours in one check must not end the watch over the engine, nor the start.
                log.exception("%s: the check itself failed", self._worker.name)
            self.checked.set()
            await asyncio.sleep(self._owner.config.engines.health_check_interval_secs)

    async def check(self) -> None:
        config, workers, worker = self._owner.config, self._owner.workers, self._worker
        was = workers.healthy(worker)
        due = not was or self._run < 0 or self._run % REFRESH_CHECKS == 0
        try:
            await probe.check_health(self._client, worker.url)
            await self._check_computes()
            if due:
                await self._read_facts()
        except probe.BadAnswer as error:
            self._owner.failures.tell(worker.name, error.kind, f"a check failed: {error}")
            if error.ours:
                return
            self._run = min(-1, self._run - 1)
        else:
            self._run = max(1, self._run + 1)
        if self._run >= config.engines.health_success_threshold and not was:
            workers.set_health(worker, True)
            log.info("%s is healthy", worker.name)
        elif -self._run == (1 if self._hangs else config.engines.health_failure_threshold):
            workers.take_out(worker)
            log.warning("%s is out: %s", worker.name, "it hangs" if self._hangs else f"{-self._run} failed checks")

    async def _check_computes(self) -> None:
        """Raise BadAnswer if an engine of the worker, whose health check has passed, computes nothing any more."""
        workers, worker, clock = self._owner.workers, self._worker, self._owner.clock
        asked = dict(worker.engines) if self._hangs else workers.silent(worker, clock())
        if asked:
            self._hangs, models = True, workers.models(worker)
            checks = (probe.check_computes(self._client, address, models, HANGS_S) for address in asked.values())
            for found in await asyncio.gather(*checks, return_exceptions=True):
                if found is not None:
                    raise found
            self._hangs = False
            workers.heard(asked, clock())

    async def _read_facts(self) -> None:
        """Read how many engines the worker has, and what each of them reports. Raises BadAnswer."""
        worker, offset = self._worker, self._owner.config.engines.state_port_offset
        if ranks := await probe.read_ranks(self._client, worker.url):
            self._owner.workers.set_ranks(worker, ranks)
        for engine, rank in zip(list(worker.engines), worker.ranks or (0,), strict=True):
            state = probe.state_url(worker.url, offset + rank)
            self._owner.learned(engine, await probe.read_report(self._client, worker.url, state))
