"""Hints over HTTP: the format, each refusal, the limits, and the way to the order."""

import json
import urllib.error
import urllib.request
from io import BytesIO
from typing import Any

import pytest

from engine_patches.adapter import HINTS_AT_ONCE, LONGEST_SESSION, Hint, session_of
from engine_patches.exporter import Exporter
from engine_patches.hints import MESSAGES_AT_ONCE, MOST_BYTES, MOST_HINTS, HintDesk, read_hints
from engine_patches.orders import GIX
from engine_patches.plugin import register
from engine_patches.state_server import MOST_CONNECTIONS, start_state_server
from tests.engine_patches.test_exporter import build_pool
from tests.support.fake_host import build_host

KEY = "a key of the fleet"
GOOD = [{"session": "one", "seconds": 12.5}, {"session": "two", "seconds": None}]


class Desk:
    """A desk, what it delivered, and its clock."""

    def __init__(self) -> None:
        self.taken: list[Hint] = []
        self.now = 0.0
        self.desk = HintDesk(KEY, self.taken.append, lambda: self.now)

    def post(self, body: bytes | None = None, **changes: Any) -> int:
        body = json.dumps(GOOD).encode() if body is None else body
        environ = {
            "REQUEST_METHOD": "POST",
            "HTTP_AUTHORIZATION": f"Bearer {KEY}",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": BytesIO(body),
        }
        return int(self.desk.take({**environ, **changes}).split()[0])


def test_a_message_is_taken_whole() -> None:
    desk = Desk()
    assert desk.post() == 204
    assert desk.taken == [("one", 12.5), ("two", None)]
    assert desk.post(b"[]") == 204


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"REQUEST_METHOD": "GET"}, 405),
        ({"HTTP_AUTHORIZATION": ""}, 401),
        ({"HTTP_AUTHORIZATION": KEY}, 401),
        ({"HTTP_AUTHORIZATION": f"Bearer {KEY}x"}, 401),
        ({"HTTP_AUTHORIZATION": "Bearer \u20ac"}, 401),
        ({"CONTENT_LENGTH": ""}, 411),
        ({"CONTENT_LENGTH": "-1"}, 411),
        ({"CONTENT_LENGTH": str(MOST_BYTES + 1)}, 413),
        ({"CONTENT_LENGTH": "9" * 5000}, 413),
    ],
)
def test_what_is_refused_is_not_taken(changes: dict[str, Any], status: int) -> None:
    desk = Desk()
    assert desk.post(**changes) == status
    assert desk.taken == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[" * 60_000,
        b"{}",
        b"[1]",
        b'[{"session": "s"}]',
        b'[{"session": "s", "seconds": 1, "more": 1}]',
        b'[{"session": 7, "seconds": 1}]',
        b'[{"session": "", "seconds": 1}]',
        json.dumps([{"session": "s" * (LONGEST_SESSION + 1), "seconds": 1}]).encode(),
        b'[{"session": "s", "seconds": true}]',
        b'[{"session": "s", "seconds": -1}]',
        b'[{"session": "s", "seconds": NaN}]',
        b'[{"session": "s", "seconds": 1e999}]',
        b'[{"session": "s", "seconds": "1"}]',
        json.dumps([{"session": "s", "seconds": 1}] * (MOST_HINTS + 1)).encode(),
        b'[{"session": "good", "seconds": 1}, {"session": "s", "seconds": []}]',
    ],
)
def test_of_a_malformed_message_nothing_is_taken(message: bytes) -> None:
    desk = Desk()
    with pytest.raises(ValueError, match=r"^not|^session|^seconds"):
        read_hints(message)
    assert desk.post(message) == 400
    assert desk.taken == []


def test_the_rate_is_limited_and_recovers() -> None:
    desk = Desk()
    answers = [desk.post(b"[]") for _ in range(int(MESSAGES_AT_ONCE) + 2)]
    assert answers == [204] * int(MESSAGES_AT_ONCE) + [429, 429]
    desk.now += 0.06  # 20 a second
    assert [desk.post(b"[]"), desk.post(b"[]")] == [204, 429]
    desk.now += 3600
    assert [desk.post(b"[]") for _ in answers] == answers


def test_strangers_do_not_use_up_the_rate() -> None:
    desk = Desk()
    for _ in range(100):
        assert desk.post(HTTP_AUTHORIZATION="Bearer no") == 401
    assert desk.post() == 204


def post(port: int, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/hints", json.dumps(GOOD).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("key", [KEY, None])
def test_over_the_port_of_the_state(key: str | None) -> None:
    started: list[Any] = []

    def serve(_port: int, address: str, app: Any) -> None:
        started.append(start_state_server(0, address, app))

    pool = build_pool(GIX(9, 0))
    exporter = Exporter(1, "127.0.0.1", "0.32.0", key, serve)
    exporter.show(pool)
    ((server, thread),) = started
    try:
        port = server.server_port
        assert post(port, KEY) == (404 if key is None else 204)
        assert post(port, "another") == (404 if key is None else 401)
        assert list(pool.hints) == ([] if key is None else [("one", 12.5), ("two", None)])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"leafcutter_engine_hints_total 0.0" in answer.read()
        # With all places taken a further connection is closed without an answer.
        for _ in range(MOST_CONNECTIONS):
            server._places.acquire(timeout=10)
        with pytest.raises(OSError, match=r"."):
            post(port, KEY)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_hint_for_a_pool_that_is_gone_is_dropped() -> None:
    exporter = Exporter(1, "127.0.0.1", "0.32.0", KEY, lambda *_: None)
    exporter._pass_on(("one", 1.0))
    pool = build_pool(GIX(9, 0))
    exporter.show(pool)
    del pool
    exporter._pass_on(("one", 1.0))


def test_the_pool_tells_the_order_of_hints_before_it_takes_blocks() -> None:
    host = build_host()
    register({"LEAFCUTTER_EVICTION": "gix"}, host)
    pool = host.coordinator.BlockPool(num_gpu_blocks=20, enable_caching=True, hash_block_size=16)
    told: list[Hint] = []
    pool.order.expect = lambda *hint: told.append(hint)
    pool.hints.extend((str(number), 1.0) for number in range(HINTS_AT_ONCE + 3))
    pool.get_new_blocks(1)
    assert [session for session, _ in told] == [str(number) for number in range(HINTS_AT_ONCE)]
    pool.get_new_blocks(1)
    assert len(told) == HINTS_AT_ONCE + 3


class Request:
    """What `session_of` looks at."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("request_", "session"),
    [
        (Request(), None),
        (Request(session_id="one"), "one"),
        (Request(session_id="one", sampling_params=Request(extra_args={"session_id": "two"})), "one"),
        (Request(session_id=None, sampling_params=Request(extra_args={"session_id": "two"})), "two"),
        (Request(sampling_params=Request(extra_args={"session_id": "two"})), "two"),
        (Request(sampling_params=Request(extra_args={"other": 1})), None),
        (Request(sampling_params=Request(extra_args=None)), None),
        (Request(sampling_params=None), None),
        (Request(session_id=""), None),
        (Request(session_id=7), None),
        (Request(session_id="s" * (LONGEST_SESSION + 1)), None),
    ],
)
def test_the_session_of_a_request(request_: Any, session: str | None) -> None:
    assert session_of(request_) == session
