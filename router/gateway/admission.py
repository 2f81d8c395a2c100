"""How many requests run at a time, and which waits for its turn.

A request takes a place when it has been read and before an engine is chosen, and gives it back when it is over. If no
place is free, it waits, unless its wait would be too long: then it is refused at once, with the time after which it may
come again. So a client learns within milliseconds that it should go elsewhere, in place of after its own timeout.

    predicted wait = turns until its own x mean time for which a place is held / places

The mean is an exponentially weighted one over the requests that are over. If no place has been given back for longer
than this mean, the engines hang, and the wait is predicted to be at least as long again.

Within a key, first come is first served. Between keys, places are shared by their weights, by start-time fair queueing
(Goyal, Vin and Cheng 1996): each request of a key begins, in virtual time, where the one before it has ended, and ends
1 / weight later; the request that begins first has the next place, and its beginning is the virtual time from then on.
So of two keys that always have requests waiting, one with twice the weight gets twice the places, and however many one
key has waiting, another one that comes waits for about one turn. A key that had nothing to ask for saves up nothing.

If the queue is full, a key makes room by pushing out the newest request of one that, for its weight, has more waiting.
Requests that show no key are those of one key.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from router.config import ServerOptions
from router.errors import GatewayFull
from router.gateway.metrics import Metrics
from router.gateway.tenants import ClientKey

NEWEST = 0.05  # the weight of the newest request in the mean: it is that of the last twenty or so


@dataclass(slots=True)
class _Share:
    """What one key has had and waits for."""

    weight: float
    begin: float = 0.0
    """The virtual time at which its next request begins, while it has one waiting."""
    end: float = 0.0
    """The virtual time at which its last request has ended."""
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """The places and the queue before them. clock: monotonic, seconds."""

    def __init__(self, options: ServerOptions, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._places = options.max_concurrent_requests
        self._queue_size, self._longest_wait_s = options.queue_size, options.queue_timeout_secs
        self._metrics, self._clock = metrics, clock
        self.running = 0
        self.waiting = 0
        self._virtual = 0.0
        """The virtual time."""
        self._changed_s = 0.0
        """When a place was taken or given back last."""
        self._shares: dict[str, _Share] = {}
        """Those of all keys that have ever come, by name: `key_file` bounds their number."""
        self._queue: dict[str, _Share] = {}
        """Those that have requests waiting."""
        self._held_s = 0.0
        """The mean time for which a place is held; 0: none has been given back."""

    async def enter(self, key: ClientKey) -> None:
        """Take a place. Raises GatewayFull.

        Whoever has entered must `leave` exactly once. One that is cancelled or refused has not entered.
        """
        share = self._shares.get(key.name)
        if share is None:
            share = self._shares[key.name] = _Share(key.weight)
        share.weight = key.weight  # it may have changed in the file
        if self.running < self._places:  # then nobody waits
            share.begin = max(self._virtual, share.end)
            self._take(share)
        else:
            await self._wait(key.name, share)

    def leave(self, held_s: float) -> None:
        """Give a place back. held_s: how long it was held."""
        self._held_s += NEWEST * (held_s - self._held_s) if self._held_s else held_s
        self._give_back()

    def _take(self, share: _Share) -> None:
        self.running += 1
        self._changed_s = self._clock()
        self._virtual = share.begin
        share.begin = share.end = share.begin + 1 / share.weight

    def _give_back(self) -> None:
        self.running -= 1
        self._changed_s = self._clock()
        self._let_in()

    # --- waiting ------------------------------------------------------------------------------------------------

    async def _wait(self, name: str, share: _Share) -> None:
        predicted_s = self._predicted_wait_s(share)
        full = self.waiting >= self._queue_size and not self._push_out(share)
        if full or predicted_s > self._longest_wait_s:
            raise self._refusal(predicted_s)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not share.waiting:
            share.begin = max(self._virtual, share.end)
            self._queue[name] = share
        share.waiting.append(place)
        self._count_waiting(1)
        began_s = self._clock()
        try:
            async with asyncio.timeout(self._longest_wait_s):
                await place
        except BaseException as error:
            self._give_up(name, share, place)
            if isinstance(error, TimeoutError):
                raise self._refusal(self._predicted_wait_s(share)) from None
            raise
        finally:
            self._metrics.waited(self._clock() - began_s)

    def _let_in(self) -> None:
        """Give the place that has come free to the request whose turn it is."""
        while self._queue:
            name = min(self._queue, key=lambda each: self._queue[each].begin)
            share = self._queue[name]
            place = share.waiting.popleft()
            self._count_waiting(-1)
            if not share.waiting:
                del self._queue[name]
            if not place.done():  # else its client has just left
                self._take(share)
                return place.set_result(None)

    def _give_up(self, name: str, share: _Share, place: asyncio.Future[None]) -> None:
        """The request waits no longer: take it out of the queue, or give back the place that it has just got."""
        if place in share.waiting:
            share.waiting.remove(place)
            self._count_waiting(-1)
            if not share.waiting:
                del self._queue[name]
        elif place.done() and not place.cancelled() and place.exception() is None:
            self._give_back()

    def _push_out(self, mine: _Share) -> bool:
        """Make room in the full queue at the cost of the key that, for its weight, has the most waiting. Return False
        if that would be no fairer."""
        if not self._queue:
            return False
        greedy = max(self._queue.values(), key=lambda each: (len(each.waiting) - 1) / each.weight)
        if (len(greedy.waiting) - 1) / greedy.weight <= len(mine.waiting) / mine.weight:
            return False
        place = greedy.waiting.pop()
        self._count_waiting(-1)
        if not place.done():
            place.set_exception(self._refusal(self._predicted_wait_s(greedy)))
        return True

    def _predicted_wait_s(self, mine: _Share) -> float:
        """How long a request of this key would wait that comes now."""
        begin = mine.begin if mine.waiting else max(self._virtual, mine.end)
        begin += len(mine.waiting) / mine.weight
        turns = len(mine.waiting) + 1
        for share in self._queue.values():
            if share is not mine and share.begin <= begin:
                turns += min(len(share.waiting), 1 + int((begin - share.begin) * share.weight))
        wait_s, since_s = turns * self._held_s / self._places, self._clock() - self._changed_s
        return max(wait_s, since_s) if since_s > self._held_s > 0 else wait_s

    def _refusal(self, wait_s: float) -> GatewayFull:
        self._metrics.refused(GatewayFull.code)
        return GatewayFull("The gateway has as many requests as it may.", wait_s)

    def _count_waiting(self, change: int) -> None:
        self.waiting += change
        self._metrics.waiting(change)
