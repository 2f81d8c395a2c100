"""Traces of agents: the reader, each way a file can be wrong, and the open-loop timeline by hand."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from router.errors import TraceError
from router.sim.agents import ID_SPACE, AgentTrace, deal, holds_conversations, read_conversations
from router.types import Stop

MAIN = [-1, [[0.0, 640, 5, 4.0, 0, 1, 0, [[1, 10]]], [9.0, 700, 5, 1.0, 5.0, 2, 8, [[50, 3]]]]]
CHILD = [0, [[0.0, 320, 5, 0.1, 0, 1, 0, [[70, 5]]], [9.0, 330, 5, 0.1, 99.0, 0, 5, []]]]
LINE = {"tool": 200, "system": 60, "block": 64, "threads": [MAIN, CHILD]}


def write(folder: Path, *lines: Any, packed: bool = True) -> str:
    path = folder / "agents.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return str(path)


@pytest.mark.parametrize("packed", [False, True])
def test_conversations_are_read(tmp_path: Path, packed: bool) -> None:
    path = write(tmp_path, LINE, LINE, packed=packed)
    first, second = read_conversations(path)
    assert holds_conversations(path)
    assert (first.number, second.number) == (0, 1)
    assert first.common_blocks == 3  # .75 * 260 / 64
    assert [thread.parent for thread in first.threads] == [-1, 0]
    assert first.threads[0].requests[1].stop == Stop.END_OF_TURN
    assert (first.session(0), first.session(1), first.parent(0), first.parent(1)) == ("0", "0.1", None, "0")
    blocks = second.blocks([], second.threads[0].requests[0])
    own = 2 * ID_SPACE
    assert blocks == [0, 1, 2, *range(own + 4, own + 11)]
    assert second.blocks(blocks, second.threads[0].requests[1]) == [*blocks[:8], own + 50, own + 51, own + 52]


def test_the_timeline_by_hand(tmp_path: Path) -> None:
    trace = AgentTrace(write(tmp_path, LINE), users=2, think_cap_s=60.0, merge=2)
    requests = list(trace.open(0))
    start = requests[0].arrival_s
    assert start is not None
    told = [(r.session, r.parent, r.stop, round((r.arrival_s or 0.0) - start, 6)) for r in requests]
    # The child starts after the 4 s of its parent's answer. Its second request comes .5 s (not .1) + 60 s (not 99)
    # after the first.
    assert told == [
        ("0", None, 1, 0.0),
        ("0.1", "0", 1, 4.0),
        ("0", None, 2, 9.0),
        ("0.1", "0", 0, 64.5),
    ]
    assert requests[0].blocks == [1, *range(ID_SPACE + 4, ID_SPACE + 11, 2)]
    assert requests[0].block_tokens == 128
    assert list(trace.open(0)) == requests
    assert len(list(AgentTrace(trace.file, 2, limit=3).open(0))) == 3
    parts: list[float] = []
    list(trace.open(0, parts.append))
    assert parts == [0.0]


def test_users_share_one_deck(tmp_path: Path) -> None:
    path = write(tmp_path, *[LINE] * 8)
    requests = list(AgentTrace(path, users=3, seed=4).open(0))
    assert len(requests) == 8 * 4
    assert len({r.session for r in requests}) == 16
    times = [r.arrival_s or 0.0 for r in requests]
    assert times == sorted(times)
    assert [c.number for c in deal(read_conversations(path), random.Random(4))] != list(range(8))


def changed(thread: int, place: int, value: Any) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(json.dumps(LINE))
    line["threads"][thread][1][1][place] = value
    return line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "a JSON object"),
        ("[" * 100_000, "a JSON object"),
        ([1], "with threads"),
        ({**LINE, "threads": []}, "with threads"),
        ({**LINE, "block": 0}, "block"),
        ({**LINE, "tool": -1}, "tool"),
        ({**LINE, "threads": [MAIN, 5]}, "[parent, [request, ...]]"),
        ({**LINE, "threads": [[-1, []]]}, "[parent, [request, ...]]"),
        ({**LINE, "threads": [MAIN, MAIN]}, "a parent"),
        ({**LINE, "threads": [[0, MAIN[1]]]}, "a parent"),
        ({**LINE, "threads": [MAIN, [2, CHILD[1]]]}, "a parent"),
        ({**LINE, "threads": [[-1, [[1, 2, 3]]]]}, "[t_s, input_tokens"),
        (changed(0, 1, 0), "input_tokens"),
        (changed(0, 2, 1.5), "output_tokens"),
        (changed(0, 3, -1), "api_s"),
        (changed(0, 4, "x"), "think_s"),
        (changed(0, 5, 3), "stop"),
        (changed(0, 5, True), "stop"),
        (changed(0, 6, 11), "at most the 10 blocks"),
        (changed(0, 7, [[1]]), "[first_id, count]"),
        (changed(0, 7, [[1, -1]]), "a count"),
        (changed(0, 7, [[1, 1 << 50]]), "ids below"),
        (changed(0, 7, [[1, 1 << 21]]), "at most 1048576 blocks"),
    ],
)
def test_malformed(tmp_path: Path, line: Any, expected: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_conversations(write(tmp_path, LINE, line))
    assert caught.value.line == 2
    assert expected in caught.value.expected


def test_files_that_hold_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (write(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(TraceError):
            read_conversations(path)
    with pytest.raises(TraceError):
        holds_conversations(str(tmp_path / "missing"))
    for content in ("1 2 3", '{"hash_ids": [1]}', "[1]", ""):
        assert not holds_conversations(write(tmp_path, content))
    monkeypatch.setattr("router.sim.agents.MOST_REQUESTS", 3)
    with pytest.raises(TraceError, match="at most 3"):
        read_conversations(write(tmp_path, LINE))
