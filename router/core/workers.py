"""The servers of engines, which may come and go while the gateway runs.

A worker is one server, at one base URL. It has one engine, or one for each data-parallel rank that it reports: ranks
have a cache and a queue of their own, so each of them is an engine, but they live and die together, so health is the
worker's. Worker 2 is `engine-2`, and so is its engine if it has only that one; the engine of rank 3 is `engine-2-dp3`.
Names are never given twice.

    add --> ACTIVE <--> DRAINING         drain: no new requests, those that run go on
               '----------'----> REMOVING --> gone when no request is left on it, at once if it is forced

Operators change workers one by one (`add`, `drain`, `remove`), and a file of options through the list of URLs that it
holds (`relist`): an edit of the list adds what is new in it and removes what is no longer in it, and nothing else. So
what operators did to other workers stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from router.core.router import Router
from router.core.sessions import Session
from router.core.worker_url import address_of, base_url, server_of, split_address
from router.errors import UnknownWorker, WorkerConflict
from router.saved_state import SavedFields, SavedState, number
from router.types import EngineId, EngineInfo, WorkerId

log = logging.getLogger("leafcutter.workers")
MOST_WORKERS, MOST_RANKS = 65_536, 1024


class State(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"
    REMOVING = "removing"


@dataclass(eq=False, slots=True)
class Worker:
    """One server of engines. joined: it came when this router was running already."""

    name: WorkerId
    url: str
    joined: bool
    state: State = State.ACTIVE
    ranks: tuple[int, ...] = ()
    """The data-parallel ranks that it reports, rising; empty: none."""
    engines: dict[EngineId, str] = field(default_factory=dict)
    """The address of each of its engines, in the order of the ranks. A rank that it no longer has is not among them."""

    def addresses(self) -> dict[EngineId, str]:
        """What `engines` has to be."""
        if len(self.ranks) < 2:
            return {EngineId(self.name): self.url}
        return {EngineId(f"{self.name}-dp{rank}"): address_of(self.url, i) for i, rank in enumerate(self.ranks)}


class Workers:
    """All workers of one router, whose fleet holds exactly their engines. engines: those at the start, by name."""

    def __init__(self, router: Router, engines: Mapping[EngineId, str]) -> None:
        self._router = router
        self._workers: dict[WorkerId, Worker] = {}
        self._owners: dict[EngineId, Worker] = {}
        self._listed = tuple(engines.values())
        """The URLs in the file of options, as they were read last."""
        self.addresses: dict[EngineId, str] = {}
        """The address of every engine. It is the same object always, for others to look into."""
        self.listeners: list[Callable[[], None]] = []
        """Called when engines have come or gone, or when a worker has another state."""
        router.on_drained = self._drained
        for name, url in engines.items():
            self._put(Worker(WorkerId(name), url, joined=False))
        self._next = len(engines)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def describe(self, engine: EngineId) -> dict[str, object]:
        """Where an engine is and what operators want of it, in JSON types. Raises KeyError for an unknown one."""
        worker, (url, _) = self._owners[engine], split_address(self.addresses[engine])
        rank = dict(zip(worker.engines, worker.ranks, strict=False)).get(engine) if len(worker.ranks) > 1 else None
        state = worker.state if engine in worker.engines else State.REMOVING
        return {"worker": worker.name, "url": url, "data_parallel_rank": rank, "state": state.value}

    # --- what operators want ------------------------------------------------------------------------------------

    def find(self, name: str) -> Worker:
        """Raises UnknownWorker, and WorkerConflict for the name of one of several ranks."""
        worker = self._workers.get(WorkerId(name))
        if worker is None and (owner := self._owners.get(EngineId(name))):
            raise WorkerConflict(f"`{name}` is a rank of `{owner.name}`, which can only be changed as a whole.")
        if worker is None:
            raise UnknownWorker(f"There is no worker `{name}`.", param="worker")
        return worker

    def add(self, url: str) -> Worker:
        """Add a server. Raises ConfigError for what is no base URL, and WorkerConflict if it is there already."""
        url = base_url(url, "url")
        known = self._at(url)
        if known is not None:
            raise WorkerConflict(f"This server is there already: `{known.name}`, which is {known.state}.", param="url")
        worker = self._append(url)
        self._tell()
        return worker

    def drain(self, worker: Worker, *, draining: bool) -> None:
        """Give the worker no new requests, or take it back."""
        self._set_state(worker, State.DRAINING if draining else State.ACTIVE)
        self._tell()
        self._look_at(worker)

    def remove(self, worker: Worker, *, force: bool = False) -> bool:
        """Remove the worker when no request is left on it. force: at once. Returns whether it is gone already."""
        self._set_state(worker, State.REMOVING)
        if force:
            self._take_away(worker)
        self._tell()
        self._look_at(worker)
        return worker.name not in self._workers

    def relist(self, urls: Sequence[str]) -> None:
        """The list in the file of options is this one now. urls: as `base_urls` returns them."""
        before, now = ({server_of(url): url for url in each} for each in (self._listed, urls))
        self._listed = tuple(urls)
        for server in before.keys() - now.keys():
            if worker := self._at(before[server]):
                self.remove(worker)
        for server, url in now.items():
            if server in before:
                continue
            worker = self._at(url)
            if worker is None:
                self._append(url)
            elif worker.state is State.REMOVING:
                self._set_state(worker, State.ACTIVE)
        self._tell()

    # --- what the watch over them finds -------------------------------------------------------------------------

    def healthy(self, worker: Worker) -> bool:
        return all(self._router.healthy(engine) for engine in worker.engines)

    def set_health(self, worker: Worker, healthy: bool) -> None:
        for engine in worker.engines:
            self._router.set_health(engine, healthy)

    def take_out(self, worker: Worker) -> None:
        """The worker is down or hangs, as `Router.take_out` takes it: none of its engines can serve for another."""
        self.set_health(worker, False)
        for engine in worker.engines:
            self._router.take_out(engine)

    def healthy_engines(self) -> tuple[int, int]:
        """How many engines are healthy, and how many there are."""
        return sum(map(self._router.healthy, self.addresses)), len(self.addresses)

    def silent(self, worker: Worker, now: float) -> dict[EngineId, str]:
        """The addresses of those of its engines that are silent, as `Router.is_silent` has it."""
        return {e: address for e, address in worker.engines.items() if self._router.is_silent(e, now)}

    def heard(self, engines: Iterable[EngineId], now: float) -> None:
        """These engines have given a sign of life."""
        for engine in engines:
            self._router.heard(engine, now)

    def models(self, worker: Worker) -> tuple[str, ...]:
        return self._router.models(next(iter(worker.engines)))

    def on_idle(self, call: Callable[[Session], None]) -> None:
        """`call` hears of each session whose last answer has ended."""
        self._router.on_idle = call

    def set_info(self, engine: EngineId, info: EngineInfo) -> None:
        self._router.set_info(engine, info)

    def set_ranks(self, worker: Worker, ranks: Sequence[int]) -> None:
        """The worker reports these data-parallel ranks, rising. The engine of a rank that it no longer has leaves when
        no request is left on it."""
        if worker.ranks == tuple(ranks[:MOST_RANKS]):
            return
        before, worker.ranks = worker.engines, tuple(ranks[:MOST_RANKS])
        if worker.addresses() == before:  # one engine it was, and one it is
            return
        self._put(worker)
        for engine in before.keys() - worker.engines.keys():
            self._router.set_draining(engine, True)
            if self._router.drained(engine):
                self._drop(engine)
        log.info("%s has %d data-parallel ranks", worker.name, max(1, len(worker.ranks)))
        self._tell()

    # --- for the next router process ----------------------------------------------------------------------------

    def dump(self) -> SavedState:
        """All of it as JSON types, for `load`."""
        workers = [
            {"name": w.name, "url": w.url, "state": w.state.value, "ranks": list(w.ranks)}
            for w in self._workers.values()
        ]
        return {"next": self._next, "listed": list(self._listed), "workers": workers}

    def load(self, state: SavedFields) -> None:
        """Become what was dumped. Raises SnapshotError, ConfigError and ValueError, and then changes nothing.

        Requests of a worker that is being removed may still be running: it goes when the last of them ends, or when
        `sweep` is called.
        """
        listed = tuple(base_url(str(url)) for _, url in state.items("listed", MOST_WORKERS))
        next_number, found = state.integer("next"), []
        for place, value in state.items("workers", MOST_WORKERS):
            saved = SavedFields(value, place)
            ranks = tuple(int(number(rank, where, low=0)) for where, rank in saved.items("ranks", MOST_RANKS))
            url = base_url(saved.text("url"))
            found.append(Worker(WorkerId(saved.text("name")), url, False, State(saved.text("state")), ranks))
        for worker in self._workers.copy().values():
            self._take_away(worker)
        self._listed, self._next = listed, next_number
        for worker in found:
            self._put(worker)
        self._tell()

    def sweep(self) -> None:
        """Let those go that are to be removed and have no request left."""
        for worker in list(self._workers.values()):
            if worker.state is State.REMOVING:
                self._look_at(worker)

    # --- bookkeeping --------------------------------------------------------------------------------------------

    def _at(self, url: str) -> Worker | None:
        server = server_of(url)
        return next((worker for worker in self._workers.values() if server_of(worker.url) == server), None)

    def _append(self, url: str) -> Worker:
        worker = Worker(WorkerId(f"engine-{self._next}"), url, joined=True)
        self._next += 1
        self._put(worker)
        log.info("%s is added", worker.name)
        return worker

    def _put(self, worker: Worker) -> None:
        """Put the worker and its engines in."""
        self._workers[worker.name] = worker
        worker.engines = worker.addresses()
        self.addresses |= worker.engines
        for engine in worker.engines:
            self._owners[engine] = worker
            self._router.add_engine(engine, joins=worker.joined)
            self._router.set_draining(engine, worker.state is not State.ACTIVE)

    def _take_away(self, worker: Worker) -> None:
        """Take the worker and its engines out."""
        del self._workers[worker.name]
        for engine in [engine for engine, owner in self._owners.items() if owner is worker]:
            self._drop(engine)
        if worker.state is State.REMOVING:
            log.info("%s is removed", worker.name)

    def _drop(self, engine: EngineId) -> None:
        del self._owners[engine], self.addresses[engine]
        self._router.remove_engine(engine)

    def _set_state(self, worker: Worker, state: State) -> None:
        if worker.state is not state:
            log.info("%s is %s", worker.name, state)
        worker.state = state
        for engine in worker.engines:
            self._router.set_draining(engine, state is not State.ACTIVE)

    def _drained(self, engine: EngineId) -> None:
        """No request is left on an engine that is draining."""
        worker = self._owners[engine]
        if engine in worker.engines:
            self._look_at(worker)
        else:  # a rank that the worker no longer has
            self._drop(engine)
            self._tell()

    def _look_at(self, worker: Worker) -> None:
        """If the worker is drained, say so, and let it go if it is to be removed."""
        if worker.name not in self._workers or not all(map(self._router.drained, worker.engines)):
            return
        log.info("%s is drained: no request is left on it", worker.name)
        if worker.state is State.REMOVING:
            self._take_away(worker)
            self._tell()

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()
