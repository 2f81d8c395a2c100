from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.errors import RateLimited
from router.gateway.key_limits import MINUTE_S, UNLIMITED, Allowance, SharedLimits
from router.gateway.tenants import ClientKey, KeyLimits
from router.types import Ending, Outcome
from tests.router.gateway.test_tenants import bearer, entry, listed
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, served, until


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(row: int = 0, **limits: int) -> ClientKey:
    return ClientKey("a", limits=KeyLimits(**limits), row=row)


def outcome(ending: Ending = Ending.OK, prompt: int | None = None, output: int | None = None) -> Outcome:
    return Outcome(ending, 0.0, prompt_tokens=prompt, output_tokens=output)


def refusal(limits: SharedLimits, who: ClientKey) -> tuple[str, dict[bytes, bytes]]:
    with pytest.raises(RateLimited) as caught:
        limits.admit(who)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value.type, dict(caught.value.headers)


def test_so_many_requests_a_minute_and_then_steadily_more() -> None:
    clock = Clock()
    limits, who = SharedLimits(clock), key(requests_per_minute=60)
    for left in range(59, -1, -1):
        allowance = limits.admit(who)
        allowance.end(outcome())
        assert dict(allowance.headers)[b"x-ratelimit-remaining-requests"] == b"%d" % left
    kind, headers = refusal(limits, who)
    assert kind == "requests"
    assert headers[b"retry-after"] == b"1"
    assert headers[b"x-ratelimit-limit-requests"] == b"60"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-reset-requests"] == b"60000ms"
    clock.now += 1.0
    limits.admit(who).end(outcome())
    refusal(limits, who)
    clock.now += MINUTE_S
    for _ in range(60):
        limits.admit(who).end(outcome())
    refusal(limits, who)


def test_who_comes_back_when_told_is_admitted() -> None:
    clock = Clock()
    limits, who = SharedLimits(clock), key(requests_per_minute=7, tokens_per_minute=1000)
    for _ in range(7):
        limits.admit(who)
    clock.now += int(refusal(limits, who)[1][b"retry-after"])
    limits.admit(who).charge(900)
    clock.now += 20
    allowance = limits.admit(who)
    with pytest.raises(RateLimited) as caught:
        allowance.charge(900)
    clock.now += int(dict(caught.value.headers)[b"retry-after"])
    limits.admit(who).charge(900)


def test_a_refusal_takes_nothing() -> None:
    clock = Clock()
    limits, who = SharedLimits(clock), key(requests_per_minute=2, tokens_per_minute=10, concurrency=1)
    allowance = limits.admit(who)
    for _ in range(5):
        assert refusal(limits, who)[0] == "concurrency"
    allowance.charge(10)
    allowance.end(outcome(prompt=10, output=0))
    for _ in range(5):
        assert refusal(limits, who)[0] == "tokens"
    clock.now += 30  # of tokens five are back, of requests one
    limits.admit(who).end(outcome(prompt=0))
    limits.admit(who).end(outcome(prompt=0))


def test_tokens_are_taken_as_estimated_and_then_as_they_were() -> None:
    limits, who = SharedLimits(Clock()), key(tokens_per_minute=1000)
    allowance = limits.admit(who)
    allowance.charge(400)
    assert dict(allowance.headers)[b"x-ratelimit-remaining-tokens"] == b"600"
    with pytest.raises(RateLimited, match="1000 tokens a minute"):
        limits.admit(who).charge(601)
    allowance.end(outcome(prompt=100, output=50))
    second = limits.admit(who)
    second.charge(0)
    assert dict(second.headers)[b"x-ratelimit-remaining-tokens"] == b"850"


def test_an_answer_may_take_more_than_was_left_and_the_next_waits() -> None:
    clock = Clock()
    limits, who = SharedLimits(clock), key(tokens_per_minute=60)
    allowance = limits.admit(who)
    allowance.end(outcome(prompt=10, output=170))
    assert refusal(limits, who)[1][b"retry-after"] == b"120"
    clock.now += 121
    limits.admit(who)


def test_a_prompt_beyond_the_limit_is_let_through_alone() -> None:
    clock = Clock()
    limits, who = SharedLimits(clock), key(tokens_per_minute=60)
    limits.admit(who).charge(90)
    with pytest.raises(RateLimited):
        limits.admit(who).charge(90)
    clock.now += 90
    limits.admit(who).charge(90)


@pytest.mark.parametrize(
    ("ended", "taken"),
    [
        (outcome(Ending.OK, 20, 5), 25),
        (outcome(Ending.REJECTED), 0),
        (outcome(Ending.ENGINE_LOST), 0),
        (outcome(Ending.ENGINE_LOST, None, 7), 7),
        (outcome(Ending.GATEWAY_FAULT), 0),
        (outcome(Ending.CANCELLED, None, 7), 47),
        (outcome(Ending.TIMEOUT), 40),
        (outcome(Ending.OK), 40),
    ],
)
def test_what_a_request_takes_by_its_end(ended: Outcome, taken: int) -> None:
    limits, who = SharedLimits(Clock()), key(tokens_per_minute=1000)
    allowance = limits.admit(who)
    allowance.charge(40)
    allowance.end(ended)
    after = limits.admit(who)
    after.charge(0)
    assert dict(after.headers)[b"x-ratelimit-remaining-tokens"] == b"%d" % (1000 - taken)


def test_numbers_of_a_lying_engine_break_nothing() -> None:
    limits, who = SharedLimits(Clock()), key(tokens_per_minute=1000)
    limits.admit(who).end(outcome(prompt=10**15))
    kind, headers = refusal(limits, who)
    assert (kind, headers[b"x-ratelimit-remaining-tokens"]) == ("tokens", b"0")


def test_limits_of_one_key_are_no_other_keys() -> None:
    limits = SharedLimits(Clock())
    limits.admit(key(0, requests_per_minute=1))
    limits.admit(key(1, requests_per_minute=1))
    refusal(limits, key(1, requests_per_minute=1))
    assert limits.admit(ClientKey("free")) is UNLIMITED
    UNLIMITED.charge(1e9)
    UNLIMITED.end(outcome())


def test_processes_share_the_limits(tmp_path: Path) -> None:
    path, clock, who = str(tmp_path / "limits"), Clock(), key(3, requests_per_minute=10, concurrency=3)
    SharedLimits.create(path)
    first, second = SharedLimits(clock, path, 0), SharedLimits(clock, path, 1)
    allowances: list[Allowance] = [first.admit(who), first.admit(who), second.admit(who)]
    assert refusal(first, who)[0] == refusal(second, who)[0] == "concurrency"
    allowances[2].end(outcome())
    second.admit(who)
    refusal(first, who)
    second.clear(0)  # the first process has died
    second.admit(who)
    second.admit(who)
    refusal(second, who)


# --- over HTTP --------------------------------------------------------------------------------------------------


async def test_a_key_at_its_limit_is_told_so_and_others_are_not() -> None:
    keys = listed(entry("a", "key-a", requests_per_minute=2), entry("b", "key-b"))
    async with served(client_keys=keys, admin_key="admin") as gateway:
        answers = [await gateway.client.post(CHAT, json=BODIES[CHAT], headers=bearer("key-a")) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert int(answers[2].headers["retry-after"]) >= 29
        assert answers[2].json()["error"]["type"] == "requests"
        other = await gateway.client.post(CHAT, json=BODIES[CHAT], headers=bearer("key-b"))
        assert other.status_code == 200
        assert not [name for name in other.headers if "ratelimit" in name]
        assert gateway.value("leafcutter_key_limited_total", key="a", limit="requests") == 1
        assert gateway.value("leafcutter_key_requests_total", key="a", ending="ok") == 2
        assert gateway.value("leafcutter_key_requests_total", key="a", ending="rejected") == 1
        assert gateway.value("leafcutter_key_tokens_total", key="a", kind="prompt") == 80
        assert gateway.value("leafcutter_key_tokens_total", key="b", kind="output") == 3


async def test_a_refused_request_is_not_read() -> None:
    keys = listed(entry("a", "key-a", requests_per_minute=1))
    async with served(client_keys=keys) as gateway:
        await gateway.client.post(CHAT, json=BODIES[CHAT], headers=bearer("key-a"))
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: key-a\r\ncontent-length: 1000000\r\n\r\n"
        writer.write(head.encode())
        assert b"429" in await reader.readline()
        writer.close()


@pytest.mark.parametrize("how", ["answered", "left", "refused", "failed"])
async def test_a_place_is_given_back_however_a_request_ends(how: str) -> None:
    keys = listed(entry("a", "key-a", concurrency=1, tokens_per_minute=10_000))
    gate = asyncio.Event()
    script = {"failed": Script(fault="reset"), "refused": Script(status=400)}.get(how, Script(gate=gate))
    async with served(script, client_keys=keys) as gateway:

        async def send(**fields: Any) -> httpx.Response:
            return await gateway.client.post(CHAT, json={**BODIES[CHAT], **fields}, headers=bearer("key-a"))

        if how in ("answered", "left"):
            first = asyncio.create_task(send())
            await gateway.engines[0].arrived.wait()
            second = await send()
            assert (second.status_code, second.json()["error"]["type"]) == (429, "concurrency")
            gateway.engines[0].script = Script()
            if how == "left":
                first.cancel()
                await until(lambda: gateway.endings().get("cancelled") == 1)
            gate.set()
            await asyncio.gather(first, return_exceptions=True)
        else:
            assert (await send()).status_code in (400, 502)
        gateway.engines[0].script = Script()
        assert (await send(messages=5)).status_code == 400
        assert (await send()).status_code == 200


async def test_a_prompt_without_room_is_refused_before_an_engine_sees_it() -> None:
    keys = listed(entry("a", "key-a", tokens_per_minute=100))
    async with served(client_keys=keys) as gateway:
        long = {**BODIES[CHAT], "messages": [{"role": "user", "content": "word " * 70}]}
        assert (await gateway.client.post(CHAT, json=long, headers=bearer("key-a"))).status_code == 200
        refused = await gateway.client.post(CHAT, content=json.dumps(long), headers=bearer("key-a"))
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
        assert len(gateway.engines[0].requests) == 1
