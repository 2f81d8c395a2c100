"""Answers as vLLM gives them on the routes beside chat and completions, with the words and the usage of a script."""

from __future__ import annotations

import json
from typing import Any, Protocol

MODEL = "tiny"


class Words(Protocol):
    """What an answer says."""

    tokens: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    error: dict[str, Any] | None
    done: bool
    tool_call: dict[str, str] | None


def whole(path: str, script: Words) -> dict[str, Any] | None:
    """The whole answer on one of these routes; None: another route."""
    if path == "/v1/responses":
        return _response(script, "completed")
    if path == "/v1/messages":
        return _message(script, _blocks(script), _messages_usage(script))
    if path == "/v1/messages/count_tokens":
        return {"input_tokens": script.prompt_tokens}
    if path in ("/v1/embeddings", "/pooling"):
        usage = {"prompt_tokens": script.prompt_tokens, "total_tokens": script.prompt_tokens}
        data = [{"index": 0, "object": "embedding", "embedding": [0.5, 0.25]}]
        return {"id": "e", "object": "list", "model": MODEL, "data": data, "usage": usage}
    if path.startswith("/v1/audio/"):
        return {"text": "".join(script.tokens), "usage": {"type": "duration", "seconds": 2}}
    return None


def events(path: str, script: Words) -> list[bytes] | None:
    """The events of a stream on one of these routes; None: another route."""
    if path == "/v1/responses":
        return [_event(each) for each in _responses_events(script)]
    if path == "/v1/messages":
        return [_event(each) for each in _messages_events(script)]
    return None


def _event(document: dict[str, Any]) -> bytes:
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode()


# --- responses --------------------------------------------------------------------------------------------------------


def _response(script: Words, status: str) -> dict[str, Any]:
    output = [_call_item(script)] if script.tool_call else [_text_item("".join(script.tokens))]
    usage = {
        "input_tokens": script.prompt_tokens,
        "input_tokens_details": {"cached_tokens": script.cached_tokens},
        "output_tokens": len(script.tokens),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": script.prompt_tokens + len(script.tokens),
    }
    begun = status == "completed"
    head = {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": MODEL, "error": None}
    options = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": None}
    return {**head, **options, "output": output if begun else [], "usage": usage if begun else None}


def _text_item(text: str) -> dict[str, Any]:
    content: list[Any] = [{"type": "output_text", "text": text, "annotations": [], "logprobs": None}]
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}


def _call_item(script: Words) -> dict[str, Any]:
    assert script.tool_call is not None
    return {"id": "fc_1", "type": "function_call", "call_id": "call-1", "status": "completed", **script.tool_call}


def _responses_events(script: Words) -> list[dict[str, Any]]:
    item = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    found: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(script, "in_progress")},
        {"type": "response.in_progress", "response": _response(script, "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": {**_text_item(""), "content": []}},
    ]
    found += [{"type": "response.output_text.delta", **item, "delta": t, "logprobs": []} for t in script.tokens]
    if script.error:
        found.append({**script.error, "type": "error"})
    elif script.done:
        found.append({"type": "response.completed", "response": _response(script, "completed")})
    return [{"sequence_number": number, **each} for number, each in enumerate(found)]


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages_usage(script: Words) -> dict[str, int]:
    """The engine counts cached tokens apart from the other input."""
    new, cached = script.prompt_tokens - script.cached_tokens, script.cached_tokens
    return {"input_tokens": new, "cache_read_input_tokens": cached, "output_tokens": len(script.tokens)}


def _message(script: Words, content: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": content}
    return {**head, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}


def _blocks(script: Words) -> list[dict[str, Any]]:
    if script.tool_call:
        return [{"type": "tool_use", "id": "call-1", **_call(script, json.loads(script.tool_call["arguments"]))}]
    return [{"type": "text", "text": "".join(script.tokens)}]


def _call(script: Words, arguments: Any) -> dict[str, Any]:
    assert script.tool_call is not None
    return {"name": script.tool_call["name"], "input": arguments}


def _messages_events(script: Words) -> list[dict[str, Any]]:
    usage = _messages_usage(script)
    found: list[dict[str, Any]] = [
        {"type": "message_start", "message": _message(script, [], {**usage, "output_tokens": 0})}
    ]
    if script.tool_call:
        arguments = script.tool_call["arguments"]
        block: dict[str, Any] = {"type": "tool_use", "id": "call-1", **_call(script, {})}
        pieces = arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": text} for text in script.tokens]
    found.append({"type": "content_block_start", "index": 0, "content_block": block})
    found += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    found.append({"type": "content_block_stop", "index": 0})
    if script.error:
        found.append({"type": "error", "error": script.error})
    elif script.done:
        found.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})
        found.append({"type": "message_stop"})
    return found
