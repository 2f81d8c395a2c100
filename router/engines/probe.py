"""The probe of an engine: what it reports of itself over HTTP, its models, version, cache and eviction order.

It reads three places: the OpenAI server (`/v1/models`, `/version`), its Prometheus page (`vllm:cache_config_info`), and
the eviction plugin's own page on the state port (`leafcutter_engine_*`), which an engine without the plugin lacks.

What an engine says is input, as what a client says is. An answer has a total time and a total size, is never followed
to another address and never decompressed. If it cannot be used, `BadAnswer` says why in words. A fact that cannot be
true is left out, and `Report.oddities` names it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx

from router import descriptors
from router.config import Config
from router.core.worker_url import split_address
from router.tls import engine_context
from router.types import EngineInfo

MOST_BYTES = 1 << 21  # of one answer; reading it takes some 20 ms
MOST_MODELS, NAME_CHARS = 4096, 1024
MOST_BLOCKS, MOST_BLOCK_SIZE = 1 << 32, 1 << 20
MOST_LINE = 1 << 14  # a longer line of a Prometheus page is none of those that are read

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'\b(\w++)="((?:[^"\\]|\\.)*+)"')  # it never goes back, so that no page takes long
_RANK = re.compile(r'[{,]engine="(\d{1,4})"', re.ASCII)
_WORD = re.compile(r"[\w.+!~-]{1,128}", re.ASCII)  # an order, a version


class BadAnswer(Exception):
    """The engine cannot be used as it answers. The message says why, for people.

    kind: the same for all answers that are bad in this way. ours: it was this machine that had no file descriptor left,
    which says nothing about the engine.
    """

    def __init__(self, kind: str, words: str, *, ours: bool = False) -> None:
        super().__init__(words)
        self.kind, self.ours = kind, ours


class Report(NamedTuple):
    """What an engine reports, and what of it could not be true, in words."""

    info: EngineInfo
    oddities: tuple[str, ...] = ()


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
    matter here, so the others are not parsed. A value that is no number is nan.
    """
    found = {}
    for line in page.splitlines():
        if line.startswith(prefix) and len(line) <= MOST_LINE and (match := _SAMPLE.match(line)):
            found[match["name"]] = (dict(_LABEL.findall(match["labels"] or "")), _float(match["value"]))
    return found


def open_client(config: Config) -> httpx.AsyncClient:
    """Return the client that asks engines, with their key if they have one.

    An answer has `health_check_timeout_secs` in all. Cookies of engines are not kept.
    """
    headers = {"authorization": f"Bearer {config.engines.worker_api_key}"} if config.engines.worker_api_key else {}
    return httpx.AsyncClient(
        timeout=config.engines.health_check_timeout_secs,
        headers={**headers, "accept-encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        verify=engine_context(config.engines),
    )


async def check_health(client: httpx.AsyncClient, url: str) -> None:
    """Raise BadAnswer unless the engine answers `/health` with success."""
    await fetch(client, f"{url}/health")


async def healthy(client: httpx.AsyncClient, url: str) -> bool:
    """Whether the engine answers `/health` with success within the client's timeout."""
    try:
        await check_health(client, url)
    except BadAnswer:
        return False
    return True


async def check_computes(client: httpx.AsyncClient, address: str, models: Sequence[str], timeout_s: float) -> None:
    """Raise BadAnswer unless the engine at an address (`core.worker_url`) still computes: it answers a request for one
    token in time. An engine that refuses the request, as one that only embeds does, has answered."""
    url, rank = split_address(address)
    headers = {} if rank is None else {"x-data-parallel-rank": str(rank)}
    asked = {"model": models[0] if models else "", "prompt": "Hi", "max_tokens": 1}
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", f"{url}/v1/completions", json=asked, headers=headers, timeout=timeout_s) as answer,
        ):
            if answer.status_code >= 500:
                raise BadAnswer(
                    "hangs", f"it computes nothing: it answers {answer.status_code} to a request for a token"
                )
    except (httpx.HTTPError, TimeoutError) as error:
        ours = descriptors.exhausted(error)
        raise BadAnswer("hangs", f"it computes nothing: no token came within {timeout_s:g} s", ours=ours) from error


async def read_ranks(client: httpx.AsyncClient, url: str) -> tuple[int, ...]:
    """The data-parallel ranks that the server at `url` reports, rising; empty if it tells none.

    vLLM has a line for each rank on its page of metrics, even if there is one rank only.
    """
    page = await _page(client, f"{url}/metrics")
    lines = (line for line in page.splitlines() if line.startswith("vllm:cache_config_info{"))
    labels = (_RANK.search(line) for line in lines if len(line) <= MOST_LINE)
    return tuple(sorted({int(found[1]) for found in labels if found}))


async def read_report(client: httpx.AsyncClient, url: str, state: str | None) -> Report:
    """Return all that the engine at `url` reports; `state` is the address of its plugin's page. What it does not report
    is None.

    `/v1/models` is required: raises BadAnswer if its answer is not that of an OpenAI server with at least one model.
    """
    facts = _Facts()
    models = facts.models(read_json(await fetch(client, f"{url}/v1/models"), "/v1/models"))
    version = await _version(client, url)
    config, _ = samples(await _page(client, f"{url}/metrics"), "vllm:cache_config_info").get(
        "vllm:cache_config_info", ({}, 0.0)
    )
    page = samples(await _page(client, state), "leafcutter_engine_") if state else {}
    plugin, _ = page.get("leafcutter_engine_info", ({}, 0.0))
    _, capacity = page.get("leafcutter_engine_capacity_blocks", ({}, None))
    blocks = facts.number("num_gpu_blocks", config.get("num_gpu_blocks"), MOST_BLOCKS)
    # Without the plugin the size is that of the pool less one block, which is vLLM's own placeholder.
    own_capacity = None if blocks is None or blocks < 2 else blocks - 1
    info = EngineInfo(
        models=models,
        order=facts.word("order", plugin.get("order")),
        block_size=facts.number("block_size", config.get("block_size"), MOST_BLOCK_SIZE),
        capacity_blocks=facts.number("capacity_blocks", capacity, MOST_BLOCKS) or own_capacity,
        plugin_version=facts.word("plugin_version", plugin.get("plugin_version")),
        vllm_version=facts.word("vllm_version", plugin.get("vllm_version")) or facts.word("version", version),
    )
    return Report(info, tuple(facts.oddities))


async def fetch(client: httpx.AsyncClient, url: str, *, json: object = None, timeout_s: float | None = None) -> bytes:
    """Get `url`, or post `json` to it, and return the body. Raises BadAnswer.

    timeout_s: for the whole answer; None: as long as the client's own limit for each of its parts.
    """
    path = urlsplit(url).path
    limit_s = client.timeout.read if timeout_s is None else timeout_s
    try:
        async with asyncio.timeout(limit_s):
            method = "GET" if json is None else "POST"
            async with client.stream(method, url, json=json, timeout=limit_s) as answer:
                _check_encoding(answer, path)  # so nothing is decompressed below
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise BadAnswer("size", f"{path} answers more than {MOST_BYTES} bytes")
                _check_status(answer, path)  # a refusal is read to its end too, for its connection to be used again
    except (TimeoutError, httpx.TimeoutException):
        raise BadAnswer("timeout", f"{path} is not answered in full within {limit_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        raise _of_transport(error, path) from None
    return bytes(body)


def _check_encoding(answer: httpx.Response, path: str) -> None:
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BadAnswer("encoding", f"{path} is answered compressed, which was not asked for")


def _check_status(answer: httpx.Response, path: str) -> None:
    status = answer.status_code
    if 300 <= status < 400:
        raise BadAnswer(f"status {status}", f"{path} answers {status} and points elsewhere, which is not followed")
    if not answer.is_success:
        hint = ": give the engines' key with --worker-api-key" if status == 401 else ""
        raise BadAnswer(f"status {status}", f"{path} answers {status}{hint}")


def _of_transport(error: Exception, path: str) -> BadAnswer:
    if isinstance(error, httpx.ProtocolError | httpx.DecodingError):
        return BadAnswer("protocol", f"the answer to {path} is not valid HTTP ({_words(str(error), 80)})")
    if descriptors.exhausted(error):
        words = "this machine has no file descriptor left for the check; the engine itself may be well"
        return BadAnswer("files", words, ours=True)
    kind = type(error).__name__
    return BadAnswer(kind, f"unreachable ({kind}): is the engine running, and is this its address?")


async def _page(client: httpx.AsyncClient, url: str) -> str:
    """A page that an engine need not have; empty if it has none that can be read."""
    try:
        return (await fetch(client, url)).decode("utf-8", "replace")
    except BadAnswer:
        return ""


async def _version(client: httpx.AsyncClient, url: str) -> object:
    try:
        document = read_json((await _page(client, f"{url}/version")).encode(), "/version")
    except BadAnswer:
        return None
    return document.get("version")


def read_json(body: bytes, path: str) -> dict[str, Any]:
    """The JSON object in an answer. Raises BadAnswer."""
    try:
        document = json.loads(body)
    except RecursionError:
        raise BadAnswer("json", f"{path} answers JSON that is nested too deeply") from None
    except ValueError:
        raise BadAnswer("json", f"{path} answers something that is not JSON: is this an OpenAI server?") from None
    if not isinstance(document, dict):
        raise BadAnswer("json", f"{path} answers {_kind(document)} where an object was expected")
    return document


class _Facts:
    """Reads facts and collects in `oddities` those that cannot be true."""

    def __init__(self) -> None:
        self.oddities: list[str] = []

    def models(self, document: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the models that `/v1/models` lists. Raises BadAnswer if there is none."""
        data = document.get("data")
        if not isinstance(data, list):
            found = _kind(data) if "data" in document else "nothing"
            raise BadAnswer("models", f"/v1/models has {found} under `data` where a list of models was expected")
        names = dict.fromkeys(name for each in data if (name := _model_name(each)) is not None)
        if not names:
            raise BadAnswer("models", f"/v1/models lists no model that has a name ({len(data)} entries)")
        nameless = sum(_model_name(each) is None for each in data)
        if nameless:
            self.oddities.append(f"{nameless} models without a name of 1 to {NAME_CHARS} printable characters")
        if len(names) > MOST_MODELS:
            self.oddities.append(f"{len(names)} models, of which the first {MOST_MODELS} are taken")
        return tuple(names)[:MOST_MODELS]

    def number(self, name: str, found: str | float | None, most: int) -> int | None:
        """A count from 1 to `most`."""
        if found in (None, "", "None"):
            return None
        value = _float(found)
        if 1 <= value <= most:  # and so not nan
            return int(value)
        self._odd(name, found, f"a number from 1 to {most}")
        return None

    def word(self, name: str, text: object) -> str | None:
        """A short name, such as an order or a version."""
        if text is None or text == "":
            return None
        if isinstance(text, str) and _WORD.fullmatch(text):
            return text
        self._odd(name, text, "a short name")
        return None

    def _odd(self, name: str, found: object, expected: str) -> None:
        self.oddities.append(f"{name} is {_words(repr(found), 40)}, not {expected}")


def _float(text: str | float | None) -> float:
    """The number, which Prometheus writes as 3.0 or 3e+06 even if it is whole; nan if it is none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _model_name(entry: object) -> str | None:
    name = entry.get("id") if isinstance(entry, dict) else None
    # Control characters and lone surrogates are not printable.
    return name if isinstance(name, str) and 0 < len(name) <= NAME_CHARS and name.isprintable() else None


def _kind(value: object) -> str:
    return {type(None): "null", bool: "a truth value", list: "a list", dict: "an object", str: "text"}.get(
        type(value), "a number"
    )


def _words(text: str, chars: int) -> str:
    """The beginning of a text from an engine as it may stand in a log: one line without control characters."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:chars])
    return shown if len(text) <= chars else f"{shown}..."
