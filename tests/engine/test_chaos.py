"""A real engine stops and dies under load, and its neighbour serves everything that it can."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import httpx
import openai
import pytest

from tests.engine.conftest import Stack, eventually
from tests.engine.test_stack import model, text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


class Load:
    """Clients that ask for short streams, one after the other. served: the engine and the time of each answer. broken:
    streams of which a part had come. lost: all other failures."""

    def __init__(self, stack: Stack, clients: int) -> None:
        self.served: list[tuple[str, float]] = []
        self.broken: list[Exception] = []
        self.lost: list[Exception] = []
        self._stack, self._model = stack, model(stack)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(n,)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def since(self, mark_s: float) -> Counter[str]:
        """How many answers of each engine have come since then."""
        return Counter(engine for engine, at_s in list(self.served) if at_s > mark_s)

    def _ask_on(self, client: int) -> None:
        number = client * 100_000
        while not self._stop.is_set():
            number += 1
            pieces = 0
            try:
                for _ in self._stream(number):
                    pieces += 1
            except (openai.OpenAIError, httpx.HTTPError) as error:
                (self.broken if pieces else self.lost).append(error)

    def _stream(self, number: int) -> Any:
        messages: list[Any] = [{"role": "user", "content": text(number, 20)}]
        raw = self._stack.client().chat.completions.with_raw_response.create(
            model=self._model, messages=messages, max_tokens=4, temperature=0, stream=True
        )
        yield from raw.parse()
        self.served.append((raw.headers["x-leafcutter-engine"], time.monotonic()))


def test_an_engine_that_is_stopped_and_then_killed_loses_no_request(stack: Stack) -> None:
    """With four clients it holds some requests at any time. Those without a byte move when its health checks fail."""
    victim = stack.pid(1)
    with Load(stack, clients=4) as load:
        eventually(lambda: set(load.since(0.0)) == {"engine-0", "engine-1"}, 30, "both engines serve")
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: not stack.workers()[1]["healthy"], 40, "the stopped engine is taken out")
        mark_s = time.monotonic()
        eventually(lambda: load.since(mark_s)["engine-0"] > 4, 30, "the other engine serves on")
        os.kill(victim, signal.SIGKILL)
        mark_s = time.monotonic()
        eventually(lambda: load.since(mark_s)["engine-0"] > 4, 30, "the other engine serves on")
    assert load.lost == []
    assert len(load.broken) <= 4  # one for each client: a stream of which a part had come cannot move
    assert [worker["in_flight"] for worker in stack.workers()] == [0, 0]
    eventually(lambda: all(worker["healthy"] for worker in stack.workers()), 180, "the engine is back")
