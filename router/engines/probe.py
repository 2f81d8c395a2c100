"""The probe of an engine: what it reports of itself over HTTP, its models, version, cache and eviction order.

It reads three places: the OpenAI server (`/v1/models`, `/version`), its Prometheus page (`vllm:cache_config_info`), and
the eviction plugin's own page on the state port (`leafcutter_engine_*`), which an engine without the plugin lacks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

import httpx

from router.config import Config
from router.core.worker_url import split_address
from router.types import EngineInfo

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
_RANK = re.compile(r'[{,]engine="(\d{1,4})"')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def state_url(url: str, offset: int) -> str | None:
    """Return the address of the plugin's page of the engine at `url`: its host, and its port plus `offset`.

    Return None if that is no port.
    """
    parts = urlsplit(url)
    port = (parts.port or {"https": 443}.get(parts.scheme, 80)) + offset
    if not 1 <= port <= 65535:
        return None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit(("http", f"{host}:{port}", "/metrics", "", ""))


def samples(page: str, prefix: str) -> dict[str, tuple[dict[str, str], float]]:
    """Return the labels and the value of each sample of a Prometheus page whose name starts with `prefix`, by name.

    Of several samples of one name the last one is returned. An engine's page has thousands of lines of which only a few
    matter here, so the others are not parsed.
    """
    found = {}
    for line in page.splitlines():
        if line.startswith(prefix) and (match := _SAMPLE.match(line)):
            found[match["name"]] = (dict(_LABEL.findall(match["labels"] or "")), float(match["value"]))
    return found


def open_client(config: Config) -> httpx.AsyncClient:
    """Return the client that asks engines, with their key if they have one. It waits `health_check_timeout_secs`."""
    headers = {"authorization": f"Bearer {config.engines.worker_api_key}"} if config.engines.worker_api_key else {}
    return httpx.AsyncClient(timeout=config.engines.health_check_timeout_secs, headers=headers)


async def healthy(client: httpx.AsyncClient, url: str) -> bool:
    """Whether the engine answers `/health` with success within the client's timeout."""
    try:
        return (await client.get(f"{url}/health")).is_success
    except httpx.HTTPError:
        return False


async def computes(client: httpx.AsyncClient, address: str, models: Sequence[str], timeout_s: float) -> bool:
    """Whether the engine at an address (`core.worker_url`) still computes: it answers a request for one token in time.
    An engine that refuses the request, as one that only embeds does, has answered."""
    url, rank = split_address(address)
    headers = {} if rank is None else {"x-data-parallel-rank": str(rank)}
    asked = {"model": models[0] if models else "", "prompt": "Hi", "max_tokens": 1}
    try:
        async with asyncio.timeout(timeout_s):
            answer = await client.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=timeout_s)
            return answer.status_code < 500
    except (httpx.HTTPError, TimeoutError):
        return False


async def read_ranks(client: httpx.AsyncClient, url: str) -> tuple[int, ...]:
    """The data-parallel ranks that the server at `url` reports, rising; empty if it tells none.

    vLLM has a line for each rank on its page of metrics, even if there is one rank only.
    """
    page = await _text(client, f"{url}/metrics")
    labels = (_RANK.search(line) for line in page.splitlines() if line.startswith("vllm:cache_config_info{"))
    return tuple(sorted({int(found[1]) for found in labels if found}))


async def read_info(client: httpx.AsyncClient, url: str, state: str | None) -> EngineInfo:
    """Return all that the engine at `url` reports; `state` is the address of its plugin's page. What it does not report
    is None.

    `/v1/models` is required: raises httpx.HTTPError if it is not answered, and KeyError or ValueError if its answer is
    not that of an OpenAI server.
    """
    answer = await client.get(f"{url}/v1/models")
    answer.raise_for_status()
    models = tuple(model["id"] for model in answer.json()["data"])
    version = await _optional(client, f"{url}/version")
    config, _ = samples(await _text(client, f"{url}/metrics"), "vllm:cache_config_info").get(
        "vllm:cache_config_info", ({}, 0.0)
    )
    page = samples(await _text(client, state), "leafcutter_engine_") if state else {}
    plugin, _ = page.get("leafcutter_engine_info", ({}, 0.0))
    capacity = page.get("leafcutter_engine_capacity_blocks")
    return EngineInfo(
        models=models,
        order=plugin.get("order"),
        block_size=_whole(config.get("block_size")),
        # Without the plugin the size is that of the pool less one block, which is vLLM's own placeholder.
        capacity_blocks=int(capacity[1]) if capacity else _less_one(_whole(config.get("num_gpu_blocks"))),
        plugin_version=plugin.get("plugin_version"),
        vllm_version=plugin.get("vllm_version") or (version.json().get("version") if version else None),
    )


async def _optional(client: httpx.AsyncClient, url: str) -> httpx.Response | None:
    try:
        answer = await client.get(url)
    except httpx.HTTPError:
        return None
    return answer if answer.is_success else None


async def _text(client: httpx.AsyncClient, url: str) -> str:
    answer = await _optional(client, url)
    return answer.text if answer else ""


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _less_one(count: int | None) -> int | None:
    return None if count is None else count - 1
