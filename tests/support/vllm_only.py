"""A pytest plugin for a run over another vLLM (`-p tests.support.vllm_only --vllm FOLDER`).

Keeps the tests that use the fixture `host`, and makes sure that the vLLM they see is the one in that folder.
"""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--vllm", metavar="FOLDER", required=True)


def pytest_collection_modifyitems(config, items):
    chosen = [item for item in items if "host" in item.fixturenames]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def _from_that_folder(host, request):
    for module in (host.coordinator, host.block_pool, host.kv_cache_utils):
        assert Path(module.__file__).is_relative_to(request.config.getoption("--vllm"))
