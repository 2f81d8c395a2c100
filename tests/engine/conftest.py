"""Two real engines behind a real gateway, started once for all tests of this folder by `leafcutter up` itself."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from router.engines.probe import samples

START_S = 420
BLOCKS, BLOCK_SIZE = 96, 32  # a cache of about 3,000 tokens, so that the tests reach eviction


@dataclass(frozen=True)
class Stack:
    """Base URLs of everything that runs, and the process that runs it."""

    gateway: str
    engines: list[str]
    states: list[str]
    up: subprocess.Popen[bytes]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gateway}/v1", api_key="none", max_retries=0, timeout=120)

    def workers(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = httpx.get(f"{self.gateway}/workers", verify=False).raise_for_status().json()
        return found

    def engine_metric(self, index: int, name: str) -> float:
        """The value of a metric of vLLM's own on one engine."""
        page = httpx.get(f"{self.engines[index]}/metrics", verify=False).raise_for_status().text
        return samples(page, name)[name][1]

    def state(self, index: int, name: str) -> float:
        """The value of a metric of the eviction plugin on one engine."""
        page = httpx.get(f"{self.states[index]}/metrics", verify=False).raise_for_status().text
        return samples(page, name)[name][1]

    def pid(self, index: int) -> int:
        """The process of one engine, found by its port among the children of `leafcutter up`."""
        port = self.engines[index].rsplit(":", 1)[1]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.up.pid and port.encode() in command:
                return int(entry.name)
        raise AssertionError(f"no engine process for port {port}")


def eventually(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Waits until `condition` holds; fails with `what` if it does not within `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


def free_ports() -> tuple[int, int]:
    """A port for the gateway and the first of two for the engines, whose state ports (+1000) are free too.

    They lie below those that Linux gives to clients: the connections of other tests could take one before it is used.
    """
    for _ in range(100):
        base = random.randrange(20000, 31000)
        wanted = [base, base + 1, base + 2, base + 1001, base + 1002]
        try:
            for port in wanted:
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base, base + 1
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    port, first = free_ports()
    folder = tmp_path_factory.mktemp("up")
    command = [sys.executable, "-m", "router", "up", "--engines", "2", "--port", str(port), "--engine-port", str(first)]
    command += ["--num-gpu-blocks", str(BLOCKS), "--block-size", str(BLOCK_SIZE), "--max-model-len", "2048"]
    command += ["--lbgr-cold-samples", "0", "--eviction-seed", "1", "--seed", "1"]
    command += ["--log-dir", str(folder), "--health-check-interval-secs", "1"]
    options = folder / "up.yaml"  # arguments that begin with a dash are no values of a flag
    # In single precision, which a core without instructions for half precision multiplies several times faster.
    options.write_text("engine_args: [--enable-auto-tool-choice, --tool-call-parser, hermes, --dtype, float32]\n")
    command += ["--config", str(options)]
    log = folder / "up.log"
    # The tests' own settings of the environment must not reach the command.
    env = {key: value for key, value in os.environ.items() if not key.startswith("LEAFCUTTER_")}
    with log.open("wb") as out:
        up = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    found = Stack(
        gateway=f"http://127.0.0.1:{port}",
        engines=[f"http://127.0.0.1:{first + index}" for index in range(2)],
        states=[f"http://127.0.0.1:{first + 1000 + index}" for index in range(2)],
        up=up,
    )
    try:
        _wait_ready(found, log)
        yield found
    finally:
        up.send_signal(signal.SIGINT)
        try:
            up.wait(40)
        finally:
            up.kill()
    assert up.returncode == 0, log.read_text()[-2000:]
    assert re.search("stopping 2 engines", log.read_text())


def _wait_ready(stack: Stack, log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        assert stack.up.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < end, log.read_text()[-4000:]
        try:
            answer = httpx.get(f"{stack.gateway}/readiness", verify=False)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.is_success and answer.json()["healthy_workers"] == 2:
            return
        time.sleep(0.5)
