"""Two turns of one conversation, as requests that have been read: does the second chain continue the first one?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from router.gateway.observe import ObservedAnswer
from router.gateway.openai_request import OpenAIRequest, parse_request
from router.gateway.stream_observer import StreamObserver

LONG = "What is the capital of France? " * 40


def read(route: str, fields: dict[str, Any]) -> OpenAIRequest:
    body = json.dumps(fields).encode()
    return parse_request(body, route=route, headers={}, request_id="r", block_tokens=4)


def observed(request: OpenAIRequest, *documents: dict[str, Any]) -> ObservedAnswer:
    """What is observed of a stream of these documents, cut where it hurts."""
    answer = request.api.answer()
    observer = StreamObserver(answer, hide_usage=request.hide_usage)
    text = b"".join(f"event: {each.get('type')}\ndata: {json.dumps(each)}\n\n".encode() for each in documents)
    for start in range(0, len(text), 97):
        observer.feed(text[start : start + 97])
    observer.finish()
    observer.read_rest()
    return answer


def continued(first: OpenAIRequest, answer: ObservedAnswer, second: OpenAIRequest) -> bool:
    """Whether the second prompt begins with the keys of the first one and of its reply, which has some."""
    reply = first.reply_keys(answer.message.fields(), answer.message.token_ids)
    keys: Sequence[int] = (*first.parsed.prompt.keys, *reply)
    return bool(reply) and second.parsed.prompt.keys[: len(keys)] == tuple(keys)
