"""An engine on a loopback port that follows a script: it answers as vLLM does, or fails as a test asks it to."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support import api_answers

MODEL = "tiny"
REFUSAL = {"message": "prompt too long", "type": "invalid_request_error", "param": None, "code": 400}


@dataclass
class Script:
    """What the engine does with each request."""

    tokens: tuple[str, ...] = ("The capital", " of France", " is Paris.")
    fault: str | None = None
    """None, `hang` (the engine falls silent), `cut` (it closes the connection) or `reset` (it resets it)."""
    after: int | None = None
    """When the fault happens. None: before the head of the answer; 0: after the head; n: after n chunks."""
    strike: asyncio.Event | None = None
    """The fault waits for this event."""
    raw: bytes | None = None
    """These bytes are the answer, whatever they are, and the connection is closed after them."""
    status: int = 200
    error: dict[str, Any] | None = None
    """An error that is the whole answer, or that is sent inside the stream if the status is 200."""
    done: bool = True
    """Whether a stream ends with [DONE]."""
    tool_call: dict[str, str] | None = None
    prompt_tokens: int = 40
    cached_tokens: int = 32
    headers: Mapping[str, str] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    """Each token waits for this event."""
    ranks: tuple[int, ...] = ()
    """The data-parallel ranks that its page of metrics names."""


@dataclass
class Request:
    """A request that the engine has received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    peer: object
    """The address at the other end of its connection."""

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


class FakeEngine:
    """The engine, which follows `script` and keeps all requests in `requests`.

    running: requests that it is working on. cancelled: requests whose client went away. arrived: set by the first
    request.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.requests: list[Request] = []
        self.running = 0
        self.cancelled = 0
        self.arrived = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeEngine]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)  # what the gateway itself asks is no request of the script
        app.router.add_get("/version", self._missing)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _missing(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _metrics(self, request: web.Request) -> web.Response:
        line = 'vllm:cache_config_info{block_size="16",engine="%d",num_gpu_blocks="65"} 1.0\n'
        return web.Response(text="".join(line % rank for rank in self.script.ranks))

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Request(request.method, request.path_qs, headers, await request.read(), peer))
        self.arrived.set()
        self.running += 1
        try:
            try:
                body = self.requests[-1].json
            except ValueError:  # a form, or nothing
                body = {}
            return await self._answer(request, body if isinstance(body, dict) else {})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        script = self.script
        if script.after is None:
            await self._fault(request)
        if script.raw is not None:
            assert request.transport is not None
            request.transport.write(script.raw)
            request.transport.close()
            raise ConnectionResetError
        if script.status != 200:
            return web.json_response({"error": script.error}, status=script.status, headers=script.headers)
        if body.get("stream"):
            return await self._stream(request, body)
        if script.fault is not None and script.after == 0:
            await web.StreamResponse().prepare(request)
            await self._fault(request)
        if script.gate is not None:
            await script.gate.wait()
        return web.json_response(self._whole(request.path, body), headers=script.headers)

    async def _fault(self, request: web.Request) -> None:
        if self.script.strike is not None:
            await self.script.strike.wait()
        if self.script.fault == "hang":
            await asyncio.Event().wait()
        if self.script.fault in ("cut", "reset"):
            assert request.transport is not None
            if self.script.fault == "reset":
                linger = struct.pack("ii", 1, 0)
                request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.transport.abort()
            raise ConnectionResetError

    def _usage(self) -> dict[str, Any]:
        script = self.script
        return {
            "prompt_tokens": script.prompt_tokens,
            "completion_tokens": len(script.tokens),
            "total_tokens": script.prompt_tokens + len(script.tokens),
            "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
        }

    def _whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = "".join(self.script.tokens)
        if (other := api_answers.whole(path, self.script)) is not None:
            return other
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if "chat" in path:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
            if self.script.tool_call:
                choice["message"] |= {"content": None, "tool_calls": [self._call()]}
        else:
            choice["text"] = text
        return {"id": "x", "object": "answer", "model": MODEL, "choices": [choice], "usage": self._usage()}

    def _call(self) -> dict[str, Any]:
        return {"id": "call-1", "type": "function", "function": self.script.tool_call}

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        script = self.script
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **script.headers})
        await response.prepare(request)
        for index, chunk in enumerate(self._chunks(request.path, body)):
            if script.after == index:
                await self._fault(request)
            if script.gate is not None and index:
                await script.gate.wait()
            await response.write(chunk)
        await response.write_eof()
        return response

    def _chunks(self, path: str, body: dict[str, Any]) -> list[bytes]:
        if (other := api_answers.events(path, self.script)) is not None:
            return other
        options = body.get("stream_options") or {}
        continuous = {"usage": self._usage()} if options.get("continuous_usage_stats") else {}
        deltas: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}] if "chat" in path else []
        deltas += [{"delta": {"content": t}} if "chat" in path else {"text": t} for t in self.script.tokens]
        chunks = [{"id": "x", "choices": [{"index": 0, **delta}], **continuous} for delta in deltas]
        if self.script.error:
            chunks.append({"error": self.script.error})
        if options.get("include_usage"):
            chunks.append({"id": "x", "choices": [], "usage": self._usage()})
        data = [json.dumps(chunk) for chunk in chunks] + (["[DONE]"] if self.script.done else [])
        return [f"data: {each}\n\n".encode() for each in data]
