"""A small run of `endurance` with real processes, and what its checks say of streams and figures that are not right."""

from typing import Any

import pytest

from benchmarks.live import endurance
from benchmarks.live.endurance import Footprint, memory_of, parse, run, table, wrong
from benchmarks.live.numbered_engine import DONE, numbered, usage_event
from benchmarks.live.numbered_load import Tally, faults_in

SMALL = ["--seconds", "8", "--streams", "60", "--non-readers", "5", "--timeout-s", "2"]
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endurance, "STAY_S", 1.0)  # `test_server` has the clients that stay
        return run(parse(SMALL))


def test_no_chunk_is_lost_and_everything_is_given_back(figures: dict[str, Any]) -> None:
    found = figures["streams"]
    assert found["faults"] == {}
    assert found["ended"] >= 60
    assert found["left"] > 0
    assert 0 < found["with_usage"] < found["ended"]
    assert found["chunks"] > 40 * found["ended"]  # those of the streams that were left too
    assert found["descriptors_most"] > found["descriptors_before"] + 60
    assert found["descriptors_after"] <= found["descriptors_before"]
    assert found["largest_mb"] < 200
    assert found["end_mb"] - found["warm_mb"] < 20
    assert f"| {found['ended']:,}, {found['left']:,} |" in table(figures)


def test_clients_that_never_read_are_held_and_let_go(figures: dict[str, Any]) -> None:
    found = figures["non_readers"]
    assert found["clients"] == 5
    assert found["memory_mb"] < 10 * 5  # of the 100 MB that each has asked for
    assert (found["small_streams"] > 0, found["faults"]) == (True, {})
    assert found["in_flight"] == 0
    assert 2 < found["over_s"] < 20
    assert found["descriptors_most"] >= found["descriptors_before"] + 5
    assert found["descriptors_after"] <= found["descriptors_before"]


def stream(*numbers: int, usage: bool = False, end: bytes = DONE) -> bytes:
    return b"".join(map(numbered, numbers)) + (usage_event(4) if usage else b"") + end


@pytest.mark.parametrize(
    ("answer", "usage", "left", "faults"),
    [
        (stream(0, 1, 2, 3), False, False, set()),
        (stream(0, 1, 2, 3, usage=True), True, False, set()),
        (stream(0, 1, 3), False, False, {"lost"}),
        (stream(0, 1, 2), False, False, {"lost"}),
        (stream(), False, False, {"lost"}),
        (stream(0, 1, 1, 2, 3), False, False, {"doubled"}),
        (stream(0, 2, 1, 3), False, False, {"out of order"}),
        (stream(0, 1, 3, 2, 2), False, False, {"doubled", "out of order"}),
        (stream(0, 1, 2, 3, 4), False, False, {"too many"}),
        (stream(0, 1, 2, 3, usage=True), False, False, {"usage"}),
        (stream(0, 1, 2, 3), True, False, {"usage"}),
        (stream(0, 1, 2, 3, end=b""), False, False, {"end"}),
        (stream(0, 1, 2, 3, end=DONE + DONE), False, False, {"end"}),
        (stream(0, 1, 2, 3).replace(b"model", b"m0del"), False, False, {"altered"}),
        (stream(0, 1, 2, 3)[:-1], False, False, {"end"}),
        (stream(0, 1, end=b""), False, True, set()),
        (stream(0, 1, end=b"")[:-9], False, True, set()),
        (b"", False, True, set()),
        (stream(0, 2, end=b""), False, True, {"lost"}),
        (stream(0, 0, end=b""), False, True, {"doubled"}),
        (stream(1, 0, end=b""), False, True, {"out of order"}),
        (stream(0, 1, 2, 3, usage=True, end=b""), False, True, {"usage"}),
    ],
)
def test_faults_of_streams_are_noticed(answer: bytes, usage: bool, left: bool, faults: set[str]) -> None:
    assert faults_in(answer, 4, usage=usage, left=left) == faults


def test_answers_are_counted_with_their_faults() -> None:
    def answer(events: bytes) -> bytes:
        return HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)

    tally = Tally()
    tally.take(answer(stream(0, 1, 2, 3)), 4, usage=False)
    tally.take(answer(stream(0, 1, 2, 3, usage=True)), 4, usage=True)
    tally.take(answer(stream(0, 1, end=b""))[:-9], 4, usage=False, left=True)
    assert not tally.faults
    tally.take(answer(stream(0, 2, 3)), 4, usage=False)
    tally.take(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}", 4, usage=False)
    assert tally == Tally(whole=4, left=1, chunks=4 + 4 + 2 + 3, with_usage=1, faults=tally.faults)
    assert tally.faults == {"lost": 1, "refused": 1}


def test_what_is_kept_is_told() -> None:
    part = {"faults": {}, "descriptors_before": 20, "descriptors_after": 20}
    right = {"streams": part, "non_readers": {**part, "descriptors_while_there": 20, "in_flight": 0}}
    assert wrong(right) == []
    kept = {**part, "descriptors_after": 21, "faults": {"lost": 2}}
    told = wrong({"streams": kept, "non_readers": {**kept, "descriptors_while_there": 25, "in_flight": 1}})
    assert len(told) == 6
    assert "streams: 2 faults of the kind: lost." in told


def test_memory_after_the_warm_up() -> None:
    samples = [Footprint(float(at), 50.0 + min(at, 3) * 10, 5) for at in range(9)]
    expected = {"warm_mb": 80, "end_mb": 80, "largest_mb": 80, "slope_mb_per_minute": 0}
    assert memory_of(samples) == pytest.approx(expected)
    rising = [Footprint(float(at), 50.0 + at, 5) for at in range(9)]
    assert memory_of(rising)["slope_mb_per_minute"] == pytest.approx(60)
