"""Requests that are held before they are placed: each leaves again, whatever happens, and leaves no load behind."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from router.core.holding import Release
from router.errors import NoEngine
from router.gateway.decider import LocalDecider
from tests.support.decision_place import ENGINES, done, request
from tests.support.gateway_server import until
from tests.support.held_requests import HoldingRouter


async def begin(router: HoldingRouter) -> LocalDecider:
    """A decider whose one session has had its first answer."""
    decider = LocalDecider(router, time.monotonic)
    first = await decider.route(request(), [])
    assert first.held_s == 0.0
    decider.complete(first.booking, done())
    return decider


async def test_a_held_request_is_placed_when_another_ends() -> None:
    router = HoldingRouter()
    decider = await begin(router)
    other = await decider.route(request(text="other " * 100), [])
    asking = asyncio.create_task(decider.route(request(), []))
    await until(lambda: router.holding.status().held == 1)
    await asyncio.sleep(0.05)
    assert not asking.done()
    router.gate.opened = Release.FITS
    assert not asking.done()
    decider.complete(other.booking, done())
    placement = await asking
    assert 0.05 <= placement.held_s < 5.0
    assert router.in_flight == 1
    (entry,) = router.find_decisions(placement.request.request_id)
    assert entry.at_s == placement.dispatched_s
    decider.complete(placement.booking, done())
    assert router.in_flight == 0


async def test_nobody_is_held_for_longer_than_the_bound() -> None:
    router = HoldingRouter(longest_s=0.1)
    decider = await begin(router)
    placement = await asyncio.wait_for(decider.route(request(), []), 10)
    assert 0.09 <= placement.held_s < 5.0  # a timer may be early by the resolution of its clock
    assert router.holding.status().released["longest"] == 1


async def test_a_retry_and_a_second_request_beside_the_first_are_not_held() -> None:
    router = HoldingRouter()
    decider = await begin(router)
    retried = await asyncio.wait_for(decider.route(request(), ENGINES[:1]), 10)
    beside = await asyncio.wait_for(decider.route(request(), []), 10)
    assert retried.held_s == beside.held_s == 0.0


@pytest.mark.parametrize("moment", ["while held", "as it is placed"])
async def test_a_client_that_leaves_while_it_is_held_leaves_no_load(moment: str) -> None:
    router = HoldingRouter()
    decider = await begin(router)
    asking = asyncio.create_task(decider.route(request(), []))
    await until(lambda: router.holding.status().held == 1)
    if moment == "as it is placed":
        router.let_in(Release.FITS)
        assert router.in_flight == 1
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert asking.cancelled()
    assert (router.in_flight, router.holding.status().held) == (0, 0)


async def test_it_fails_as_others_do_if_no_engine_is_left() -> None:
    router = HoldingRouter()
    decider = await begin(router)
    asking = asyncio.create_task(decider.route(request(), []))
    await router.lose_engines()
    with pytest.raises(NoEngine):
        await asking
    assert router.in_flight == 0
