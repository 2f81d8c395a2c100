import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine_patches import __version__
from engine_patches.exporter import Exporter, rank_port
from engine_patches.hints import App
from engine_patches.orders import LRU, RLT, RLTGIX, EvictionOrder
from engine_patches.state_server import start_state_server
from tests.support.toy_engine import ToyEngine


class Pool(SimpleNamespace):
    """Can be referenced weakly, as the real one can."""


# `serve` of the exporter, and what it has started: each a server and its thread.
Server = tuple[Callable[[int, str, App], None], list[tuple[Any, Any]]]


def build_pool(order: EvictionOrder, num_gpu_blocks: int = 9) -> Any:
    return Pool(order=order, hash_block_size=32, num_gpu_blocks=num_gpu_blocks, hints=deque())


def read(text: str) -> dict[str, Any]:
    return {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture
def server() -> Iterator[Server]:
    """Starts the real HTTP server on a free port and counts how often that is asked for."""
    started: list[tuple[Any, Any]] = []

    def serve(port: int, address: str, app: App) -> None:
        started.append(start_state_server(0, address, app))

    yield serve, started
    for running, thread in started:
        running.shutdown()
        running.server_close()
        thread.join()


def scrape(started: list[tuple[Any, Any]]) -> dict[str, Any]:
    port = started[0][0].server_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return read(answer.read().decode())


def test_serves_the_orders_state(server: Server) -> None:
    serve, started = server
    order = RLT(9, 0)
    order.pop()  # the null block
    pool = build_pool(order)
    exporter = Exporter(1, "127.0.0.1", "0.32.0", serve=serve)
    exporter.show(pool)
    samples = scrape(started)
    assert samples["leafcutter_engine_info"].labels == {
        "order": "rlt",
        "plugin_version": __version__,
        "vllm_version": "0.32.0",
    }
    values = {name: sample.value for name, sample in samples.items()}
    assert values == {
        "leafcutter_engine_info": 1,
        "leafcutter_engine_block_size_tokens": 32,
        "leafcutter_engine_capacity_blocks": 8,
        "leafcutter_engine_phases_total": 0,
        "leafcutter_engine_evictions_total": 0,
        "leafcutter_engine_hits_total": 0,
        "leafcutter_engine_misses_total": 0,
        "leafcutter_engine_shadow_misses_total": 0,
        "leafcutter_engine_fallbacks_total": 0,
        "leafcutter_engine_hints_total": 0,
        "leafcutter_engine_fallback": 0,
        "leafcutter_engine_marked_blocks": 0,
        "leafcutter_engine_free_blocks": 8,
        "leafcutter_engine_cached_blocks": 0,
    }

    engine = ToyEngine(order, 9, seed=1)
    engine.refs[0] = 1
    for _ in range(300):
        engine.step(rough=False)
    after = {name: sample.value for name, sample in scrape(started).items()}
    assert after["leafcutter_engine_phases_total"] == order.phases > 0
    assert after["leafcutter_engine_evictions_total"] == order.evictions > 0
    assert after["leafcutter_engine_hits_total"] == order.hits > 0
    assert after["leafcutter_engine_marked_blocks"] == order.marked
    assert after["leafcutter_engine_free_blocks"] == order.free
    assert after["leafcutter_engine_cached_blocks"] == order.cached


def test_a_guard_shows_itself(server: Server) -> None:
    serve, started = server
    order = RLTGIX(9, 0)
    order._budget = 0.0
    pool = build_pool(order)
    Exporter(1, "127.0.0.1", "0.32.0", serve=serve).show(pool)
    engine = ToyEngine(order, 9, seed=1)
    while not order.fallback:
        engine.step(rough=False)
    samples = {name: sample.value for name, sample in scrape(started).items()}
    assert samples["leafcutter_engine_fallback"] == 1
    assert samples["leafcutter_engine_fallbacks_total"] == order.fallbacks > 0
    assert samples["leafcutter_engine_misses_total"] == order.misses > 0
    assert samples["leafcutter_engine_shadow_misses_total"] == order.shadow_misses > 0
    assert samples["leafcutter_engine_phases_total"] == order.phases


def test_one_server_shows_the_pool_built_last(server: Server) -> None:
    serve, started = server
    exporter = Exporter(1, "127.0.0.1", "0.32.0", serve=serve)
    first, second = build_pool(RLT(9)), build_pool(LRU(5), 5)
    exporter.show(first)
    exporter.show(second)
    assert len(started) == 1
    assert scrape(started)["leafcutter_engine_info"].labels["order"] == "lru"
    del second
    assert scrape(started) == {}


@pytest.mark.parametrize(
    ("name", "port"), [("EngineCore", 900), ("MainProcess", 900), ("EngineCore_DP0", 900), ("EngineCore_DP3", 903)]
)
def test_a_data_parallel_rank_has_its_own_port(name: str, port: int) -> None:
    assert rank_port(900, name) == port
