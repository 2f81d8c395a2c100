"""A few thousand inputs of `fuzz`, and that it notices faults."""

from __future__ import annotations

import random

from benchmarks.micro.fuzz import TARGETS, feed, fuzz, table
from benchmarks.micro.fuzz_http import send
from benchmarks.micro.fuzz_mutator import Mutator, pieces
from benchmarks.micro.fuzz_target import Target
from tests.support.gateway_server import served, until


async def test_no_input_finds_a_fault() -> None:
    found = await fuzz(4000, seed=1)
    assert set(found) == set(TARGETS)
    for name, each in found.items():
        assert each.faults == [], name
        assert 0 < each.accepted < each.inputs, name
    assert f"| bodies | {found['bodies'].inputs:,} |" in table({name: vars(each) for name, each in found.items()})


async def test_no_bytes_over_sockets_find_a_fault() -> None:
    async with served(known=False) as gateway:
        found = await send(gateway.url, 500, 1)
        assert found["faults"] == []
        assert found["statuses"].keys() >= {200, 400, 404}
        assert sum(found["statuses"].values()) > 300
        assert (await gateway.post()).status_code == 200
        await until(lambda: gateway.in_flight() == 0)


class Faulty(Target):
    """It fails on what holds a zero byte."""

    seeds, weight = (b"abc\0",), 1.0

    async def accepts(self, data: bytes, rng: random.Random) -> bool:
        if b"\0" in data:
            raise ZeroDivisionError
        return len(data) > 1


async def test_faults_are_kept_with_their_input() -> None:
    found = await feed(Faulty(), 200, seed=0)
    assert found.inputs == 200
    assert found.accepted > 0
    assert len(found.faults) == 20
    assert all("\\x00" in fault and "ZeroDivisionError" in fault for fault in found.faults)


def test_inputs_are_the_same_for_the_same_seed_and_cut_without_loss() -> None:
    first, again, other = (Mutator([b'{"a": 12}', b"xyz" * 50], random.Random(seed)) for seed in (3, 3, 4))
    inputs = [first.next() for _ in range(300)]
    assert inputs == [again.next() for _ in range(300)]
    assert inputs != [other.next() for _ in range(300)]
    assert len(set(inputs)) > 200
    assert all(b"".join(pieces(data, random.Random(1))) == data for data in inputs)
