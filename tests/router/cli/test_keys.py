from __future__ import annotations

from hashlib import sha256

import pytest

from router.cli.main import main
from router.config import configure
from router.gateway.access import Access
from router.gateway.key_file import parse


def made(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The key and the line that the command prints."""
    assert main(["keys", "new", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[2].strip(), lines[-1]


@pytest.mark.parametrize("name", ["team-a", "1.5", "null", "yes", "a" * 64])
def test_a_new_key_opens_the_gateway_by_its_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    key, line = made(name, capsys)
    (entry,) = parse(line, "here")
    assert entry.name == name
    assert key not in line
    assert sha256(key.encode()).digest() in entry.digests
    access = Access.of(configure(client_keys=f"[{line.removeprefix('- ')}]").server)
    found = access.find([(b"x-api-key", key.encode())])
    assert found is not None
    assert found.name == name


def test_no_two_keys_are_equal_and_none_can_be_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {made("a", capsys)[0] for _ in range(20)}
    assert len(keys) == 20
    assert {len(key) for key in keys} == {3 + 43}  # 256 bits


@pytest.mark.parametrize("name", ["", "a b", "a: b", "a}", '"', "ü", "a" * 65, "admin", "api-key"])
def test_a_name_that_cannot_be_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lc-" not in captured.err
