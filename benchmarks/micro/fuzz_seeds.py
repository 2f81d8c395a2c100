"""What clients and engines send in earnest: `fuzz` begins with it."""

from __future__ import annotations

import json
from typing import Any

from router.gateway import apis

MODEL = "m"
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
BOUNDARY = b"multipart/form-data; boundary=b-1"
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "x-anthropic-billing-header: cc_version=2; cch=12345;\n" + TEXT},
    {
        "role": "user",
        "content": [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": "data:,"}}],
    },
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
]
BODIES: dict[str, dict[str, Any]] = {
    apis.CHAT: {"model": MODEL, "messages": CHAT, "stream": True, "n": 2, "max_tokens": 5, "user": "u", "tools": []},
    apis.COMPLETIONS: {
        "model": MODEL,
        "prompt": [1, 2, 3] * 40,
        "echo": False,
        "stream_options": {"include_usage": True},
    },
    apis.RESPONSES: {
        "model": MODEL,
        "instructions": TEXT,
        "input": [{"role": "user", "content": TEXT}],
        "stream": True,
    },
    apis.MESSAGES: {
        "model": MODEL,
        "max_tokens": 9,
        "system": [{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": TEXT}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]},
        ],
        "metadata": {"user_id": "u"},
    },
    "/v1/embeddings": {"model": MODEL, "input": [TEXT, "b"], "cache_salt": "s", "priority": 3},
    "/v1/rerank": {"model": MODEL, "query": "q", "documents": ["a", {"text": "b"}]},
    "/v1/score": {"model": MODEL, "text_1": "a", "text_2": ["b"]},
    "/tokenize": {"model": MODEL, "prompt": TEXT},
}
FORM = b"".join(
    b'--b-1\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % each
    for each in ((b'file"; filename="a.wav', b"RIFF" * 20), (b"model", b"m"), (b"stream", b"true"))
)
BODY_SEEDS = [json.dumps(each).encode() for each in BODIES.values()] + [FORM + b"--b-1--\r\n"]

USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 32}}
OTHER_USAGE = {"input_tokens": 40, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 32}}
CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
ANSWERS: list[dict[str, Any]] = [
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT, "tool_calls": [CALL]}}],
        "usage": USAGE,
    },
    {"choices": [{"index": 0, "text": TEXT, "token_ids": [1, 2, 3]}], "usage": USAGE},
    {"error": {"message": "no", "type": "server_error", "code": 500}},
    {"object": "error", "message": "no", "code": 400},
    {
        "object": "response",
        "status": "completed",
        "output": [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        ],
        "usage": OTHER_USAGE,
    },
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": TEXT}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}],
        "usage": {**OTHER_USAGE, "cache_read_input_tokens": 32, "cache_creation_input_tokens": 0},
    },
    {"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 4, "total_tokens": 4}},
]
ANSWER_SEEDS = [json.dumps(each).encode() for each in ANSWERS]


def _events(*documents: dict[str, Any], end: bytes = b"data: [DONE]\n\n") -> bytes:
    return (
        b"".join(
            (b"event: %b\n" % each["type"].encode() if "type" in each else b"")
            + b"data: %b\n\n" % json.dumps(each).encode()
            for each in documents
        )
        + end
    )


STREAM_SEEDS = [
    _events(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        *({"choices": [{"index": 0, "delta": {"content": f" word{n}"}}]} for n in range(6)),
        {"choices": [{"index": 0, "delta": {"tool_calls": [CALL]}}]},
        {"choices": [], "usage": USAGE},
    ),
    _events(
        *({"choices": [{"index": 0, "text": f" word{n}", "token_ids": [n]}]} for n in range(4)),
        {"choices": [], "usage": USAGE},
    ),
    _events({"choices": [{"index": 0, "text": "a"}]}, {"error": {"message": "no", "code": 503}}),
    _events(
        {"type": "response.created", "response": ANSWERS[4]},
        {"type": "response.output_text.delta", "delta": " a", "output_index": 0, "content_index": 0},
        {"type": "response.output_item.done", "item": {"type": "function_call", "name": "f", "arguments": "{}"}},
        {"type": "response.completed", "response": ANSWERS[4]},
        end=b"",
    ),
    _events(
        {"type": "message_start", "message": ANSWERS[5]},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
        end=b"",
    ),
]
STREAM_SEEDS += [seed.replace(b"\n", b"\r\n") for seed in STREAM_SEEDS[:2]]


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"Host: x", *headers, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


_CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()
REQUEST_SEEDS = [
    *(post(route, json.dumps(body).encode(), b"Content-Type: application/json") for route, body in BODIES.items()),
    post("/v1/audio/transcriptions", FORM + b"--b-1--\r\n", b"Content-Type: " + BOUNDARY),
    post(
        apis.CHAT, _CHAT, b"Authorization: Bearer k", b"X-Request-Id: r", b"x-slo-ttft-ms: 5", b"Expect: 100-continue"
    ),
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'1e\r\n{"model": "m", "prompt": "hello\r\n2\r\n"}\r\n0\r\nx: y\r\n\r\n',
    post(apis.CHAT, _CHAT, b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk"),
    post(apis.CHAT, _CHAT) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + post(apis.CHAT, _CHAT),
    b"GET /v1/models HTTP/1.0\r\nAccept: */*\r\n\r\n",
    b"GET http://x/v1/models/m%20?a=b#c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /decisions?limit=5 HTTP/1.1\r\nHost: x\r\n\r\n",
    post("/explain", _CHAT, b"X-Leafcutter-Route: /v1/chat/completions"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]

_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENGINE_SEEDS = [
    *(_JSON + b"Content-Length: %d\r\n\r\n%b" % (len(each), each) for each in ANSWER_SEEDS[:3]),
    *(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (len(each), each)
        for each in STREAM_SEEDS[:2]
    ),
    b"HTTP/1.1 100 Continue\r\n\r\n" + _JSON + b"Content-Length: 2\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\n\r\n{}",
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
]

FACT_SEEDS = [
    json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "adapter"}]}).encode(),
    b'{"version": "0.32.0"}',
    b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="65"} 1.0\n'
    b'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="65"} 1.0\n',
    b'leafcutter_engine_info{order="rlt_gix",plugin_version="1.0",vllm_version="0.32.0"} 1.0\n'
    b"leafcutter_engine_capacity_blocks 64.0\n# HELP x y\n",
]
