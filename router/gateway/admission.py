"""How many requests run at a time, and which waits for its turn.

A request takes a place when it has been read and before an engine is chosen, and gives it back when it is over. If no
place is free, it waits, unless its wait would be too long: then it is refused at once, with the time after which it may
come again. So a client learns within milliseconds that it should go elsewhere, in place of after its own timeout.

    predicted wait = turns until its own x mean time for which a place is held / places

The mean is an exponentially weighted one over the requests that are over. If no place has been given back for longer
than this mean, the engines hang, and the wait is predicted to be at least as long again.

Clients' keys take turns: within a key, first come is first served; between keys, each in its turn gets the next place,
so many waiting requests of one key delay one of another key by one turn. If the queue is full, a key with fewer waiting
requests pushes out the newest of the key with the most. A key may also have a limit of its own. Requests without the
name of a key are those of one key that has no such limit.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from router.config import ServerOptions
from router.errors import GatewayFull, KeyBusy
from router.gateway.metrics import Metrics

WEIGHT = 0.05  # of the newest request in the mean: it is that of the last twenty or so


@dataclass(slots=True)
class _Key:
    """What one client key has going on."""

    changed_s: float
    """When a place was taken or given back last."""
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """The places and the queue before them. clock: monotonic, seconds."""

    def __init__(self, options: ServerOptions, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._places, self._key_places = options.max_concurrent_requests, options.max_concurrent_requests_per_key
        self._queue_size, self._longest_wait_s = options.queue_size, options.queue_timeout_secs
        self._metrics, self._clock = metrics, clock
        self.running = 0
        self.waiting = 0
        self._changed_s = 0.0
        """When a place was taken or given back last."""
        self._keys: dict[str | None, _Key] = {}
        """The keys that have something going on."""
        self._turns: OrderedDict[str | None, None] = OrderedDict()
        """The keys that have requests waiting, in the order of their turns."""
        self._held_s = 0.0
        """The mean time for which a place is held; 0: none has been given back."""

    async def enter(self, key: str | None) -> None:
        """Take a place. key: the name of the client's key. Raises KeyBusy and GatewayFull.

        Whoever has entered must `leave` exactly once. One that is cancelled or refused has not entered.
        """
        mine = self._keys.get(key)
        if mine is None:
            mine = self._keys[key] = _Key(0.0)
        if self.running < self._places and not mine.waiting and self._key_has_place(key, mine):
            return self._take(mine)
        try:
            await self._wait(key, mine)
        finally:
            self._forget_idle(key, mine)

    def leave(self, key: str | None, held_s: float) -> None:
        """Give the place back. held_s: how long it was held."""
        mine = self._keys[key]
        self._held_s += WEIGHT * (held_s - self._held_s) if self._held_s else held_s
        self._give_back(mine)
        self._forget_idle(key, mine)

    def _take(self, mine: _Key) -> None:
        self.running += 1
        mine.running += 1
        self._changed_s = mine.changed_s = self._clock()

    def _give_back(self, mine: _Key) -> None:
        self.running -= 1
        mine.running -= 1
        self._changed_s = mine.changed_s = self._clock()
        if self._turns:
            self._let_in()

    def _forget_idle(self, key: str | None, mine: _Key) -> None:
        if not (mine.running or mine.waiting) and self._keys.get(key) is mine:  # another one may have its place by now
            del self._keys[key]

    def _key_has_place(self, key: str | None, mine: _Key) -> bool:
        return key is None or self._key_places is None or mine.running < self._key_places

    # --- waiting ------------------------------------------------------------------------------------------------

    async def _wait(self, key: str | None, mine: _Key) -> None:
        predicted_s = self._predicted_wait_s(key, mine)
        full = self.waiting >= self._queue_size and not self._push_out(mine)
        if full or predicted_s > self._longest_wait_s:
            raise self._refusal(key, mine, predicted_s)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine.waiting.append(place)
        self._turns.setdefault(key)
        self._count_waiting(1)
        began_s = self._clock()
        try:
            async with asyncio.timeout(self._longest_wait_s):
                await place
        except BaseException as error:
            self._give_up(key, mine, place)
            if isinstance(error, TimeoutError):
                raise self._refusal(key, mine, self._predicted_wait_s(key, mine)) from None
            raise
        finally:
            self._metrics.waited(self._clock() - began_s)

    def _let_in(self) -> None:
        """Give a place that has come free to the request whose turn it is, if there is one that may have it."""
        for key in list(self._turns):
            mine = self._keys[key]
            while mine.waiting and self.running < self._places and self._key_has_place(key, mine):
                place = self._next(key, mine)
                if not place.done():  # else its client has just left
                    self._take(mine)
                    return place.set_result(None)

    def _next(self, key: str | None, mine: _Key) -> asyncio.Future[None]:
        """Take the oldest request of this key out of the queue. The other keys have their turns before its next."""
        place = mine.waiting.popleft()
        self._count_waiting(-1)
        del self._turns[key]
        if mine.waiting:
            self._turns[key] = None
        return place

    def _give_up(self, key: str | None, mine: _Key, place: asyncio.Future[None]) -> None:
        """The request waits no longer: take it out of the queue, or give back the place that it has just got."""
        if place in mine.waiting:
            mine.waiting.remove(place)
            self._count_waiting(-1)
            if not mine.waiting:
                del self._turns[key]
        elif place.done() and not place.cancelled() and place.exception() is None:
            self._give_back(mine)

    def _push_out(self, mine: _Key) -> bool:
        """Make room in the full queue at the cost of the key that has the most waiting. Return False if that would be
        no fairer."""
        if not self._turns:
            return False
        key = max(self._turns, key=lambda each: len(self._keys[each].waiting))
        greedy = self._keys[key]
        if len(greedy.waiting) <= len(mine.waiting) + 1:
            return False
        place = greedy.waiting.pop()
        self._count_waiting(-1)
        if not place.done():
            place.set_exception(self._refusal(key, greedy, self._predicted_wait_s(key, greedy)))
        return True

    def _predicted_wait_s(self, key: str | None, mine: _Key) -> float:
        """How long a request of this key would wait that comes now."""
        ahead, now_s = len(mine.waiting), self._clock()
        others = sum(min(len(self._keys[each].waiting), ahead + 1) for each in self._turns if each != key)
        if self._key_has_place(key, mine):
            turns, places, changed_s = ahead + others + 1, self._places, self._changed_s
        else:
            assert self._key_places is not None
            turns, places, changed_s = ahead + 1, self._key_places, mine.changed_s
        wait_s, since_s = turns * self._held_s / places, now_s - changed_s
        return max(wait_s, since_s) if since_s > self._held_s > 0 else wait_s

    def _refusal(self, key: str | None, mine: _Key, wait_s: float) -> GatewayFull:
        if self._key_has_place(key, mine):
            refusal = GatewayFull("The gateway has as many requests as it may.", wait_s)
        else:
            refusal = KeyBusy(f"The key has {mine.running} requests running, which is its limit.", wait_s)
        self._metrics.refused(refusal.code)
        return refusal

    def _count_waiting(self, change: int) -> None:
        self.waiting += change
        self._metrics.waiting(change)
