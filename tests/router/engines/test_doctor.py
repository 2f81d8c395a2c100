"""The doctor names each fault and its cure."""

import json

import httpx
import pytest

from router.config import configure
from router.engines import doctor
from tests.router.engines.test_probe import METRICS, STATE

DETAILS = {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}


def fleet(**pages: dict[str, str]) -> httpx.AsyncClient:
    """Engines by host name: path (or `state`) -> text. A host without pages is unreachable."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host not in pages:
            raise httpx.ConnectError("refused")
        path = "state" if request.url.port == 1001 else request.url.path
        text = pages[request.url.host].get(path)
        return httpx.Response(404 if text is None else 200, text=text or "")

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


def sound(**changes: str | None) -> dict[str, str]:
    pages: dict[str, str | None] = {
        "/health": "ok",
        "/v1/models": '{"data": [{"id": "m"}]}',
        "/version": '{"version": "0.32.0"}',
        "/metrics": METRICS,
        "state": STATE,
        "/v1/completions": json.dumps({"usage": DETAILS}),
    }
    return {key: text for key, text in {**pages, **changes}.items() if text is not None}


async def findings(client: httpx.AsyncClient, *hosts: str) -> list[doctor.Finding]:
    return await doctor.examine(configure(worker_urls=tuple(f"http://{host}:1" for host in hosts)), client)


async def test_a_sound_fleet_has_no_finding_but_ok() -> None:
    found = await findings(fleet(a=sound(), b=sound()), "a", "b")
    assert {finding.level for finding in found} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"/v1/completions": '{"usage": {"prompt_tokens": 1, "prompt_tokens_details": null}}'}, "FAIL", "--enable-pro"),
        ({"/v1/completions": None}, "FAIL", "a completion of one token failed"),
        ({"/v1/models": "hello"}, "FAIL", "not JSON: is this an OpenAI server?"),
        ({"/v1/completions": '{"usage": 1e400}'}, "FAIL", "its answer has no usage"),
        ({"/health": None}, "FAIL", "/health answers 404"),
        ({"/v1/models": None}, "FAIL", "/v1/models answers 404"),
        ({"/v1/models": '{"data": null}'}, "FAIL", "null under `data`"),
        ({"/v1/models": "[" * 100_000}, "FAIL", "nested too deeply"),
        ({"/metrics": METRICS.replace('"256"', '"-1"')}, "warn", "num_gpu_blocks is '-1', not a number from 1 to"),
        ({"state": None}, "warn", "no eviction plugin at http://a:1001/metrics"),
        ({"/metrics": None}, "warn", "--default-capacity-tokens is assumed"),
        ({"state": STATE.replace("0.1.0", "9.9.9")}, "warn", "plugin 9.9.9 beside gateway"),
    ],
)
async def test_a_fault_is_named(changes: dict[str, str | None], level: str, words: str) -> None:
    found = await findings(fleet(a=sound(**changes)), "a")
    assert any(finding.level == level and words in finding.text for finding in found), found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"/v1/models": '{"data": [{"id": "other"}]}'}, "models differ"),
        ({"state": STATE.replace("0.32.0", "0.31.0")}, "vLLM versions differ"),
        ({"state": STATE.replace("rlt", "lru")}, "eviction orders differ"),
        ({"/metrics": METRICS.replace('"32"', '"16"')}, "block sizes differ"),
    ],
)
async def test_engines_that_differ_are_named(changes: dict[str, str | None], words: str) -> None:
    found = await findings(fleet(a=sound(), b=sound(**changes)), "a", "b")
    assert any(finding.subject == "fleet" and words in finding.text for finding in found), found


async def test_the_report_fails_when_an_engine_is_unreachable(unused_tcp_port: int) -> None:
    lines: list[str] = []
    status = await doctor.run(configure(worker_urls=(f"http://127.0.0.1:{unused_tcp_port}",)), lines.append)
    assert status == 1
    assert any("unreachable" in line for line in lines)
    assert lines[-1] == "1 failures, 0 warnings"
