"""The real vLLM as a fixture: its block pool is plain Python and needs no device."""

import warnings
from collections.abc import Iterator

import pytest

from engine_patches.host_interface import Host


@pytest.fixture(scope="session")
def host() -> Host:
    """Skips where vLLM is not installed. The import takes seconds and warns about things that are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vllm = pytest.importorskip("vllm", exc_type=ImportError)
        from vllm.v1.core import block_pool, kv_cache_coordinator, kv_cache_manager, kv_cache_utils

        assert kv_cache_manager
    return Host(vllm.__version__, kv_cache_coordinator, block_pool, kv_cache_utils)


@pytest.fixture
def unpatched(host: Host) -> Iterator[Host]:
    """The host, put back afterwards as it was."""
    own = host.coordinator.BlockPool
    yield host
    host.coordinator.BlockPool = own  # type: ignore[attr-defined]  # of a module that mypy does not read
