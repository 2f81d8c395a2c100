"""Noticing that files have changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.gateway.file_watch import stamp, watch
from tests.support.gateway_server import until


async def test_a_file_is_loaded_when_it_comes_changes_and_goes(tmp_path: Path) -> None:
    path, loads = tmp_path / "file", list[bool]()
    task = asyncio.create_task(watch([str(path)], stamp([str(path)]), lambda: loads.append(path.exists()), look_s=0.01))
    path.write_text("1")
    await until(lambda: loads == [True])
    path.write_text("22")
    await until(lambda: loads == [True, True])
    path.unlink()
    await until(lambda: loads == [True, True, False])
    task.cancel()


async def test_what_cannot_be_loaded_is_said_and_the_watch_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, loads = tmp_path / "file", 0

    def load() -> None:
        nonlocal loads
        loads += 1
        raise ConfigError("key", path.read_text(), "something else")

    task = asyncio.create_task(watch([str(path)], stamp([str(path)]), load, look_s=0.01))
    for n in (1, 22):
        path.write_text(str(n))
        await until(lambda n=n: f"'key' = '{n}'" in caplog.text)  # type: ignore[misc]
    assert loads == 2
    task.cancel()
