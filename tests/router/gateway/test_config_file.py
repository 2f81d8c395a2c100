"""The file of options, followed while the gateway runs."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.gateway import config_file, file_watch
from router.gateway.config_file import ConfigFile, following
from tests.support.gateway_server import until

A, B = "http://a:1", "http://b:1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "options.yaml"
    file.write_text(f"worker_urls: [{A}]\nport: 1234\n")
    return file


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, look_s = file_watch.watch, 0.01
    monkeypatch.setattr(config_file, "watch", lambda *arguments: watch(*arguments, look_s=look_s))


def started(path: Path, **flags: object) -> ConfigFile:
    return ConfigFile.at_start(str(path), {}, flags)


def reloaded(file: ConfigFile) -> list[list[str]]:
    """The lists that one reload takes up: one or none."""
    lists: list[list[str]] = []
    file.reload(lists.append)
    return lists


def test_the_list_of_engines_is_taken_up(path: Path) -> None:
    file = started(path)
    path.write_text(f"worker_urls: [{A}, 'HTTP://B:1/']\nport: 1234\n")
    assert reloaded(file) == [[A, B]]
    assert reloaded(pickle.loads(pickle.dumps(file))) == [[A, B]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"worker_urls: [{A}, {A}/]", "option 'worker_urls' = 'http://a:1/': expected every engine once"),
        (f"worker_urls: [{A}, b]", "option 'worker_urls' = 'b': expected a base URL"),
        ("worker_urls: []", "expected at least one engine"),
        ("port: 1", "expected at least one engine"),
        (f"worker_urls: [{A}]\nport: high", "option 'port' = 'high': expected an integer"),
        (f"worker_urls: [{A}]\nprot: 1", "expected a known option; did you mean 'port'?"),
        ("worker_urls: [", "expected valid YAML"),
        ("- a", "expected a mapping"),
        ("a: " + "[" * 9000, "expected valid YAML"),
        ("port: 2024-99-99", "expected valid YAML"),
        ("\udcff", "expected valid YAML"),
        (None, "expected a readable file (No such file or directory)"),
    ],
)
def test_a_file_that_is_broken_changes_nothing(
    text: str | None, words: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = started(path)
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert reloaded(file) == []
    (message,) = caplog.messages
    assert message.startswith(f"{path} is not taken up, and nothing changes: option ")
    assert words in message


def test_other_options_that_have_changed_need_a_restart(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = started(path)
    path.write_text(f"worker_urls: [{B}]\nport: 99\npolicy: lmetric\nlbgr_objective: slo\n")
    assert reloaded(file) == [[B]]
    assert "take effect with a restart: port, policy, lbgr_objective" in caplog.text
    caplog.clear()
    path.write_text(f"worker_urls: [{B}]\nport: 1234\n")
    reloaded(file)
    assert "restart" not in caplog.text, "they are compared with what runs"


def test_a_flag_and_the_environment_win_over_the_file_as_at_the_start(path: Path) -> None:
    path.write_text(f"worker_urls: [{B}]\n")
    assert reloaded(started(path, worker_urls=[A])) == [[A]]
    file = ConfigFile.at_start(str(path), {"LEAFCUTTER_WORKER_URLS": A, "HOME": "/"}, {})
    assert "HOME" not in file.env
    assert reloaded(file) == [[A]]


def test_a_bad_file_stops_the_start(path: Path) -> None:
    path.write_text("port: high")
    with pytest.raises(ConfigError, match="port"):
        started(path)


async def test_an_edit_is_noticed_once(path: Path, quick: None) -> None:
    lists: list[list[str]] = []
    with following(started(path), lists.append):
        path.write_text(f"worker_urls: [{A}, {B}]\n")
        await until(lambda: len(lists) == 1)
        await asyncio.sleep(0.05)
        path.write_text("worker_urls: [\n")
        await asyncio.sleep(0.05)
        path.write_text(f"worker_urls: [{B}]\n")
        await until(lambda: len(lists) == 2)
    assert lists == [[A, B], [B]]


async def test_an_edit_from_between_the_start_and_the_watch_is_noticed(path: Path, quick: None) -> None:
    file, lists = started(path), list[list[str]]()
    path.write_text(f"worker_urls: [{A}, {B}]\n")
    with following(file, lists.append):
        await until(lambda: lists == [[A, B]])


async def test_a_config_map_is_followed_through_its_links(tmp_path: Path, quick: None) -> None:
    """As Kubernetes mounts one: the file is a link into a folder that is a link, which is replaced."""
    for version, urls in (("v1", A), ("v2", f"{A}, {B}")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "options.yaml").write_text(f"worker_urls: [{urls}]\n")
    (tmp_path / "data").symlink_to("v1")
    path = tmp_path / "options.yaml"
    path.symlink_to("data/options.yaml")
    lists: list[list[str]] = []
    with following(started(path), lists.append):
        (tmp_path / "fresh").symlink_to("v2")
        os.replace(tmp_path / "fresh", tmp_path / "data")
        await until(lambda: lists == [[A, B]])


async def test_sighup_reads_the_file_at_once_and_is_given_back_afterwards(path: Path) -> None:
    lists: list[list[str]] = []
    before = signal.getsignal(signal.SIGHUP)
    with following(started(path), lists.append) as reload:
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: lists == [[A]])
        reload()
        assert lists == [[A], [A]]
    assert signal.getsignal(signal.SIGHUP) == before
    with following(started(path), lists.append, signals=False):
        assert signal.getsignal(signal.SIGHUP) == before
