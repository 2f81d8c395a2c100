"""`leafcutter simulate`, in this process and as a command."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import main
from router.sim.fleet.result import KEYS

FEW = ["--workload", "gsp", "--rate", "8", "--requests", "60", "--engines", "2"]


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    status = main(["simulate", *flags])
    out, err = capsys.readouterr()
    return status, out, err


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_table_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *FEW, "--policies", "lbgr,round-robin", "--orders", "lru,rlt-gix", "--seeds", "2")
    head, rule, *lines, empty, verdict = out.splitlines()
    assert (status, err) == (0, "")
    assert "TTFT P99" in head
    assert set(rule) == set("|-:")
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in lines] == [
        ["gsp", policy, order] for policy in ("lbgr", "round_robin") for order in ("lru", "rlt_gix")
    ]
    assert empty == ""
    assert verdict.startswith("gsp, 8/s, 2 engines: best mean ")
    assert verdict.count("[") == 3


def test_bounds_on_latency_are_heeded_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workload", "gsp", "--rate", "4", "--requests", "200", "--engines", "2", "--policies", "lbgr"]
    flags += ["--orders", "lru", "--seeds", "1", "--slo-ttft-ms", "600"]
    shares = []
    for objective in ("e2e", "slo"):
        status, out, _ = run(capsys, *flags, "--set", f"lbgr_objective={objective}", "--set", "lbgr_slo_weight=5")
        assert status == 0
        head, _, line, *_ = out.splitlines()
        shown = dict(zip(*([cell.strip() for cell in text.split("|")] for text in (head, line)), strict=True))
        shares.append(float(shown["in SLO"]))
    assert 0 < shares[0] < 1
    assert shares[0] != shares[1]
    assert run(capsys, *flags, "--slo-tpot-ms", "soon")[0] == 2


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workload", "gsp,heavy", "--rate", "4", "--rate", "8", "--requests", "20", "--engines", "1,2"]
    status, out, _ = run(capsys, *flags, "--policies", "random", "--orders", "lru", "--seeds", "3,9", "--json")
    rows = rows_of(out)
    assert status == 0
    assert all(tuple(row) == KEYS for row in rows)
    assert [(row["engines"], row["workload"], row["rate"], row["seed"]) for row in rows] == [
        (engines, name, rate, seed)
        for engines in (1, 2)
        for name in ("gsp", "heavy")
        for rate in (4.0, 8.0)
        for seed in (3, 9)
    ]


def test_the_same_on_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FEW, "--policies", "lbgr,least_loaded", "--orders", "rlt_gix", "--seeds", "2", "--json"]
    _, here, _ = run(capsys, *flags)
    _, apart, _ = run(capsys, *flags, "--jobs", "2")
    assert here == apart


@pytest.fixture
def trace(tmp_path: Path) -> str:
    lines = [
        {"timestamp": 500 * n, "input_length": 1200, "output_length": 5, "hash_ids": [n % 3, 10 + n, 50 + n]}
        for n in range(40)
    ]
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return str(path)


def test_a_trace(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    flags = ["--trace", trace, "--policies", "lbgr", "--orders", "lru", "--seeds", "1", "--json"]
    (plain,) = rows_of(run(capsys, *flags)[1])
    (faster,) = rows_of(run(capsys, *flags, "--time-scale", "0.5")[1])
    (wanted,) = rows_of(run(capsys, *flags, "--rate", "4", "--block-size", "64", "--spread")[1])
    assert plain["workload"] == trace
    assert (plain["rate"], faster["rate"], wanted["rate"]) == pytest.approx((40 / 19.5, 80 / 19.5, 4.0))
    assert plain["hit_rate"] > 0


def test_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--slow", "0:2", "--degrade", "1:2.5:1:3", "--fail", "1:4", "--join", "1:5", "--unstreamed", "0.5"]
    more = ["--cache-tokens", "20000", "--told", "0", "--block-size", "64", "--hardware", "l40-8b,h100-8b"]
    one = ["--policies", "lbgr", "--orders", "lru+gix", "--seeds", "1", "--json"]
    status, out, _ = run(capsys, *FEW, *one, *flags, *more)
    assert status == 0
    (row,) = rows_of(out)
    (usual,) = rows_of(run(capsys, *FEW, *one)[1])
    assert row["order"] == "lru+gix"
    assert row["mean_s"] != usual["mean_s"]


def test_options_of_the_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FEW, "--policies", "lbgr", "--orders", "lru", "--seeds", "1", "--json"]
    (usual,) = rows_of(run(capsys, *flags)[1])
    (other,) = rows_of(run(capsys, *flags, "--set", "lbgr-imposed-prefill=50")[1])
    assert usual["mean_s"] != other["mean_s"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workload", "gps"], "option 'workload' = 'gps': expected some of gsp, "),
        (["--policies", "best"], "option 'policies' = 'best': expected some of lbgr, "),
        (["--orders", "lru,fifo"], "option 'orders' = 'fifo': expected some of lru, "),
        (["--orders", "lru+"], "option 'orders' = ''"),
        (["--rate", "0"], "option 'rate' = '0': expected a number of at least"),
        (["--rate", "fast"], "option 'rate' = 'fast'"),
        (["--engines", "257"], "option 'engines' = '257': expected an integer of at least 1 and at most 256"),
        (["--hardware", "tpu"], "option 'hardware' = 'tpu': expected some of l40-8b, "),
        (["--slow", "2:2"], "option 'slow' = '2': expected an integer of at least 0 and at most 1"),
        (["--slow", "1:0"], "option 'slow' = '0': expected a number"),
        (["--degrade", "1:2:3"], "option 'degrade' = '1:2:3': expected ENGINE:FACTOR:FROM:TO"),
        (["--fail", "1"], "option 'fail' = '1': expected ENGINE:AT"),
        (["--set", "lbgr_weight=1"], "option 'set' = 'lbgr_weight=1': expected NAME=VALUE"),
        (["--set", "policy=random"], "option 'set' = 'policy=random'"),
        (["--set", "lbgr_imposed_prefill=x"], "option 'lbgr_imposed_prefill' = 'x': expected a number"),
        (["--unstreamed", "2"], "option 'unstreamed' = '2'"),
        (["--seeds", "0"], "option 'seeds' = '0'"),
        (["--trace", "none.jsonl"], "option 'trace' = 'none.jsonl': expected a file"),
        (["--plot", "figure.txt"], "option 'plot' = 'figure.txt'"),
    ],
)
def test_wrong_flags(capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    status, out, err = run(capsys, *FEW, *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"leafcutter: {said}")
    assert err.count("\n") == 1


def test_missing_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
    assert "at least one value (--rate)" in run(capsys, "--workload", "gsp")[2]


def test_a_block_that_does_not_divide_a_trace(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    status, _, err = run(capsys, "--trace", trace, "--block-size", "100")
    assert status == 2
    assert "a divisor of 512" in err


def test_a_trace_without_lengths(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("1 2 3\n")
    status, _, err = run(capsys, "--trace", str(path))
    assert status == 2
    assert "no times or lengths in request 1" in err


def test_nothing_answered(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, *FEW, "--cache-tokens", "200", "--policies", "lbgr")
    assert status == 1
    assert "no request that counts was answered" in err


def test_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figure.png"
    assert run(capsys, *FEW, "--policies", "random", "--seeds", "1", "--plot", str(file))[0] == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_as_a_command() -> None:
    flags = [*FEW, "--policies", "least-loaded", "--orders", "rlt", "--seeds", "1", "--json"]
    command = [sys.executable, "-m", "router", "simulate", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["policy"] == "least_loaded"
    assert done.stderr == ""
