"""Every query of the dashboard names metrics that a real run exposes."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.engine.conftest import Stack
from tests.support.deploy_files import metrics, queries

pytestmark = pytest.mark.engine

# A labelled metric that nothing has happened to yet (no retry so far) shows its type alone.
NAME = re.compile(r"^(?:# TYPE )?([a-zA-Z_:][\w:]*)", re.MULTILINE)


def test_the_dashboard_asks_for_what_is_there(stack: Stack) -> None:
    model = stack.client().models.list().data[0].id
    for _ in range(4):
        stream = stack.client().completions.create(model=model, prompt="One two", max_tokens=4, stream=True)
        assert list(stream)
    pages = [f"{url}/metrics" for url in (stack.gateway, *stack.engines, *stack.states)]
    shown = {name for page in pages for name in NAME.findall(httpx.get(page).raise_for_status().text)}
    missing = {(title, name) for title, query in queries() for name in metrics(query) - shown}
    assert not missing
