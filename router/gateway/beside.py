"""Work that goes on as long as a context."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def beside(work: Coroutine[Any, Any, NoReturn]) -> Iterator[None]:
    """Run `work` beside the context."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
