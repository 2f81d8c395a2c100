"""`leafcutter doctor`: look at every engine as the gateway would, and say what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import httpx

from router.config import Config
from router.engines import probe
from router.engines.discovery import engines_of
from router.types import EngineInfo

SHOWN_MODELS = 8
COMPLETION_S = 60.0  # the engine may compile something first
Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `FAIL` means that requests are lost or misrouted, `warn` that it could be better."""

    level: Level
    subject: str
    text: str


async def run(config: Config, out: Callable[[str], None] = print) -> int:
    """Print the findings and return 1 if any of them is a failure, else 0.

    Raises ConfigError if there are no engine URLs or one is malformed.
    """
    findings = await examine(config)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        out(f"{finding.level:4}  {finding.subject:{width}}  {finding.text}")
    failures = sum(finding.level == "FAIL" for finding in findings)
    out(f"{failures} failures, {sum(finding.level == 'warn' for finding in findings)} warnings")
    return 1 if failures else 0


async def examine(config: Config, client: httpx.AsyncClient | None = None) -> list[Finding]:
    """Return every finding about the engines of `config.engines.worker_urls`, engine by engine, then what they differ
    in."""
    findings = [Finding("ok", "leafcutter", f"version {metadata.version('leafcutter-router')}")]
    infos: dict[str, EngineInfo] = {}
    async with client or probe.open_client(config) as http:
        for url in engines_of(config.engines.worker_urls).values():
            state = probe.state_url(url, config.engines.state_port_offset)
            try:
                await probe.check_health(http, url)
                report = await probe.read_report(http, url, state)
            except probe.BadAnswer as error:
                findings.append(Finding("FAIL", url, str(error)))
                continue
            infos[url] = report.info
            findings += [Finding("warn", url, f"reports what cannot be used: {each}") for each in report.oddities]
            findings += _of_engine(url, infos[url], state)
            findings.append(await _cached_tokens(http, url, infos[url]))
    return findings + _differences(infos)


def _of_engine(url: str, info: EngineInfo, state: str | None) -> list[Finding]:
    served = ", ".join(info.models[:SHOWN_MODELS]) + (", ..." if len(info.models) > SHOWN_MODELS else "")
    found = [Finding("ok", url, f"vLLM {info.vllm_version or 'of unknown version'}, serves {served}")]
    if info.block_size is None or info.capacity_blocks is None:
        found.append(Finding("warn", url, "/metrics shows no cache size: --default-capacity-tokens is assumed"))
    else:
        found.append(Finding("ok", url, f"prefix cache of {info.capacity_blocks} blocks of {info.block_size} tokens"))
    if info.order is None:
        found.append(
            Finding(
                "warn",
                url,
                f"no eviction plugin at {state}: install leafcutter-router beside vLLM and start the engine with"
                " LEAFCUTTER_EVICTION=rlt_gix and LEAFCUTTER_STATE_PORT=<its port + --state-port-offset>",
            )
        )
    else:
        found.append(Finding("ok", url, f"eviction order {info.order}, plugin {info.plugin_version}"))
        own = metadata.version("leafcutter-router")
        if info.plugin_version != own:
            found.append(Finding("warn", url, f"plugin {info.plugin_version} beside gateway {own}: use one version"))
    return found


async def _cached_tokens(client: httpx.AsyncClient, url: str, info: EngineInfo) -> Finding:
    """Ask for one token to see whether usage tells the cached tokens, from which the router learns what is cached."""
    body = {"model": info.models[0], "prompt": "Hello", "max_tokens": 1}
    try:
        answer = await probe.fetch(client, f"{url}/v1/completions", json=body, timeout_s=COMPLETION_S)
        usage = probe.read_json(answer, "/v1/completions").get("usage")
    except probe.BadAnswer as error:
        return Finding("FAIL", url, f"a completion of one token failed: {error}")
    if not isinstance(usage, dict):
        return Finding("FAIL", url, "a completion of one token failed: its answer has no usage")
    # vLLM always sends the field; without the flag it is null.
    if usage.get("prompt_tokens_details") is None:
        return Finding(
            "FAIL", url, "usage tells no cached tokens: start the engine with --enable-prompt-tokens-details"
        )
    return Finding("ok", url, "usage tells cached tokens")


def _differences(infos: dict[str, EngineInfo]) -> list[Finding]:
    """Return what the engines of one fleet should agree on and do not."""

    def differ(level: Level, what: str, values: Sequence[object]) -> list[Finding]:
        if len(set(values)) < 2:
            return []
        told = "; ".join(f"{url}: {value}" for url, value in zip(infos, values, strict=True))
        return [Finding(level, "fleet", f"{what} ({told})")]

    all_infos = list(infos.values())
    return [
        *differ(
            "warn",
            "models differ: requests go only to the engines of their model",
            [i.models for i in all_infos],
        ),
        *differ("warn", "vLLM versions differ", [i.vllm_version for i in all_infos]),
        *differ("warn", "plugin versions differ", [i.plugin_version for i in all_infos]),
        *differ("warn", "eviction orders differ", [i.order for i in all_infos]),
        *differ("warn", "block sizes differ", [i.block_size for i in all_infos]),
    ]
