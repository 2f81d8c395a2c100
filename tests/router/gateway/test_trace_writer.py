from __future__ import annotations

import gzip
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from router.errors import ConfigError
from router.gateway.trace_writer import QUEUE, TraceWriter
from router.prefix.blocks import chain
from router.sim.trace import TraceFile
from router.types import BlockKey, Decision, Ending, EngineId, Outcome, ParsedRequest
from tests.support.virtual_fleet import ask_for, prompt_of
from tests.support.virtual_fleet import decided as decision_of

SALT = b"salt" * 8
TEXT = b"the text of the prompt that nobody may read" * 10


def decided(text: bytes = TEXT, *, choices: int = 1, session: str | None = "mine") -> Decision:
    prompt = chain(b"root", text, 64)
    request = ParsedRequest("r", "/v1/chat/completions", "tiny", prompt, True, 99, choices, session)
    return decision_of(request, EngineId("engine-0"), prompt_tokens=430.0, dispatched_s=10.0)


def answer(
    at_s: float = 12.0, *, ending: Ending = Ending.OK, prompt: int | None = 100, output: int | None = 7
) -> Outcome:
    return Outcome(ending, at_s, 11.0, prompt, 64, output, (BlockKey(7),))


def recorder(path: Path, *, max_bytes: int = 1 << 20, files: int = 3, salt: bytes = SALT) -> TraceWriter:
    return TraceWriter(str(path), max_bytes=max_bytes, files=files, salt=salt)


def lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    return [json.loads(line) for line in content.splitlines()]


def arrivals(path: Path) -> list[float]:
    return [line["timestamp"] for line in lines(path)]


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_line_tells_lengths_times_and_blocks_and_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    writer = recorder(path)
    with writer.running():
        first, second = writer.arrived(9.5), writer.arrived(10.0)
        writer.ended(first, 9.5, decided(), answer())
        writer.ended(second, 10.0, decided(session=None), Outcome(Ending.OK, 12.0, None, 100, None, 3))
    one, two = lines(path)
    ids = one.pop("hash_ids")
    assert len(ids) == len(set(ids)) == len(TEXT) // 64
    assert all(0 <= each < 2**53 for each in ids)
    assert len(one.pop("session")) == 16
    assert one == {
        "timestamp": 0.0,
        "input_length": 100,
        "output_length": 7,
        "block_tokens": 14.883,  # 64 of 430 bytes, of 100 tokens
        "cached_tokens": 64,
        "max_tokens": 99,
        "stream": True,
        "route": "/v1/chat/completions",
        "model": "tiny",
        "stop": 0,
        "ending": "ok",
        "engine": "engine-0",
        "policy": "lbgr",
        "ttft_ms": 1500.0,
        "latency_ms": 2500.0,
    }
    assert (two["timestamp"], two["hash_ids"], two["session"], two["ttft_ms"]) == (500.0, ids, None, None)
    assert b"prompt that" not in path.read_bytes()
    assert writer.counts == {"written": 2, "left_out": 0, "dropped": 0, "lost": 0}


def test_the_simulators_reader_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    writer = recorder(path)
    with writer.running():
        writer.ended(writer.arrived(3.0), 3.0, decided(), answer())
        writer.ended(writer.arrived(4.25), 4.25, decided(b"short"), answer())
    first, second = TraceFile(str(path)).open(0)
    assert len(first.blocks) == len(TEXT) // 64
    assert (second.blocks, second.arrival_s, second.prompt_tokens, second.output_tokens) == ([], 1.25, 100, 7)
    assert first.block_tokens
    assert second.block_tokens
    assert (first.stream, first.max_tokens, first.route) == (True, 99, "/v1/chat/completions")
    assert (first.abandon_after_s, first.session) == (None, lines(path)[0]["session"])


def test_equal_beginnings_have_equal_ids_and_another_salt_other_ones(tmp_path: Path) -> None:
    found = []
    for number, salt in enumerate((SALT, SALT, b"other" * 5)):
        writer = recorder(tmp_path / str(number), salt=salt)
        with writer.running():
            writer.ended(writer.arrived(0.0), 0.0, decided(TEXT if number else TEXT + b"and more" * 20), answer())
        found.append(lines(tmp_path / str(number))[0])
    longer, same, other = (line["hash_ids"] for line in found)
    assert longer[: len(same)] == same
    assert not set(other) & set(same)
    assert found[1]["session"] != found[2]["session"]


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        (None, None),
        (decided(), None),
        (decided(), answer(ending=Ending.REJECTED, output=None)),
        (decided(), answer(prompt=None)),
        (decided(), answer(output=0)),
        (decided(choices=2), answer()),
        (decided(choices=2), answer(ending=Ending.CANCELLED)),
    ],
)
def test_what_no_engine_worked_on_or_told_of_is_left_out_and_holds_nothing_up(
    tmp_path: Path, decision: Decision | None, outcome: Outcome | None
) -> None:
    writer = recorder(tmp_path / "t")
    with writer.running():
        writer.ended(writer.arrived(1.0), 1.0, decision, outcome)
        writer.ended(writer.arrived(2.0), 2.0, decided(), answer())
    assert arrivals(tmp_path / "t") == [1000.0]
    assert writer.counts == {"written": 1, "left_out": 1, "dropped": 0, "lost": 0}


@pytest.mark.parametrize("ending", [Ending.CANCELLED, Ending.TIMEOUT, Ending.ENGINE_LOST, Ending.REJECTED])
def test_what_did_not_end_well_tells_when_and_what_had_come(tmp_path: Path, ending: Ending) -> None:
    writer = recorder(tmp_path / "t")
    with writer.running():
        writer.ended(writer.arrived(10.0), 10.0, decided(), Outcome(ending, 12.5, 11.0, None, None, 3))
    (line,) = lines(tmp_path / "t")
    told = {name: line[name] for name in ("ending", "input_length", "output_length", "latency_ms", "cached_tokens")}
    assert told == {
        "ending": ending.value,
        "input_length": 430,  # the router's estimate
        "output_length": 3,
        "latency_ms": 2500.0,
        "cached_tokens": None,
    }
    (request,) = TraceFile(str(tmp_path / "t")).open(0)
    assert (request.abandon_after_s, request.output_tokens, request.max_tokens) == (2.5, 3, 99)


@pytest.mark.parametrize("ending", [Ending.CANCELLED, Ending.TIMEOUT, Ending.ENGINE_LOST])
def test_a_request_that_ended_before_its_first_token_is_load_too(tmp_path: Path, ending: Ending) -> None:
    writer = recorder(tmp_path / "t")
    with writer.running():
        writer.ended(writer.arrived(10.0), 10.0, decided(), Outcome(ending, 70.0))
    (line,) = lines(tmp_path / "t")
    assert (line["output_length"], line["ttft_ms"], line["latency_ms"]) == (0, None, 60_000.0)


def test_lines_stand_in_the_order_of_arrival(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "t")
    with writer.running():
        numbers = [writer.arrived(float(n)) for n in range(6)]
        for n in (3, 1, 5, 0, 4):
            writer.ended(numbers[n], float(n), decided(), answer())
        writer.ended(numbers[2], 2.0, None, None)
    assert arrivals(tmp_path / "t") == [0.0, 1000.0, 3000.0, 4000.0, 5000.0]


def test_a_request_that_outlasts_many_is_written_late(tmp_path: Path) -> None:
    writer = TraceWriter(str(tmp_path / "t"), max_bytes=1 << 20, files=1, salt=SALT, held=3)
    with writer.running():
        numbers = [writer.arrived(float(n)) for n in range(7)]
        for n in (2, 1, 5, 4, 3, 6, 0):
            writer.ended(numbers[n], float(n), decided(), answer())
    assert arrivals(tmp_path / "t") == [1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 6000.0, 0.0]


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "t")
    for n in range(QUEUE + 5):  # nobody writes yet
        writer.ended(writer.arrived(float(n)), float(n), decided(b""), answer())
    assert writer.counts["dropped"] == 5
    with writer.running():
        pass
    assert len(arrivals(tmp_path / "t")) == writer.counts["written"] == QUEUE


def test_a_dropped_line_is_a_gap_that_ends(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "t")
    with writer.running():
        writer.arrived(0.0)
        writer.ended(writer.arrived(1.0), 1.0, decided(), answer())
    assert arrivals(tmp_path / "t") == [1000.0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_rotated_and_the_oldest_deleted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"of an earlier recording")
    writer = recorder(path, max_bytes=1, files=3)  # every line fills a file
    with writer.running():
        for n in range(9):
            writer.ended(writer.arrived(float(n)), float(n), decided(), answer())
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *(f"{path.name}.{n}" for n in (1, 2, 3))])
    assert [arrivals(tmp_path / f"{path.name}.{n}") for n in (1, 2, 3)] == [[8000.0], [7000.0], [6000.0]]
    assert arrivals(path) == []
    assert path.read_bytes().startswith(b"\x1f\x8b") == bool(suffix)
    assert writer.counts["written"] == 9


def test_a_recording_never_goes_on_in_the_file_of_another(tmp_path: Path) -> None:
    for _ in range(2):
        writer = recorder(tmp_path / "t")
        with writer.running():
            writer.ended(writer.arrived(5.0), 5.0, decided(), answer())
    assert arrivals(tmp_path / "t") == arrivals(tmp_path / "t.1") == [0.0]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"option 'record' = .*No such file"):
        recorder(tmp_path / "no" / "t")
    with pytest.raises(ConfigError, match="record"):
        TraceWriter("", max_bytes=1, files=1, salt=SALT)


def test_a_disk_that_fails_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    writer = recorder(folder / "t", max_bytes=1)
    (folder / "t").unlink()
    folder.rmdir()  # the first line still has its file, the next one has none
    with writer.running():
        for n in range(4):
            writer.ended(writer.arrived(float(n)), float(n), decided(), answer())
    assert writer.counts == {"written": 1, "left_out": 0, "dropped": 0, "lost": 3}
    assert [record.message for record in caplog.records] == [
        f"the recording to {folder / 't'} has ended: [Errno 2] No such file or directory: '{folder / 't'}'"
    ]


def test_prompts_of_token_ids_have_blocks_of_whole_tokens(tmp_path: Path) -> None:
    writer = recorder(tmp_path / "t")
    with writer.running():
        for units in range(192, 256):
            request = ask_for(1, 2, 3, units=units)
            assert request.prompt.block_units == prompt_of(1).block_units == 64
            decision = decision_of(request, EngineId("e"), prompt_tokens=200.0)
            writer.ended(writer.arrived(0.0), 0.0, decision, answer(prompt=units))
    assert [(line["block_tokens"], len(line["hash_ids"])) for line in lines(tmp_path / "t")] == [(64.0, 3)] * 64


def refused(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        TraceWriter(path, max_bytes=4096, files=1, salt=SALT)
    return str(caught.value)


def test_only_a_regular_file_is_recorded_to_and_nothing_else_is_touched(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-null").symlink_to("/dev/null")
    (tmp_path / "to-fifo").symlink_to(tmp_path / "fifo")
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "to-nothing").symlink_to(tmp_path / "absent")
    before = sorted(os.listdir(tmp_path))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        assert "expected a regular file, but this is a socket" in refused(str(tmp_path / "socket"))
        (tmp_path / "socket").unlink()
    for name, words in [
        ("fifo", "a pipe"),
        ("folder", "a folder"),
        ("to-null", "a device"),
        ("to-fifo", "a pipe"),
        ("to-folder", "a folder"),
        ("to-nothing", "a link to nothing"),
    ]:
        assert f"expected a regular file, but this is {words}" in refused(str(tmp_path / name))
    assert "this is a device" in refused("/dev/null")
    assert "the name of a file" in refused("")
    assert "the name of a file" in refused(f"{tmp_path}/")
    assert "null byte" in refused("a\0b")
    assert "a file that can be written" in refused(str(tmp_path / "absent" / "file"))
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_to_a_regular_file_is_recorded_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with TraceWriter(str(tmp_path / "link"), max_bytes=4096, files=1, salt=SALT).running():
        pass
    assert (tmp_path / "link.1").read_text() == "before"
