"""`leafcutter bench eviction`, in this process and as a command."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router.cli.main import main
from router.sim.eviction.sweep import ORDER_CHOICES

KEYS = ["trace", "capacity", "order", "hit_rate", "hit_rate_min", "hit_rate_max", "us_per_access", "fallback_share"]


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of the command."""
    status = main(["bench", "eviction", *flags])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.txt.gz"
    path.write_bytes(gzip.compress(b"1 2 3\n1 4\n5 6\n1 4\n1 2 3\n"))
    return str(path)


def test_table(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    status, out, err = run(capsys, "--trace", trace, "--capacity", "4", "--orders", "rlt", "--seeds", "2")
    head, rule, line = out.splitlines()
    assert (status, err) == (0, "")
    assert "/ lru" in head
    assert "/ opt" in head
    assert set(rule) == set("|-:")
    assert [cell.strip() for cell in line.strip("|").split("|")][:3] == [trace, "4", "rlt"]


def test_all_orders_by_default(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    _, out, _ = run(capsys, "--trace", trace, "--capacity", "4,5")
    shown = [line.split("|")[3].strip() for line in out.splitlines()[2:]]
    assert shown == [*ORDER_CHOICES, *ORDER_CHOICES]


def test_json(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    flags = ["--trace", trace, "--workload", "gsp", "--requests", "4", "--capacity", "4", "--capacity", "9"]
    status, out, _ = run(capsys, *flags, "--orders", "lru,rlt", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert all(list(row) == KEYS for row in rows)
    assert [(row["trace"], row["capacity"], row["order"]) for row in rows] == [
        (name, capacity, order) for name in (trace, "gsp") for capacity in (4, 9) for order in ("lru", "rlt")
    ]
    assert rows[0]["hit_rate"] == 3 / 9  # the first four requests


def test_a_repeated_value(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    _, out, _ = run(capsys, "--trace", trace, "--trace", trace, "--capacity", "4,4", "--orders", "rlt,rlt", "--json")
    assert len(out.splitlines()) == 1


def test_a_file_whose_name_holds_a_comma(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    path.write_text("1 2\n")
    _, out, _ = run(capsys, "--trace", str(path), "--capacity", "4", "--orders", "lru", "--json")
    assert json.loads(out)["trace"] == str(path)


def test_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workload", "cyclic", "--requests", "1300", "--capacity", "10000", "--orders", "rlt", "--json"]
    rates = []
    for seeds in ("3,", "7,", "3,7"):
        _, out, _ = run(capsys, *flags, "--seeds", seeds)
        rates.append(json.loads(out))
    assert rates[2]["hit_rate_max"] == max(rates[0]["hit_rate"], rates[1]["hit_rate"])
    assert rates[2]["hit_rate_min"] == min(rates[0]["hit_rate"], rates[1]["hit_rate"])


def test_workload_seed(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workload", "gsp", "--requests", "200", "--capacity", "5000", "--orders", "lru", "--json"]
    rates = {run(capsys, *flags, "--workload-seed", seed)[1].partition("hit_rate")[2].split(",")[0] for seed in "012"}
    assert len(rates) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--orders", "lru,fifo"], "'fifo': expected some of lru, rlt"),
        (["--capacity", "0"], "'0': expected an integer of at least 1"),
        (["--capacity", "ten"], "'ten': expected an integer"),
        (["--capacity", "1e3"], "'1e3': expected an integer"),
        (["--capacity", "9" * 30], "at most"),
        (["--trace", "none.txt"], "'none.txt': expected a file, or a workload: gsp"),
        (["--trace", "."], "'.': expected a file"),
        (["--workload", "gps"], "'gps': expected one of gsp"),
        (["--seeds", "0"], "'0': expected an integer of at least 1"),
        (["--seeds", "a,b"], "'a': expected an integer"),
        (["--seeds", "-1"], "expected an integer"),
        (["--requests", "0"], "expected an integer"),
        (["--jobs", "0"], "expected an integer"),
        (["--workload-seed", "x"], "expected an integer"),
        (["--plot", "figure.txt"], "'figure.txt': expected a file"),
    ],
)
def test_wrong_flags(capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    status, out, err = run(capsys, "--workload", "gsp", "--requests", "2", "--capacity", "10", *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"leafcutter: option '{flags[0][2:]}' = ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--capacity", "10"], ["--workload", "gsp"]])
def test_missing_flags(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    status, _, err = run(capsys, *flags)
    assert status == 2
    assert "at least one" in err or "a file, or a workload" in err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_malformed_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, jobs: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("1 2\n\n3 four\n")
    status, out, err = run(capsys, "--trace", str(path), "--capacity", "4", "--jobs", jobs)
    assert (status, out) == (2, "")
    assert err.startswith(f"leafcutter: trace {path}, line 3: found 'four'; expected ")


def test_plot(capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path) -> None:
    file = tmp_path / "figure.svg"
    status, out, _ = run(capsys, "--trace", trace, "--capacity", "2,4", "--orders", "lru,opt", "--plot", str(file))
    assert (status, len(out.splitlines())) == (0, 6)
    assert b"</svg>" in file.read_bytes()


def test_bench_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    assert "eviction" in capsys.readouterr().out


COMMAND = [sys.executable, "-m", "router", "bench", "eviction"]


def test_as_a_command(trace: str) -> None:
    flags = ["--trace", trace, "--capacity", "4", "--orders", "lru", "--json"]
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["hit_rate"] == 4 / 12
    assert done.stderr == ""


def test_a_reader_that_leaves() -> None:
    flags = ["--workload", "gsp", "--requests", "1000000000", "--capacity", "4", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    flags[3] = "3"
    done = subprocess.run([*COMMAND, *flags], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for processes in /proc")
@pytest.mark.parametrize(("signals", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_child_is_left(signals: signal.Signals, status: int) -> None:
    flags = ["--workload", "cyclic", "--requests", "1000000000", "--capacity", "9", "--orders", "lru,rlt"]
    flags += ["--jobs", "2"]
    process = subprocess.Popen(
        [*COMMAND, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while len(found := children(process.pid)) < 3 and time.monotonic() < deadline:  # two, and their tracker
            time.sleep(0.05)
        assert len(found) == 3
        time.sleep(1.0)  # until they work
        process.send_signal(signals)
        _, err = process.communicate(timeout=30)
        assert process.returncode == status
        assert "Traceback" not in err
        while any(map(is_running, found)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, found))
    finally:
        process.kill()
        process.wait()


AGENTS = {
    "block": 64,
    "threads": [[-1, [[0, 6400, 5, 1.0, 0, 1, 0, [[1, 100]]], [9, 6500, 5, 1.0, 9.0, 2, 100, [[200, 1]]]]]],
}


@pytest.fixture
def agents(tmp_path: Path) -> str:
    path = tmp_path / "agents.jsonl"
    path.write_text((json.dumps(AGENTS) + "\n") * 6)
    return str(path)


def test_a_trace_of_agents(capsys: pytest.CaptureFixture[str], agents: str) -> None:
    flags = ["--trace", agents, "--users", "2,3", "--think-cap", "60", "--capacity", "100", "--orders", "lru", "--json"]
    status, out, _ = run(capsys, *flags)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["trace"] for row in rows] == [f"{agents} x2", f"{agents} x3"]
    assert all(row["hit_rate"] == 0.5 for row in rows)  # 25 blocks each time; all second ones hit


@pytest.mark.parametrize("mode", ["off", "alone", "on", "shuffled"])
def test_hints(capsys: pytest.CaptureFixture[str], agents: str, mode: str) -> None:
    flags = ["--trace", agents, "--capacity", "40", "--orders", "rlt_gix", "--hints", mode, "--json"]
    status, out, _ = run(capsys, *flags)
    assert status == 0
    assert json.loads(out)["order"] == "rlt_gix"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--users", "0"], "option 'users' = '0': expected an integer of at least 1"),
        (["--think-cap", "-1"], "option 'think-cap' = '-1': expected a number of at least 0"),
        (["--hints", "maybe"], "option 'hints' = 'maybe': expected one of off, alone, on, shuffled"),
    ],
)
def test_flags_of_agents_that_cannot_be(
    capsys: pytest.CaptureFixture[str], agents: str, flags: list[str], said: str
) -> None:
    status, _, err = run(capsys, "--trace", agents, "--capacity", "40", *flags)
    assert status == 2
    assert said in err
