from __future__ import annotations

import json

import pytest

from router.errors import EngineFailed, EngineLost
from router.gateway.apis.messages import MessagesAnswer
from router.gateway.client import Client, Message
from router.gateway.headers import Headers
from router.gateway.observe import ObservedAnswer
from router.gateway.relay import WHOLE_BYTES, relay_stream, relay_whole
from router.gateway.upstream import UpstreamAnswer

TOKEN = b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Answer(UpstreamAnswer):
    """An engine's answer that gives `pieces` in turn and raises an exception that is one of them."""

    def __init__(self, *pieces: bytes | Exception, status: int = 200) -> None:
        self.pieces, self.status = list(pieces), status
        self.headers: Headers = [(b"content-type", b"x"), (b"server", b"uvicorn"), (b"openai-kept", b"1")]

    async def read(self) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def read_all(self) -> bytes:
        return b"".join([await self.read() for _ in list(self.pieces)])


class Sink:
    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.tokens_at: list[int] = []
        self.client = Client({"path": "/v1/completions", "headers": []}, self.receive, self.send)

    async def receive(self) -> Message:
        raise AssertionError("a relay reads nothing of the client")

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if "body" in message]

    async def stream(
        self, *pieces: bytes | Exception, hide_usage: bool = True, observed: ObservedAnswer | None = None
    ) -> ObservedAnswer:
        observed = observed or ObservedAnswer()
        await relay_stream(
            self.client,
            Answer(*pieces),
            observed,
            [(b"x-own", b"1")],
            hide_usage=hide_usage,
            on_first_token=lambda: self.tokens_at.append(len(self.bodies)),
        )
        return observed


async def test_events_leave_one_by_one_and_the_first_token_is_told_once_before() -> None:
    sink = Sink()
    await sink.stream(b": hi\n\n", TOKEN, TOKEN, DONE)
    assert sink.bodies == [b": hi\n\n", TOKEN, TOKEN, DONE, b""]
    assert sink.tokens_at == [1]
    names = {name for name, _ in sink.sent[0]["headers"]}
    assert names == {b"content-type", b"openai-kept", b"x-own", b"cache-control", b"x-accel-buffering"}


async def test_a_connection_broken_after_the_end_mark_is_a_whole_answer() -> None:
    sink = Sink()
    await sink.stream(TOKEN, DONE, EngineLost("x"))
    assert sink.bodies[-1] == b""
    assert not sink.sent[-1]["more_body"]


@pytest.mark.parametrize("end", [[b"message_stop"], [b"content_block_start", b"message_stop"]])
async def test_end_marks_that_are_read_late_count_too(end: list[bytes]) -> None:
    events = [b'event: %b\ndata: {"type":"%b"}\n\n' % (kind, kind) for kind in (b"content_block_start", *end)]
    sink = Sink()
    await sink.stream(*events, EngineLost("x"), hide_usage=False, observed=MessagesAnswer())
    assert b"".join(sink.bodies) == b"".join(events)
    assert not sink.sent[-1]["more_body"]


@pytest.mark.parametrize("pieces", [(TOKEN, EngineLost("x")), (TOKEN,), (EngineLost("x"),), ()])
async def test_a_stream_without_its_end_mark_is_lost(pieces: tuple[bytes | Exception, ...]) -> None:
    sink = Sink()
    with pytest.raises(EngineLost):
        await sink.stream(*pieces)
    assert sink.client.started is (TOKEN in pieces)


@pytest.mark.parametrize("hide_usage", [True, False])
async def test_a_torn_event_is_known_to_the_client_side(hide_usage: bool) -> None:
    sink = Sink()
    with pytest.raises(EngineLost):
        await sink.stream(TOKEN + TOKEN[:9], EngineLost("x"), hide_usage=hide_usage)
    assert sink.client.torn is not hide_usage


async def test_a_whole_answer_is_read_before_it_is_sent() -> None:
    sink = Sink()
    with pytest.raises(EngineLost):
        await relay_whole(sink.client, Answer(b'{"a"', EngineLost("x")), ObservedAnswer(), [])
    assert sink.sent == []


async def test_a_whole_answer_passes_with_its_status_and_is_observed() -> None:
    sink, observed = Sink(), ObservedAnswer()
    body = json.dumps({"error": {"message": "no"}}).encode()
    await relay_whole(sink.client, Answer(body[:5], body[5:], status=404), observed, [])
    assert (sink.sent[0]["status"], b"".join(sink.bodies), observed.failed) == (404, body, True)


async def test_busy_engines_words_are_kept() -> None:
    sink = Sink()
    with pytest.raises(EngineFailed) as caught:
        await relay_whole(sink.client, Answer(b"later", status=503), ObservedAnswer(), [])
    assert caught.value.body() == b"later"
    assert (b"openai-kept", b"1") in caught.value.headers
    assert sink.sent == []


@pytest.mark.parametrize(("code", "fails"), [(503, True), (500, True), (None, True), ("x", True), (400, False)])
async def test_an_error_that_is_all_of_a_stream_may_be_tried_elsewhere(code: object, fails: bool) -> None:
    sink, error = Sink(), {"message": "no", "code": code}
    event = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    if not fails:
        await sink.stream(event, DONE)
        assert event in sink.bodies
        return
    with pytest.raises(EngineFailed) as caught:
        await sink.stream(event, DONE)
    assert (caught.value.status, json.loads(caught.value.body())) == (code if code == 503 else 500, {"error": error})
    assert sink.sent == []


async def test_an_error_behind_a_token_stays_in_its_stream() -> None:
    sink, event = Sink(), b'data: {"error": {"code": 500}}\n\n'
    observed = await sink.stream(TOKEN, event, DONE)
    assert sink.bodies == [TOKEN, event, DONE, b""]
    assert (observed.failed, observed.error_status) == (True, 500)


async def test_a_huge_whole_answer_passes_as_it_comes() -> None:
    sink, piece = Sink(), b"x" * (WHOLE_BYTES // 2)
    await relay_whole(sink.client, Answer(*[piece] * 6), ObservedAnswer(), [])
    assert b"".join(sink.bodies) == piece * 6
    assert [len(body) // len(piece) for body in sink.bodies] == [3, 1, 1, 1, 0]
    assert [message["more_body"] for message in sink.sent[1:]] == [True] * 4 + [False]
    assert b"content-length" not in dict(sink.sent[0]["headers"])


async def test_a_huge_whole_answer_that_breaks_is_cut_off_and_not_ended() -> None:
    sink, piece = Sink(), b"x" * (WHOLE_BYTES // 2)
    with pytest.raises(EngineLost):
        await relay_whole(sink.client, Answer(*[piece] * 4, EngineLost("x")), ObservedAnswer(), [])
    await sink.client.fail(EngineLost("x"), [])
    assert sink.client.started
    assert all(message["more_body"] for message in sink.sent[1:])
