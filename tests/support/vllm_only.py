"""A pytest plugin for a run over another vLLM (`-p tests.support.vllm_only --vllm FOLDER`).

Keeps the tests that use the fixture `host`, and makes sure that the vLLM they see is the one in that folder.
"""

from pathlib import Path

import pytest

from engine_patches.host_interface import Host


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm", metavar="FOLDER", required=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if isinstance(item, pytest.Function) and "host" in item.fixturenames]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def _from_that_folder(request: pytest.FixtureRequest) -> None:
    # Not an argument: pytest would count the fixture to those of every test, and none would be left out.
    host: Host = request.getfixturevalue("host")
    for module in (host.coordinator, host.block_pool, host.kv_cache_utils):
        assert module.__file__
        assert Path(module.__file__).is_relative_to(request.config.getoption("--vllm"))
