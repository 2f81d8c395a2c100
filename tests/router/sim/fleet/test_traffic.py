"""Traffic by name and from traces."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from router.errors import TraceError
from router.sim.fleet.traffic import GROUPS, WORKLOADS, Replay, Session, Workload, replay
from router.sim.trace import TraceFile
from router.types import BlockKey

Line = dict[str, Any]


def sessions(name: str, requests: int = 400, rate: float = 10.0, seed: int = 0, block: int = 128) -> list[Session]:
    return list(Workload(name, rate, requests).open(seed, block))


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_for_the_same_seed(name: str) -> None:
    assert sessions(name) == sessions(name)
    assert sessions(name) != sessions(name, seed=1)


@pytest.mark.parametrize("name", WORKLOADS)
def test_arrivals_and_number(name: str) -> None:
    found = sessions(name)
    turns = sum(len(session.turns) for session in found)
    assert 400 <= turns < 400 + 40
    times = [session.arrival_s for session in found]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(len(found) / 10, rel=0.35)
    assert len({session.first_token_id for session in found}) == len(found)


@pytest.mark.parametrize("name", WORKLOADS)
def test_blocks_change_no_lengths(name: str) -> None:
    small, large = sessions(name, block=16), sessions(name, block=128)
    assert [session.turns for session in small] == [session.turns for session in large]
    assert [session.prefix.units for session in small] == [session.prefix.units for session in large]


def test_gsp() -> None:
    found = sessions("gsp", requests=32 * GROUPS)
    by_head: dict[tuple[BlockKey, ...], int] = {}
    for session in found:
        (turn,) = session.turns
        assert turn.fresh_tokens == session.prefix.units
        assert turn.output_tokens == 4
        by_head[session.prefix.keys] = by_head.get(session.prefix.keys, 0) + 1
    assert set(by_head.values()) == {32}
    assert len(by_head) == GROUPS
    assert fmean(2 * session.prefix.units for session in found) == pytest.approx(3174, rel=0.02)


def test_gsp_in_turn() -> None:
    heads = [session.prefix for session in sessions("gsp_rotating", requests=2 * GROUPS)]
    assert heads[:GROUPS] == heads[GROUPS:]
    assert len({head.keys for head in heads}) == GROUPS


def test_a_hot_group() -> None:
    heads = [session.prefix for session in sessions("hot", requests=3000)]
    most = max(set(heads), key=heads.count)
    assert heads.count(most) / 3000 == pytest.approx(0.3, abs=0.03)
    assert most.units == 1024


def test_chats_have_turns_and_names() -> None:
    found = sessions("chat", requests=2000)
    assert fmean(len(session.turns) for session in found) == pytest.approx(6, rel=0.1)
    assert len({session.session_id for session in found}) == len(found)
    turns = [turn for session in found for turn in session.turns]
    assert fmean(turn.output_tokens for turn in turns) == pytest.approx(311, rel=0.05)
    assert fmean(turn.pause_s for turn in turns) == pytest.approx(10, rel=0.1)


def test_documents_are_asked_about_several_times() -> None:
    heads = [session.prefix.keys for session in sessions("longdoc", requests=800)]
    assert 4 <= len(heads) / len(set(heads)) <= 9


def test_answers_are_heavy_tailed() -> None:
    outputs = sorted(session.turns[0].output_tokens for session in sessions("heavy", requests=4000))
    assert outputs[len(outputs) // 2] < fmean(outputs) * 0.65
    assert max(outputs) <= 4096


def write(tmp_path: Path, *lines: Line) -> TraceFile:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return TraceFile(str(path))


def line(timestamp: float, prompt: int = 600, output: int = 7, ids: Sequence[int] = (1, 2)) -> Line:
    return {"timestamp": timestamp, "input_length": prompt, "output_length": output, "hash_ids": list(ids)}


def traffic(file: TraceFile, **changes: Any) -> Replay:
    return replay(file, **({"skip": 0, "requests": None, "rate": None, "scale": 1.0, "spread": False} | changes))


def test_a_trace(tmp_path: Path) -> None:
    file = write(tmp_path, line(1000), line(3000, 1100, 9, (1, 3, 4)), line(5000, output=0))
    found = list(traffic(file).open(0, 512))
    assert [session.arrival_s for session in found] == [0.0, 2.0, 4.0]
    assert [session.prefix.units + session.turns[0].fresh_tokens for session in found] == [600, 1100, 600]
    assert [session.turns[0].output_tokens for session in found] == [7, 9, 1]
    assert found[0].prefix.keys == found[1].prefix.keys[:1]


def test_scaled_times(tmp_path: Path) -> None:
    file = write(tmp_path, line(1000), line(3000), line(5000))
    assert traffic(file).rate == 3 / 4
    assert traffic(file, scale=0.5).rate == 3 / 2
    fast = traffic(file, rate=30.0)
    assert fast.rate == pytest.approx(30)
    assert [session.arrival_s for session in fast.open(0, 512)] == pytest.approx([0, 0.05, 0.1])


def test_parts(tmp_path: Path) -> None:
    file = write(tmp_path, *(line(1000 * index, output=index + 1) for index in range(6)))
    part = traffic(file, skip=2, requests=3)
    assert (part.requests, part.rate) == (3, 1.5)
    assert [session.turns[0].output_tokens for session in part.open(0, 512)] == [3, 4, 5]
    assert [session.arrival_s for session in part.open(0, 512)] == [0.0, 1.0, 2.0]


def test_spread_times(tmp_path: Path) -> None:
    file = write(tmp_path, line(0), line(0), line(0), line(3000), line(3000), line(9000))
    times = [session.arrival_s for session in traffic(file, spread=True).open(0, 512)]
    assert times == pytest.approx([0, 1, 2, 3, 6, 9])


def test_times_that_run_backwards_stand_still(tmp_path: Path) -> None:
    file = write(tmp_path, line(0), line(3000), line(2000), line(4000))
    for spread, expected in ((False, [0, 3, 3, 4]), (True, [0, 3, 3.5, 4])):
        assert [session.arrival_s for session in traffic(file, spread=spread).open(0, 512)] == pytest.approx(expected)


def test_a_burst_has_no_rate(tmp_path: Path) -> None:
    file = write(tmp_path, line(0), line(0))
    assert traffic(file).rate == 0.0
    with pytest.raises(TraceError, match="2 requests in 0 s; expected requests at different times"):
        traffic(file, rate=3.0)


@pytest.mark.parametrize("missing", ["timestamp", "input_length", "output_length"])
def test_a_trace_without_times_or_lengths(tmp_path: Path, missing: str) -> None:
    bad = {key: value for key, value in line(5).items() if key != missing}
    file = write(tmp_path, line(0), bad)
    with pytest.raises(TraceError, match="request 2; expected timestamp"):
        traffic(file)


def test_nothing_left_to_replay(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="0 requests"):
        traffic(write(tmp_path, line(0)), skip=1)


def test_a_workload_goes_on() -> None:
    assert len(list(islice(Workload("gsp", 5.0, 10**9).open(0, 128), 5000))) == 5000


def test_a_recording_tells_the_tokens_of_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    lines = [
        {"timestamp": 1000 * n, "input_length": 100, "output_length": 3, "hash_ids": [1, 2, n], "block_tokens": 32.5}
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = replay(TraceFile(str(path)), skip=0, requests=None, rate=None, scale=1.0, spread=False)
    assert trace.id_tokens == 32.5
    first, second, _ = trace.open(0, 16)
    assert len(first.prefix.keys) == 6  # 97.5 tokens have ids
    assert first.prefix.keys[:4] == second.prefix.keys[:4]  # 64 of 65 tokens
    assert first.prefix.keys[4] != second.prefix.keys[4]
