"""What operators see and set, over real sockets."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import pytest

from router.core.router import Router
from router.errors import BadRequest
from router.gateway.admin import MOST_DECISIONS, read_assignment
from router.policies.lbgr.cost import TERMS
from router.types import EngineId
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, COMPLETIONS, Served, error_of, served


async def explained(gateway: Served, request_id: str) -> dict[str, Any]:
    response = await gateway.client.get(f"/explain/{request_id}")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


async def ask(gateway: Served, request_id: str, *, stream: bool = False) -> None:
    response = await gateway.client.post(
        CHAT, json={**BODIES[CHAT], "stream": stream}, headers={"x-request-id": request_id}
    )
    assert response.status_code == 200


# --- why it went there -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["abc-1", "a/b"])
async def test_a_request_is_explained_with_every_engines_terms_and_its_outcome(name: str, stream: bool) -> None:
    async with served(Script(), Script(), policy="lbgr", shadow=("lmetric",)) as gateway:
        await ask(gateway, name, stream=stream)
        found = await explained(gateway, name)
        assert (found["request_id"], found["retries"]) == (name, 0)
        (decision,) = found["decisions"]
        assert decision.items() >= {
            ("request_id", name),
            ("route", CHAT),
            ("model", "tiny"),
            ("stream", stream),
            ("policy", "lbgr"),
            ("reason", "lowest_cost"),
            ("unit", "s"),
            ("engines_left_out", 0),
        }
        assert decision["engines"][0]["engine"] == decision["engine"]
        for engine in decision["engines"]:
            assert list(engine["terms"]) == list(TERMS)
            assert engine["total"] == pytest.approx(sum(engine["terms"].values()), abs=1e-5)
            assert engine["chosen"] is (engine["engine"] == decision["engine"])
            assert engine["slowness"] == 1.0
            assert engine["hit_tokens"] == 0.0
        assert [shadow["policy"] for shadow in decision["shadows"]] == ["lmetric"]
        assert decision["outcome"].items() >= {
            ("ending", "ok"),
            ("prompt_tokens", 40),
            ("cached_tokens", 32),
            ("output_tokens", 3),
        }
        assert (decision["outcome"]["ttft_s"] is None) is not stream
        assert decision["outcome"]["latency_s"] > 0


async def test_a_policy_that_only_ranks_says_so() -> None:
    async with served(Script(), Script(), policy="lmetric", shadow=("lbgr",)) as gateway:
        await ask(gateway, "abc")
        (decision,) = (await explained(gateway, "abc"))["decisions"]
        assert decision["unit"] == "rank"
        assert [shadow["regret_s"] for shadow in decision["shadows"]] == [None]


async def test_every_try_is_told() -> None:
    async with served(Script(status=503), Script()) as gateway:
        for n in range(4):
            await ask(gateway, f"r{n}")
        retried = [found for n in range(4) if (found := await explained(gateway, f"r{n}"))["retries"]]
        assert retried
        first, second = retried[0]["decisions"]
        assert (first["engine"], first["outcome"]["ending"], first["tried"]) == ("engine-0", "engine_failed", [])
        assert (second["engine"], second["outcome"]["ending"], second["tried"]) == ("engine-1", "ok", ["engine-0"])
        assert [engine["engine"] for engine in second["engines"]] == ["engine-1"]
        assert second["reason"] == "only_engine"


async def test_an_unknown_request_is_not_found() -> None:
    async with served(ledger_decisions=1) as gateway:
        await ask(gateway, "old")
        await ask(gateway, "new")
        for name in ("old", "nobody"):
            response = await gateway.client.get(f"/explain/{name}")
            assert (response.status_code, error_of(response)["code"]) == (404, "request_not_found")
        assert (await explained(gateway, "new"))["retries"] == 0


async def test_the_last_decisions_come_newest_first() -> None:
    async with served(Script(), Script()) as gateway:
        for n in range(25):
            await ask(gateway, f"r{n}")

        async def names(query: str) -> list[str]:
            found = (await gateway.client.get(f"/decisions{query}")).json()["decisions"]
            return [decision["request_id"] for decision in found]

        assert await names("") == [f"r{n}" for n in range(24, 4, -1)]
        assert await names("?limit=2") == ["r24", "r23"]
        assert len(await names(f"?limit={MOST_DECISIONS}")) == 25


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", "", "1001", "9" * 99, "٣"])
async def test_a_bad_limit_is_refused(limit: str) -> None:
    async with served() as gateway:
        response = await gateway.client.get("/decisions", params={"limit": limit})
        assert (response.status_code, error_of(response)["param"]) == (400, "limit")


# --- where it would go -----------------------------------------------------------------------------


class State(pickle.Pickler):
    """Writes functions by name only: they hold nothing."""

    def persistent_id(self, thing: object) -> str | None:
        return getattr(thing, "__qualname__", None) if callable(thing) and not isinstance(thing, type) else None


def state_of(router: Router) -> bytes:
    """All that a decision could change."""
    out = io.BytesIO()
    State(out).dump((vars(router), router._fleet.views()))
    return out.getvalue()


@pytest.mark.parametrize("policy", ["lbgr", "smetric", "random", "round_robin"])
async def test_a_dry_run_sends_books_and_changes_nothing_and_foretells_the_next_decision(policy: str) -> None:
    async with served(Script(), Script(), Script(), policy=policy, shadow=("lmetric", "preble")) as gateway:
        gateway.router.assign({policy: 0.5, "least_loaded": 0.5})
        for n in range(8):
            await ask(gateway, f"warm-{n}", stream=n % 2 == 0)
        sent = [len(engine.requests) for engine in gateway.engines]
        before = state_of(gateway.router)
        for _ in range(4):
            response = await gateway.client.post("/explain", json=BODIES[CHAT])
            foretold = response.json()
            assert response.status_code == 200
            assert foretold["outcome"] is None
            assert foretold["tried"] == []
            assert state_of(gateway.router) == before
        assert [len(engine.requests) for engine in gateway.engines] == sent
        assert (await gateway.client.get("/decisions?limit=1")).json()["decisions"][0]["request_id"] == "warm-7"
        await ask(gateway, "real")
        (real,) = (await explained(gateway, "real"))["decisions"]
        assert [real[key] for key in ("engine", "policy")] == [foretold[key] for key in ("engine", "policy")]


async def test_a_dry_run_knows_its_route_by_query_or_header() -> None:
    async with served() as gateway:
        by_query = await gateway.client.post("/explain", params={"route": COMPLETIONS}, json=BODIES[COMPLETIONS])
        by_header = await gateway.client.post(
            "/explain", headers={"x-leafcutter-route": COMPLETIONS}, json=BODIES[COMPLETIONS]
        )
        for response in (by_query, by_header):
            assert response.json()["route"] == COMPLETIONS
        response = await gateway.client.post("/explain", json=BODIES[COMPLETIONS])
        assert (response.status_code, error_of(response)["param"]) == (400, "messages")


async def test_a_dry_run_refuses_as_the_endpoint_does() -> None:
    async with served(max_payload_size=200) as gateway:

        async def refusal(content: bytes, **query: str) -> tuple[int, object]:
            response = await gateway.client.post("/explain", content=content, params=query)
            return response.status_code, error_of(response)["code"]

        body = json.dumps(BODIES[CHAT]).encode()
        assert await refusal(b"{") == (400, "invalid_request")
        assert await refusal(body, route="/v1/nowhere") == (400, "invalid_request")
        assert await refusal(body + b" " * 200) == (413, "payload_too_large")
        assert await refusal(body.replace(b"tiny", b"none")) == (404, "model_not_found")
        gateway.router.set_health(EngineId("engine-0"), False)
        assert await refusal(body) == (503, "no_available_workers")


# --- who decides -----------------------------------------------------------------------------------


async def test_the_policy_is_switched_and_split_while_serving() -> None:
    async with served(Script(), Script(), policy="lbgr", shadow=("lmetric",)) as gateway:

        async def put(**fields: object) -> dict[str, Any]:
            response = await gateway.client.put("/policy", json=fields)
            assert response.status_code == 200, response.text
            found: dict[str, Any] = response.json()
            assert found == (await gateway.client.get("/policy")).json()
            return found

        first = (await gateway.client.get("/policy")).json()
        assert (first["policy"], first["split"], first["shadow"]) == ("lbgr", {"lbgr": 1.0}, ["lmetric"])
        await ask(gateway, "one")
        now = await put(policy="round-robin")
        assert (now["policy"], now["split"]) == ("round_robin", {"round_robin": 1.0})
        assert now["shadow"] == ["lbgr", "lmetric"]
        await ask(gateway, "two")
        now = await put(split={"lbgr": 0.75, "lmetric": 0.25}, shadow=["random"])
        assert (now["policy"], now["split"], now["shadow"]) == ("lbgr", {"lbgr": 0.75, "lmetric": 0.25}, ["random"])
        for n in range(30):
            await ask(gateway, f"more-{n}")
        for policy in ("lbgr", "round_robin", "lmetric"):
            assert gateway.value("leafcutter_requests_total", policy=policy) >= 1
            assert gateway.value("leafcutter_decisions_total", policy=policy, reason="lowest_cost") >= 1
        found = (await gateway.client.get("/policy")).json()["comparisons"]
        comparisons = {(each["policy"], each["shadow"]): each for each in found}
        assert comparisons["lbgr", "lmetric"]["decisions"] >= 2
        assert comparisons["lbgr", "lmetric"]["mean_regret_s"] >= 0
        assert 0 <= comparisons["lbgr", "lmetric"]["agreement"] <= 1
        assert comparisons["round_robin", "lbgr"]["mean_regret_s"] is None
        assert set(now["faults"].values()) == {0}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "must be JSON"),
        (b"[" * 100_000, "must be JSON|larger than"),
        (b"[]", "either"),
        (b"{}", "either"),
        (b'{"policy": "lbgr", "split": {"lbgr": 1}}', "either"),
        (b'{"policy": 3}', "name of a policy"),
        (b'{"policy": "fastest"}', "'fastest' is not one of lbgr"),
        (b'{"policy": "lbgr", "shade": []}', "Unknown field `shade`"),
        (b'{"policy": "lbgr", "shadow": "lmetric"}', "list of policies"),
        (b'{"policy": "lbgr", "shadow": [1]}', "list of policies"),
        (b'{"policy": "lbgr", "shadow": ["fastest"]}', "'fastest' is not one of lbgr"),
        (b'{"split": {}}', "add up to 1"),
        (b'{"split": []}', "add up to 1"),
        (b'{"split": {"lbgr": 0.5}}', "these add up to 0.5"),
        (b'{"split": {"lbgr": 90, "lmetric": 10}}', "found 90"),
        (b'{"split": {"lbgr": 1, "lmetric": 0}}', "found 0"),
        (b'{"split": {"lbgr": true}}', "found True"),
        (b'{"split": {"lbgr": NaN}}', "found nan"),
        (b'{"split": {"lbgr": "1"}}', "found 1"),
    ],
)
async def test_a_bad_assignment_is_refused_and_changes_nothing(body: bytes, words: str) -> None:
    async with served(policy="lbgr", shadow=("lmetric",)) as gateway:
        before = (await gateway.client.get("/policy")).json()
        response = await gateway.client.put("/policy", content=body)
        assert response.status_code in (400, 413)
        assert any(word in str(error_of(response)["message"]) for word in words.split("|"))
        assert (await gateway.client.get("/policy")).json() == before


def test_what_an_assignment_says() -> None:
    assert read_assignment(b'{"policy": "lbgr"}') == ({"lbgr": 1.0}, None)
    assert read_assignment(b'{"split": {"a": 0.1, "b": 0.2, "c": 0.7}, "shadow": []}') == (
        {"a": 0.1, "b": 0.2, "c": 0.7},
        [],
    )
    with pytest.raises(BadRequest):
        read_assignment(b"\xff")
