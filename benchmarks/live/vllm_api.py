"""What the live benchmarks ask of vLLM engines themselves, past the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from router.engines.probe import samples

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class PrefixCacheCounters:
    """Tokens that were looked up in the prefix caches of some engines so far, and those of them that were found."""

    queries: float
    hits: float

    def hit_rate_since(self, before: PrefixCacheCounters) -> float:
        return (self.hits - before.hits) / (self.queries - before.queries)


async def prefix_cache_counters(urls: Sequence[str]) -> PrefixCacheCounters:
    """The sums over the engines at `urls`. Raises httpx.HTTPError."""
    queries = hits = 0.0
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        for url in urls:
            page = samples((await client.get(f"{url}/metrics")).text, "vllm:prefix_cache_")
            queries += page["vllm:prefix_cache_queries_total"][1]
            hits += page["vllm:prefix_cache_hits_total"][1]
    return PrefixCacheCounters(queries, hits)


async def reset_prefix_caches(urls: Sequence[str]) -> None:
    """Empty the engines' caches; they run with VLLM_SERVER_DEV_MODE=1. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        for url in urls:
            (await client.post(f"{url}/reset_prefix_cache")).raise_for_status()


async def model_name(url: str) -> str:
    """The name of the first model that the engine serves. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        name: str = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
        return name
