"""What routers cost, compared: a tiny run with real processes, and how its figures are put together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.live.compared_routers import find_peer, version_of
from benchmarks.live.gateway_process import cpu_s, process_tree
from benchmarks.live.overhead import compare, parse, percentile, run, table

FEW = ["--cells", "whole-2k", "stream-32", "--concurrency", "2", "--rounds", "1", "--seconds", "0.15"]


def test_a_tiny_run_without_peers(capsys: pytest.CaptureFixture[str]) -> None:
    routers = ["leafcutter:lbgr", "vllm-router:cache_aware"]
    figures = run(parse([*FEW, "--routers", *routers, "--leafcutter-args", "--cache-aware-cache-threshold 0.5"]))
    told = capsys.readouterr().out
    assert "left out" in told
    assert "vllm-router:cache_aware" in told
    assert "leafcutter:lbgr" not in told
    assert list(figures["versions"]) == ["leafcutter"]
    rows = {(row["answers"], row["router"]): row["median"] for row in figures["rows"]}
    assert set(rows) == {(kind, name) for kind in ("whole-2k", "stream-32") for name in ("direct", "leafcutter:lbgr")}
    for kind in ("whole-2k", "stream-32"):
        direct, routed = rows[kind, "direct"], rows[kind, "leafcutter:lbgr"]
        assert "cpu_us" not in direct
        assert 20 < routed["cpu_us"] < 1e6
        assert routed["requests"] >= 2
        assert routed["added_p50_ms"] == pytest.approx(routed["p50_ms"] - direct["p50_ms"])
        assert routed["added_first_byte_ms"] > 0
    assert rows["stream-32", "direct"]["p50_ms"] > 31  # the engine's gaps
    assert table(figures["rows"]).count("| leafcutter:lbgr |") == 2


def test_ratios_are_those_within_the_rounds() -> None:
    cell = ("whole-2k", 1)
    direct = {"p50_ms": 1.0, "p99_ms": 2.0, "first_byte_ms": 1.0}

    def round_of(own_cpu: float, reference_cpu: float) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
        raw = {"p50_ms": 3.0, "p99_ms": 1.5, "first_byte_ms": 2.0}
        own = {"p50_ms": 2.0, "p99_ms": 4.0, "first_byte_ms": 3.0, "cpu_us": own_cpu}
        return {cell: {"direct": direct, "own": own, "vllm-router:cache_aware": {**raw, "cpu_us": reference_cpu}}}

    rows = {row["router"]: row for row in compare([round_of(300, 100), round_of(80, 40), round_of(10, 100)])}
    own = rows["own"]
    assert own["median"]["cpu_us"] == 80
    assert own["ratio"]["cpu_us"] == 2.0  # of 3, 2 and .1
    assert own["ratio"]["added_p50_ms"] == 0.5
    assert own["median"]["added_p99_ms"] == 2.0
    assert "added_p99_ms" not in own["ratio"]  # the reference was faster than direct access
    assert rows["direct"]["ratio"]["p50_ms"] == pytest.approx(1 / 3)
    assert "cpu_us" not in rows["direct"]["median"]
    assert "80 (2.00)" in table([own])


def test_percentile() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)


def test_peers_are_found_in_environments(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    program = full / "bin" / "smg"
    program.parent.mkdir(parents=True)
    program.touch()
    assert find_peer("smg", [empty, full]) == program
    assert find_peer("vllm-router", [empty, full]) is None
    assert version_of("leafcutter", None)


@pytest.mark.parametrize("name", ["nginx:round_robin", "smg", "direct"])
def test_what_is_no_router(name: str) -> None:
    with pytest.raises(SystemExit):
        parse(["--routers", name])


def test_cpu_time_of_a_process_and_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        tree = process_tree(os.getpid())
        assert tree[0] == os.getpid()
        assert child.pid in tree
        before, start = cpu_s(tree), time.process_time()
        while time.process_time() - start < 0.05:
            pass
        assert 0.05 <= cpu_s(tree) - before < 1.0
        assert cpu_s([os.getpid()]) == pytest.approx(time.process_time(), abs=0.05)
        child.communicate(b"\n")
    assert child.pid not in process_tree(os.getpid())
