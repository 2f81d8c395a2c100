"""`leafcutter up`: engines and gateway live and end together."""

import asyncio
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from router.config import Config, UpConfig, configure_up
from router.engines.launch import Launch, plan
from router.engines.up import check_ports, gpus_of, run
from router.errors import SetupError
from tests.router.engines.test_launch import alive, gone, launch


async def until_cancelled(config: Config) -> None:
    await asyncio.Event().wait()


def pid_in(log: Path) -> int:
    """The number of the last child that an engine's log tells of."""
    return int(re.findall(r"^child (\d+)$", log.read_text(), re.MULTILINE)[-1])


async def test_the_gateway_gets_the_engines_and_they_end_with_it(tmp_path: Path, unused_tcp_port: int) -> None:
    one = launch(tmp_path, unused_tcp_port)
    seen: list[tuple[str, ...]] = []

    async def serve(config: Config) -> None:
        seen.append(config.engines.worker_urls)

    await run(UpConfig(), [one], serve)
    assert seen == [(one.url,)]
    assert await gone(pid_in(one.log_file))


async def test_one_engine_that_fails_to_start_ends_the_others(tmp_path: Path, unused_tcp_port: int) -> None:
    good = launch(tmp_path, unused_tcp_port)
    bad = Launch("engine-1", 1, ("false",), {}, tmp_path / "engine-1.log", alone=True)
    with pytest.raises(SetupError, match="engine-1 ended with status 1"):
        await run(UpConfig(), [good, bad], until_cancelled)
    assert await gone(pid_in(good.log_file))


async def test_ctrl_c_while_starting_stops_what_was_started(tmp_path: Path, unused_tcp_port: int) -> None:
    slow = launch(tmp_path, unused_tcp_port, "import time; print('child', __import__('os').getpid(), flush=True);"
                  "time.sleep(600)")  # fmt: skip
    running = asyncio.create_task(run(UpConfig(), [slow], until_cancelled))
    while not slow.log_file.exists() or "\nchild" not in slow.log_file.read_text():
        await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 20)
    assert not alive(pid_in(slow.log_file))


async def test_ctrl_c_before_the_server_takes_the_signals_over_ends_it_too(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    one = launch(tmp_path, unused_tcp_port)

    async def serve(config: Config) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await until_cancelled(config)

    await asyncio.wait_for(run(UpConfig(), [one], serve), 20)
    assert await gone(pid_in(one.log_file))


async def test_an_engine_that_dies_is_started_again(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.engines.up.RESTART_S", (0.01, 0.1))
    one = launch(tmp_path, unused_tcp_port)
    restarted = []

    async def serve(config: Config) -> None:
        first = pid_in(one.log_file)
        os.killpg(os.getpgid(first), signal.SIGKILL)
        while pid_in(one.log_file) == first:
            await asyncio.sleep(0.02)
        restarted.append(pid_in(one.log_file))

    await asyncio.wait_for(run(UpConfig(), [one], serve), 30)
    assert await gone(restarted[0])


def test_gpus_are_used_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.engines.up.count_gpus", lambda: 2)
    assert [gpus_of(configure_up(hardware=hardware)) for hardware in ("auto", "cuda", "cpu")] == [2, 2, 0]
    monkeypatch.setattr("router.engines.up.count_gpus", lambda: 0)
    assert gpus_of(UpConfig()) == 0
    with pytest.raises(SetupError, match="lists no GPU"):
        gpus_of(configure_up(hardware="cuda"))


def test_a_port_in_use_is_named_with_its_flag(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        config = configure_up(port=0, engine_port=port)
        with pytest.raises(SetupError, match=rf"127.0.0.1:{port} .*--engine-port"):
            check_ports(config, plan(config, str(tmp_path), gpus=0, cores=[0]))
