"""Who may come in, and what each may see."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.config import Config, configure
from router.errors import BadRequest, ConfigError
from router.gateway.access import Access
from router.gateway.listeners import listen, serving
from router.gateway.tenants import ANYONE, KeyRing, check_doors, on_loopback, salt_for
from router.options import build
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, COMPLETIONS, Served, served, until


def entry(name: str, key: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "key": f"sha256:{sha256(key.encode()).hexdigest()}", **fields}


def listed(*entries: dict[str, Any]) -> str:
    return json.dumps(entries)


TWO = listed(entry("a", "key-a"), entry("b", "key-b"))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(gateway: Served, key: str, path: str = CHAT, method: str = "POST") -> int:
    content = json.dumps(BODIES.get(path, {})).encode()
    return (await gateway.client.request(method, path, content=content, headers=bearer(key))).status_code


OPERATORS = [
    ("GET", "/workers"),
    ("GET", "/decisions"),
    ("GET", "/policy"),
    ("PUT", "/policy"),
    ("POST", "/explain"),
    ("GET", "/explain/some-id"),
    ("GET", "/metrics"),
    ("GET", "/whatever-comes-later"),
    ("GET", "//v1/models"),
    ("GET", "/V1/models"),
]


@pytest.mark.parametrize(("method", "path"), OPERATORS)
async def test_operators_routes_are_the_admins(method: str, path: str) -> None:
    async with served(admin_key="admin", client_keys=TWO) as gateway:
        refused = await gateway.client.request(method, path, headers=bearer("key-a"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
        unknown = await gateway.client.request(method, path)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "invalid_api_key")
        assert unknown.headers["www-authenticate"] == "Bearer"
        assert (await gateway.client.request(method, path, headers=bearer("admin"))).status_code not in (401, 403)


async def test_clients_may_use_engines_and_see_models_and_health() -> None:
    async with served(admin_key="admin", client_keys=TWO) as gateway:
        for key in ("key-a", "key-b", "admin"):
            assert await ask(gateway, key) == await ask(gateway, key, COMPLETIONS) == 200
            assert await ask(gateway, key, "/v1/models", "GET") == 200
            assert await ask(gateway, key, "/v1/nowhere", "GET") == 404
        for path in ("/health", "/liveness", "/readiness"):
            assert (await gateway.client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/../workers", "/v1/%2e%2e/workers", "/v1/..%2fworkers", "/v1//../workers"])
async def test_a_path_that_climbs_out_leads_nowhere(path: str) -> None:
    async with served(admin_key="admin", client_keys=TWO) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: key-a\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.split()[1] in (b"403", b"404")
        assert b"engine-0" not in answer


@pytest.mark.parametrize("key", ["key-a", "admin", "wrong"])
async def test_no_other_site_is_let_in_by_a_browser(key: str) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    async with served(admin_key="admin", client_keys=TWO) as gateway:
        for path in (CHAT, "/workers", "/health"):
            answer = await gateway.client.options(path, headers=bearer(key) | asked)
            assert answer.status_code in (401, 403, 404, 405)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        answer = await gateway.client.post(CHAT, json=BODIES[CHAT], headers=bearer(key) | asked)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_the_shared_key_alone_is_admin_too() -> None:
    async with served(api_key="shared") as gateway:
        assert await ask(gateway, "shared") == await ask(gateway, "shared", "/workers", "GET") == 200
        assert (await gateway.client.get("/metrics")).status_code == 200


@pytest.mark.parametrize("more", [{"admin_key": "admin"}, {"client_keys": TWO}])
async def test_beside_other_keys_the_shared_key_is_a_clients(more: dict[str, Any]) -> None:
    async with served(api_key="shared", **more) as gateway:
        assert await ask(gateway, "shared") == 200
        assert await ask(gateway, "shared", "/workers", "GET") == 403
        assert (await gateway.client.get("/metrics")).status_code == 401


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"authorization": "Bearer key-a"}, "a"),
        ({"authorization": "bearer key-a"}, "a"),
        ({"authorization": "BEARER   key-a  "}, "a"),
        ({"x-api-key": "key-b"}, "b"),
        ({"authorization": "Basic key-a", "x-api-key": "key-b"}, "b"),
        ({"authorization": "Bearer wrong", "x-api-key": "key-b"}, "b"),
        ({"authorization": "Bearer key-a", "x-api-key": "key-b"}, "a"),
        ({"authorization": "key-a"}, None),
        ({"authorization": "Bearerkey-a"}, None),
        ({"authorization": "Bearer "}, None),
        ({"authorization": "Bearer key-a,key-b"}, None),
        ({"authorization": "Bearer key-A"}, None),
        ({"x-api-key": ""}, None),
        ({"x-api-key": "k" * 100_000}, None),
        ({"x-api-key": "sha256:" + sha256(b"key-a").hexdigest()}, None),
        ({"x-api-key": sha256(b"key-a").hexdigest()}, None),
        ({"cookie": "key-a"}, None),
        ({}, None),
    ],
)
def test_how_a_key_is_given(headers: dict[str, str], found: str | None) -> None:
    ring = ring_of(client_keys=TWO)
    key = ring.find([(name.encode(), value.encode()) for name, value in headers.items()])
    assert (key.name if key else None) == found


def ring_of(**options: Any) -> KeyRing:
    return Access.of(configure(**options).server).ring


def test_bytes_that_are_no_text_are_no_key() -> None:
    assert ring_of(client_keys=TWO).find([(b"x-api-key", b"\xff\xfe"), (b"authorization", b"Bearer \x00")]) is None


def test_without_keys_whoever_comes_is_admin() -> None:
    assert ring_of().find([]) is ANYONE
    assert ANYONE.admin


def test_no_key_can_be_read_from_what_is_kept() -> None:
    ring = ring_of(client_keys=TWO, admin_key="the-admin", api_key="the-shared")
    kept = repr(ring._keys) + repr(configure(admin_key="the-admin", api_key="the-shared", worker_api_key="inner"))
    assert not [key for key in ("key-a", "the-admin", "the-shared", "inner") if f"'{key}'" in kept]


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["api_key", "admin_key", "worker_api_key"])
@pytest.mark.parametrize("value", ["", " ", "two words", "tab\t", "line\n", "ключ", 5, ["s3cret"], {"s3cret": 1}])
def test_a_key_that_cannot_be_is_refused_and_not_shown(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        configure(**{name: value})
    assert "s3cret" not in str(caught.value)
    assert "ключ" not in str(caught.value)


def test_an_empty_key_in_the_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="api_key"):
        build(Config, env={"LEAFCUTTER_API_KEY": ""})


def test_the_value_of_a_misspelt_key_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="LEAFCUTTER_API_KEYS") as caught:
        build(Config, env={"LEAFCUTTER_API_KEYS": "s3cret"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"host": "::"}, "host"),
        ({"host": ""}, "host"),
        ({"host": "192.168.1.5"}, "host"),
        ({"host": "gateway.internal"}, "host"),
        ({"host": "0.0.0.0", "allow_no_key": True}, None),
        ({"host": "0.0.0.0", "api_key": "k"}, None),
        ({"host": "0.0.0.0", "client_keys": TWO}, None),
        ({"host": "0.0.0.0", "admin_key": "k"}, None),
        ({}, None),
        ({"host": "localhost"}, None),
        ({"host": "::1"}, None),
        ({"host": "127.1.2.3"}, None),
        ({"admin_port": 30001, "admin_host": "0.0.0.0"}, "admin_host"),
        ({"admin_port": 30001, "admin_host": "0.0.0.0", "client_keys": TWO, "api_key": "k"}, "admin_host"),
        ({"admin_port": 30001, "admin_host": "0.0.0.0", "admin_key": "k"}, None),
        ({"admin_port": 30001, "admin_host": "0.0.0.0", "api_key": "k"}, None),
        ({"admin_port": 30000}, "admin_port"),
        ({"admin_key": "k", "api_key": "k"}, "admin_key"),
        ({"tls_key": "x.pem"}, "tls_key"),
        ({"tls_client_ca": "x.pem"}, "tls_client_ca"),
    ],
)
def test_no_stranger_comes_in_by_mistake(options: dict[str, Any], wrong: str | None) -> None:
    server = configure(**options).server
    if wrong is None:
        return check_doors(server)
    with pytest.raises(ConfigError) as caught:
        check_doors(server)
    assert caught.value.key == wrong


def test_only_names_that_cannot_mean_anything_else_are_loopback() -> None:
    assert [on_loopback(host) for host in ("[::1]", "LOCALHOST", "localhost.")] == [True] * 3
    assert not on_loopback("localhost.example.org")
    assert not on_loopback("127.0.0.1.example.org")


# --- a side channel ---------------------------------------------------------------------------------------------


async def test_tenants_have_caches_of_their_own() -> None:
    body = {**BODIES[CHAT], "messages": [{"role": "user", "content": "one long prompt " * 40}]}
    async with served(Script(cached_tokens=0), admin_key="admin", client_keys=TWO, policy="lbgr") as gateway:
        for key in ("key-a", "key-a", "key-b", "admin"):
            answer = await gateway.client.post(CHAT, json=body, headers=bearer(key))
            assert ("x-leafcutter-predicted-ms" in answer.headers) == (key == "admin")
        sent = [request.json for request in gateway.engines[0].requests]
        salts = [each.pop("cache_salt", None) for each in sent]
        assert sent == [body] * 4
        assert salts[0] == salts[1] != salts[2]
        assert salts[3] is None
        assert len(salts[0] or "") == 64  # vLLM allows 128 characters
        tries: list[Any] = [entry.describe(0.0) for entry in reversed(gateway.router.newest_decisions(4))]
        assert [bool(each["engines"][0]["hit_tokens"]) for each in tries] == [False, True, False, False]


def salt(ring: KeyRing, key: str) -> bytes | None:
    found = ring.find([(b"x-api-key", key.encode())])
    assert found is not None
    return found.salt


def test_one_tenant_needs_no_salt() -> None:
    assert salt(ring_of(client_keys=listed(entry("a", "key-a")), admin_key="x"), "key-a") is None
    group = listed(entry("a", "key-a", group="g"), entry("b", "key-b", group="g"))
    assert salt(ring_of(client_keys=group), "key-a") is None


def test_the_shared_key_is_a_tenant_beside_a_clients() -> None:
    ring = ring_of(client_keys=listed(entry("a", "key-a")), api_key="shared")
    assert None not in (salt(ring, "key-a"), salt(ring, "shared"))
    assert salt(ring, "key-a") != salt(ring, "shared")


def test_a_salt_is_the_same_at_the_next_start_and_everywhere_and_in_a_group() -> None:
    a, b, c = entry("a", "key-a", group="g"), entry("b", "key-b", group="g"), entry("c", "key-c")
    first, second = ring_of(client_keys=listed(a, b, c)), ring_of(client_keys=listed(c, a, b), admin_key="x")
    assert salt(first, "key-a") == salt(first, "key-b") == salt(second, "key-a") == salt(second, "key-b")
    assert salt(first, "key-c") == salt(second, "key-c") != salt(first, "key-a")
    # A group of the same name as a client, and a client of the same name as the group: not the same tenant.
    other = ring_of(client_keys=listed(a, entry("g", "key-b")))
    assert salt(other, "key-a") != salt(other, "key-b")


def test_a_key_may_be_replaced_without_a_cold_cache() -> None:
    old, new = (f"sha256:{sha256(key).hexdigest()}" for key in (b"key-a", b"key-new"))
    ring = ring_of(client_keys=listed({"name": "a", "key": [old, new]}, entry("b", "key-b")))
    assert salt(ring, "key-a") == salt(ring, "key-new") == salt(ring_of(client_keys=TWO), "key-a")


def test_a_clients_own_salt_stays_within_its_tenant() -> None:
    plain = salt_for(b"tenant", {})
    assert plain == salt_for(b"tenant", {"cache_salt": None})
    mine, same = (salt_for(b"tenant", {"cache_salt": "mine"}) for _ in range(2))
    assert mine == same
    assert (
        len({plain, mine, salt_for(b"other", {"cache_salt": "mine"}), salt_for(b"tenant", {"cache_salt": plain})}) == 4
    )
    assert salt_for(b"tenant", {"cache_salt": "\ud800"})


@pytest.mark.parametrize("own", ["", 5, [], {}, True, 1.5])
def test_a_salt_that_engines_refuse_is_refused(own: object) -> None:
    with pytest.raises(BadRequest, match="cache_salt"):
        salt_for(b"tenant", {"cache_salt": own})


SPELLINGS = [
    b'{"cache_salt":"x",%s}',
    b'{%s,"cache_salt":"x"}',
    b'{%s, "cache_salt" :\n null }',
    b'{"cache_salt":"1",%s,"cache_salt":"2"}',
    b'{%s,"cache\\u005fsalt":"x"}',
    b'{%s,"\\u0063ache_salt":"\\ud83d\\ude00"}',
    b'{%s,"other":{"cache_salt":"inner"},"cache_salt":"x"}',
    b'\n {%s,"other":"\\"cache_salt\\":"}',
]


@pytest.mark.parametrize(
    "stream", [b'"stream":true', b'"stream":true,"stream_options":{"include_usage":false}', b'"n":1']
)
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_the_field_escapes(spelling: bytes, stream: bytes) -> None:
    """Every reader of the body must find the gateway's salt, whichever of two equal names it takes."""
    rest = b'"model":"tiny","x":1.50e-0,"messages":[{"role":"user","content":"caf\xc3\xa9"}],' + stream
    async with served(client_keys=TWO) as gateway:
        sent = await gateway.client.post(CHAT, content=spelling % rest, headers=bearer("key-a"))
        assert sent.status_code == 200
        body = gateway.engines[0].requests[0].body
        pairs = json.loads(body, object_pairs_hook=lambda found: found)
        salts = [value for name, value in pairs if name == "cache_salt"]
        assert {len(each) for each in salts} == {64}
        assert len(set(salts)) == 1
        assert b'"model":"tiny","x":1.50e-0,"messages":[{"role":"user","content":"caf\xc3\xa9"}],' in body
        assert (b'"inner"' in body) == (b'"inner"' in spelling)
        others = [(name, value) for name, value in pairs if name not in ("cache_salt", "stream_options")]
        expected = json.loads(spelling % rest, object_pairs_hook=lambda found: found)
        assert others == [(name, value) for name, value in expected if name not in ("cache_salt", "stream_options")]


async def test_a_body_in_utf_16_has_the_salt_too() -> None:
    async with served(client_keys=TWO) as gateway:
        body = json.dumps({**BODIES[CHAT], "cache_salt": "x"}).encode("utf-16")
        assert (await gateway.client.post(CHAT, content=body, headers=bearer("key-a"))).status_code == 200
        assert len(gateway.engines[0].requests[0].json["cache_salt"]) == 64


async def test_a_large_body_has_the_salt_too() -> None:
    async with served(client_keys=TWO) as gateway:
        long = [{"role": "user", "content": "word " * 60_000}]
        answer = await gateway.client.post(CHAT, json={**BODIES[CHAT], "messages": long}, headers=bearer("key-a"))
        assert answer.status_code == 200
        assert len(gateway.engines[0].requests[0].json["cache_salt"]) == 64


# --- reloading --------------------------------------------------------------------------------------------------


def write(path: Path, *entries: dict[str, Any]) -> None:
    """As an editor does: the file is replaced at once."""
    fresh = path.with_suffix(".new")
    fresh.write_text(listed(*entries))
    fresh.chmod(0o600)
    os.replace(fresh, path)


async def statuses(gateway: Served, *keys: str) -> list[int]:
    return [await ask(gateway, key, "/v1/models", "GET") for key in keys]


async def test_keys_come_and_go_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.yaml"
    write(path, entry("a", "key-a"))
    with caplog.at_level(logging.INFO):
        async with served(client_keys=str(path)) as gateway:
            assert await statuses(gateway, "key-a", "key-b") == [200, 401]
            write(path, entry("b", "key-b"))
            while await statuses(gateway, "key-a", "key-b") != [401, 200]:
                await asyncio.sleep(0.05)
            for bad in ("- {name: b", "[]", "key-b", '- {name: b, key: "key-c-in-plain"}', ""):
                caplog.clear()
                path.write_text(bad)
                await until(lambda: "what was read before stays" in caplog.text)
                assert "key-c-in-plain" not in caplog.text
                assert await statuses(gateway, "key-a", "key-b") == [401, 200]
            caplog.clear()
            path.unlink()
            await until(lambda: "what was read before stays" in caplog.text)
            write(path, entry("a", "key-a"), entry("b", "key-b"))
            while await statuses(gateway, "key-a", "key-b") != [200, 200]:
                await asyncio.sleep(0.05)


async def test_the_log_holds_no_key_and_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        options: dict[str, Any] = {"client_keys": TWO, "admin_key": "the-admin-key", "policy": "lbgr"}
        async with served(Script(), Script(status=500), **options) as gateway:
            for key in ("key-a", "wrong-key", "the-admin-key"):
                for body in (BODIES[CHAT], {"messages": "What is the capital of France?"}):
                    headers = {**bearer(key), "x-api-key": key}
                    await gateway.client.post(CHAT, json=body, headers=headers)
    assert "capital" not in caplog.text
    own = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("leafcutter"))
    assert "request" in own
    assert not [key for key in ("key-a", "wrong-key", "the-admin-key") if key in own]


# --- the listener of operators ----------------------------------------------------------------------------------


async def test_operators_have_a_listener_of_their_own() -> None:
    async with served(client_keys=TWO, admin_key="admin", admin_port=0) as gateway:
        app = gateway.app
        (listener,) = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = configure(client_keys=TWO, admin_key="admin", admin_port=0)
        async with serving(config, app.admin, [listener]), httpx.AsyncClient(base_url=url, verify=False) as operator:
            assert (await operator.get("/metrics")).status_code == 200
            assert (await operator.get("/health")).status_code == 200
            assert (await operator.head("/health")).status_code == 200
            assert (await operator.get("/workers")).status_code == 401
            assert (await operator.get("/workers", headers=bearer("key-a"))).status_code == 403
            assert (await operator.get("/workers", headers=bearer("admin"))).status_code == 200
            assert (await operator.post(CHAT, json=BODIES[CHAT], headers=bearer("admin"))).status_code == 404
        for path in ("/workers", "/metrics", "/decisions"):
            assert await ask(gateway, "admin", path, "GET") == 404
            assert await ask(gateway, "wrong", path, "GET") == 401
        assert await ask(gateway, "key-a") == 200
