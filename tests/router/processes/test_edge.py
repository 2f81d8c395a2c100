"""How edges divide what the whole gateway may do."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from router.config import ServerOptions, configure
from router.processes.edge import share


def parts(edges: int, **options: int) -> list[ServerOptions]:
    return [share(configure(**options), slot, edges).server for slot in range(edges)]


@pytest.mark.parametrize("edges", [1, 2, 3, 64])
def test_the_parts_of_all_edges_sum_to_the_limit_of_the_gateway(edges: int) -> None:
    limits = {"max_connections": 1000, "max_concurrent_requests": 100}
    found = parts(edges, queue_size=5, **limits)
    assert sum(each.queue_size for each in found) == 5
    for name, limit in limits.items():
        numbers = [getattr(each, name) for each in found]
        assert sum(numbers) == limit
        assert max(numbers) - min(numbers) <= 1


def test_each_edge_can_serve_somebody_and_all_else_stays() -> None:
    for each in parts(4, max_concurrent_requests=1, max_connections=2):
        assert (each.max_concurrent_requests, each.max_connections) == (1, 1)
    whole = configure(port=1).server
    assert astuple(share(configure(port=1), 0, 1).server) == astuple(whole)
