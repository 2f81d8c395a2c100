"""OpenAI's Responses API.

The engine makes a chat of the instructions and of the items of the input. Items that belong to one turn of the model
(its reasoning, its text, its calls of tools) become one assistant message, in the input as in the output, so that an
answer and its repetition in the next turn give the same bytes.

A request that names a `previous_response_id` continues a conversation that only one engine has, in its memory. It goes
to an engine like any other request; with several engines, clients send the whole conversation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from router.errors import BadRequest
from router.gateway.apis.base import ChatLike, Fields, objects, positive
from router.gateway.observe import ObservedAnswer, dicts

SAME = ("model", "cache_salt", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs")
CALLS = ("function_call", "custom_tool_call")
CALL_OUTPUTS = ("function_call_output", "custom_tool_call_output")
ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


@dataclass(slots=True)
class ResponsesAnswer(ObservedAnswer):
    """A stream ends with an event that holds the whole answer, so that the deltas need not be put together."""

    def read(self, document: dict[str, Any]) -> None:
        kind = document.get("type")
        if not isinstance(kind, str):
            self._read_whole(document)
        elif kind.endswith(".delta"):
            self.started = True
            self.tokens += 1
        elif kind == "response.output_item.added":
            self.started = True
        elif kind in ENDS:
            self.done = True
            self._read_whole(document.get("response"))
        elif kind == "error":
            self.error = document.get("error") or document

    def _read_whole(self, response: object) -> None:
        if not isinstance(response, dict):
            return
        if response.get("error") or response.get("status") == "failed":
            self.error = response.get("error") or "unknown"
        self.reason = response.get("status")
        if isinstance(usage := response.get("usage"), dict):
            self.usage.set(usage.get("input_tokens"), usage.get("input_tokens_details"), usage.get("output_tokens"))
        for message in conversation(dicts(response.get("output"))):
            self.message.add(message)


class Responses(ChatLike):
    """`/v1/responses`."""

    answer = ResponsesAnswer

    def chat(self, fields: Fields) -> Fields:
        chat = {name: fields[name] for name in SAME if name in fields}
        reasoning = fields.get("reasoning")
        if isinstance(reasoning, dict) and reasoning.get("effort"):
            chat["reasoning_effort"] = reasoning["effort"]
        if isinstance(tools := fields.get("tools"), list) and tools:
            chat["tools"] = [_tool(tool) for tool in tools]
        if fields.get("tool_choice") == "none":
            chat["tool_choice"] = "none"
        earlier = [fields[name] for name in ("previous_response_id", "prompt") if fields.get(name)]
        if earlier:  # what comes first is not in the body: no other request may match
            chat["documents"] = earlier
        instructions = fields.get("instructions")
        leading = [{"role": "system", "content": instructions}] if instructions else []
        chat["messages"] = leading + _input(fields.get("input"))
        return chat

    def max_tokens(self, fields: Fields) -> int | None:
        return positive(fields.get("max_output_tokens"))


def _input(value: object) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        return conversation(objects(value, "input"))
    raise BadRequest("`input` must be text or a list of items.", param="input")


def _tool(tool: object) -> object:
    """A function in the shape that chat completions give it; any other tool as it is."""
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool:
        return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
    return tool


def conversation(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a chat that the items stand for."""
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type") or "message"
        last = messages[-1] if messages and messages[-1].get("role") == "assistant" else None
        if kind in CALLS:
            arguments = item.get("arguments") if kind == "function_call" else item.get("input")
            call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": arguments}}
            if last is None:
                messages.append(last := {"role": "assistant"})
            last.setdefault("tool_calls", []).append(call)
        elif kind == "reasoning":
            _add_part(messages, last, "reasoning", _reasoning(item))
        elif kind in CALL_OUTPUTS:
            tool = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
            messages.append(tool)
        elif kind == "message" and item.get("role") == "assistant":
            _add_part(messages, last, "content", _text(item.get("content")))
        elif kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        else:
            messages.append({"role": str(kind), "content": [item]})
    return messages


def _add_part(messages: list[dict[str, Any]], last: dict[str, Any] | None, name: str, value: object) -> None:
    """Add a part of an assistant message to the last message, or begin a new one if that has such a part."""
    if last is None or name in last or (name == "reasoning" and "tool_calls" in last):
        messages.append({"role": "assistant", name: value})
    else:
        last[name] = value


def _text(content: object) -> object:
    """The text of a message of the model, if it has one part; else its content as it is."""
    parts = dicts(content)
    return parts[0].get("text") if len(parts) == 1 and isinstance(parts[0].get("text"), str) else content


def _reasoning(item: Fields) -> str:
    parts = dicts(item.get("content")) or dicts(item.get("summary"))
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
