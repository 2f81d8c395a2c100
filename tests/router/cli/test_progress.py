"""The progress line."""

import io
import time

import pytest

from router.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal, file = Terminal(), io.StringIO()
    on_terminal, on_file = Progress(terminal), Progress(file)
    for progress in (on_terminal, on_file):
        progress.show([0.1, 0.0])
        progress.clear()
    assert terminal.getvalue() == ""  # short runs stay silent
    now[0] = 30.0
    for progress in (on_terminal, on_file):
        progress.show([1.0, 0.5])
        progress.show([1.0, 0.6])
        progress.clear()
    assert file.getvalue() == ""
    assert terminal.getvalue() == "\r\x1b[K[##################......] 1 of 2 runs, 10 s left\r\x1b[K"
