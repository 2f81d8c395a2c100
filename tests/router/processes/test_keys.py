"""Keys and their limits hold whichever process a client meets, and when processes die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router.gateway.test_tenants import bearer, entry, listed
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT
from tests.support.process_gateway import Processes, gated, launch, processes, until


def write(path: Path, *entries: dict[str, Any]) -> str:
    path.write_text(listed(*entries))
    path.chmod(0o600)
    return str(path)


async def ask(gateway: Processes, key: str, path: str = "/v1/models") -> int:
    return (await gateway.client.get(path, headers=bearer(key))).status_code


async def test_limits_salts_and_the_bill_are_those_of_the_whole_gateway(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys", entry("a", "key-a", requests_per_minute=8), entry("b", "key-b"))
    usage = tmp_path / "usage.jsonl"
    flags = ["--client-keys", keys, "--admin-key", "admin", "--usage-log", str(usage)]
    async with processes(Script(), count=3, tmp_path=tmp_path, flags=flags, key="admin") as gateway:

        async def send(key: str) -> int:
            return (await gateway.client.post(CHAT, json=BODIES[CHAT], headers=bearer(key))).status_code

        statuses = await asyncio.gather(*(send("key-a") for _ in range(20)))
        assert sorted(statuses) == [200] * 8 + [429] * 12
        assert await asyncio.gather(*(send("key-b") for _ in range(9))) == [200] * 9
        assert len({request.json["cache_salt"] for request in gateway.engines[0].requests}) == 2
        assert await gateway.total("leafcutter_key_requests_total") == 29
        for path in ("/workers", "/policy", "/decisions", "/explain/x", "/metrics"):
            assert [await ask(gateway, key, path) for key in ("key-a", "wrong")] == [403, 401]
    lines = [json.loads(line) for line in usage.read_text().splitlines()]
    assert sorted((line["key"], line["ending"]) for line in lines) == (
        [("a", "ok")] * 8 + [("a", "rejected")] * 12 + [("b", "ok")] * 9
    )


TARGETS = [
    "/v1/../workers",
    "/v1/%2e%2e/workers",
    "/v1/..%2fworkers",
    "/v1/#/../../workers",
    "/v1/?/../../workers",
    "http://x/v1/../workers",
    "/v1/..\\workers",
    "/v1/%00/../workers",
    "/v1//../workers",
    "/v1/;/../workers",
]


async def test_no_path_of_a_client_becomes_an_operators_on_its_way(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys", entry("a", "key-a"))
    async with processes(Script(), tmp_path=tmp_path, flags=["--client-keys", keys], key="key-a") as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        for target in TARGETS:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET {target} HTTP/1.1\r\nhost: x\r\nx-api-key: key-a\r\nconnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer.split()[1] in (b"400", b"403", b"404"), target
            assert b"engine-0" not in answer


async def test_a_dead_edge_gives_back_the_places_of_its_requests(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys", entry("a", "key-a", concurrency=2))
    script = gated()
    async with processes(script, tmp_path=tmp_path, flags=["--client-keys", keys], key="key-a") as gateway:
        running = [asyncio.create_task(gateway.post(stream=True)) for _ in range(2)]

        async def full() -> bool:
            return gateway.engines[0].running == 2

        await until(full)
        assert (await gateway.post()).status_code == 429
        for edge in gateway.edges():
            os.kill(edge, signal.SIGKILL)
        await asyncio.gather(*running, return_exceptions=True)
        assert script.gate is not None
        script.gate.set()

        async def served() -> bool:
            try:
                return (await gateway.post()).status_code == 200
            except httpx.TransportError:
                return False

        await until(served)


async def test_keys_that_were_good_last_outlive_an_edge(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys = write(path, entry("a", "key-a"))
    async with processes(Script(), tmp_path=tmp_path, flags=["--client-keys", keys], key="key-a") as gateway:
        write(path, entry("b", "key-b"))

        async def changed() -> bool:
            return [[await ask(gateway, key) for _ in range(6)] for key in ("key-a", "key-b")] == [[401] * 6, [200] * 6]

        await until(changed)
        path.write_text("- {name: b, key")
        await until(lambda: asyncio.sleep(0, "what was read before stays" in gateway.log))
        before = gateway.edges()
        for edge in before:
            os.kill(edge, signal.SIGKILL)

        async def replaced() -> bool:
            try:
                return len(set(gateway.edges()) - set(before)) == 2 and await changed()
            except httpx.TransportError:
                return False

        await until(replaced, 20)
        assert gateway.log.count("what was read before stays") == 1
        private = list(gateway.folder.glob("*/keys"))
        assert len(private) == 1
        assert private[0].parent.stat().st_mode & 0o077 == 0


async def test_operators_have_a_listener_that_outlives_the_router_process(tmp_path: Path) -> None:
    flags = ["--admin-key", "admin", "--api-key", "shared", "--admin-port", "0"]
    async with processes(Script(), tmp_path=tmp_path, flags=flags, key="shared") as gateway:
        found = re.search(r"operators' routes on (http://\S+)", gateway.log)
        assert found is not None
        async with httpx.AsyncClient(base_url=found[1], timeout=30, verify=False) as operator:

            async def asked(path: str, key: str) -> int:
                headers = {"x-api-key": key, "connection": "close"}
                return (await operator.get(path, headers=headers)).status_code

            for path in ("/workers", "/decisions"):
                assert [await asked(path, key) for key in ("admin", "shared", "wrong")] == [200, 403, 401]
                assert await ask(gateway, "admin", path) == 404
            assert await asked("/metrics", "") == 200
            os.kill(gateway.router, signal.SIGKILL)

            async def back() -> bool:
                try:
                    return await asked("/workers", "admin") == 200
                except httpx.TransportError:
                    return False

            await until(back)
    assert gateway.process.returncode == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--host", "0.0.0.0"],
        ["--api-key", ""],
        ["--client-keys", "/no/such/file"],
        ["--tls-cert", "/no/such/file"],
        ["--worker-ca", "/no/such/file"],
        ["--usage-log", "/no/such/folder/file"],
    ],
)
@pytest.mark.parametrize("count", ["1", "2"])
async def test_what_cannot_be_stops_the_start_in_words(flags: list[str], count: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = await launch(
        *flags, "--worker-urls", "http://127.0.0.1:9", "--processes", count, folder=tmp_path, log=log
    )
    assert await process.wait() == 2
    assert log.read_text().startswith(f"leafcutter: option {flags[0][2:].replace('-', '_')!r}")
    assert "Traceback" not in log.read_text()
