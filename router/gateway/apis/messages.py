"""Anthropic's Messages API.

The engine makes a chat of each request: the system prompt becomes the first message, results of tools become messages
of their own, and blocks of thinking and of tool use become parts of the assistant's message. Marks such as
`cache_control`, which move from turn to turn, are no part of the prompt.

Claude Code begins the system prompt with a block of text that has a number of its own in each request. The engine drops
such blocks (`transcript.BILLING`), and so does `chat` here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from router.gateway import transcript
from router.gateway.apis.base import ChatLike, Fields, named, objects
from router.gateway.observe import ObservedAnswer, count, dicts

SAME = ("model", "cache_salt", "chat_template_kwargs")
INPUT_TOKENS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
TOLD = (*INPUT_TOKENS, "output_tokens")


@dataclass(slots=True)
class MessagesAnswer(ObservedAnswer):
    """A stream tells its usage in parts, of which the last one holds."""

    told: dict[str, Any] = field(default_factory=dict)
    """The usage as far as it has been told."""

    def read(self, document: dict[str, Any]) -> None:
        kind = document.get("type")
        if kind == "content_block_delta":
            self.started = True
            self.tokens += 1
            self._read_delta(document)
        elif kind == "content_block_start":
            self.started = True
            self._read_block(document.get("index"), document.get("content_block"))
        elif kind == "message_start" and isinstance(document.get("message"), dict):
            self._read_usage(document["message"].get("usage"))
        elif kind == "message_delta":
            self._read_usage(document.get("usage"))
            if isinstance(document.get("delta"), dict):
                self.reason = document["delta"].get("stop_reason") or self.reason
        elif kind == "message_stop":
            self.done = True
        elif kind == "message":
            self._read_usage(document.get("usage"))
            self.reason = document.get("stop_reason")
            for index, block in enumerate(dicts(document.get("content"))):
                self._read_block(index, block)
        elif kind == "error" or document.get("error"):
            self.error = document.get("error") or "unknown"

    def error_body(self) -> bytes:
        return json.dumps({"type": "error", "error": self.error}).encode()

    def _read_delta(self, document: dict[str, Any]) -> None:
        delta = document.get("delta")
        if isinstance(delta, dict):
            self._add_texts(delta)
            if isinstance(arguments := delta.get("partial_json"), str):
                self._add_call(document.get("index"), {"arguments": arguments})

    def _read_block(self, index: object, block: object) -> None:
        """Take in a block: a whole one, or the beginning of one that deltas will continue."""
        if not isinstance(block, dict):
            return
        self._add_texts(block)
        if block.get("type") == "tool_use":
            arguments = json.dumps(block["input"]) if block.get("input") else ""
            self._add_call(index, {"name": block.get("name"), "arguments": arguments}, block.get("id"))

    def _add_texts(self, block: dict[str, Any]) -> None:
        if isinstance(text := block.get("text"), str):
            self.message.add_text("content", text)
        if isinstance(text := block.get("thinking"), str):
            self.message.add_text("reasoning", text)

    def _add_call(self, index: object, function: dict[str, Any], name: object = None) -> None:
        self.message.add({"tool_calls": [{"index": index, "id": name, "function": function}]})

    def _read_usage(self, usage: object) -> None:
        """The engine counts the tokens that it found in its cache apart from the other tokens of the prompt."""
        if not isinstance(usage, dict):
            return
        self.told.update({name: usage[name] for name in TOLD if usage.get(name) is not None})
        parts = [count(self.told[name]) for name in INPUT_TOKENS if name in self.told]
        total = sum(part for part in parts if part is not None) if None not in parts else None
        cached = {"cached_tokens": self.told.get("cache_read_input_tokens")}
        self.usage.set(total, cached, self.told.get("output_tokens"))


class Messages(ChatLike):
    """`/v1/messages`."""

    answer = MessagesAnswer

    def chat(self, fields: Fields) -> Fields:
        chat = {name: fields[name] for name in SAME if name in fields}
        thinking, output = fields.get("thinking"), fields.get("output_config")
        effort = output.get("effort") if isinstance(output, dict) else None
        if isinstance(thinking, dict) and thinking.get("type") == "disabled":
            effort = "disabled"
        if effort is not None:
            chat["reasoning_effort"] = effort
        if isinstance(tools := fields.get("tools"), list) and tools:
            chat["tools"] = [_tool(tool) for tool in tools]
        choice = fields.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") == "none":
            chat["tool_choice"] = "none"
        system = _system_text(fields.get("system"))
        chat["messages"] = [{"role": "system", "content": system}] if system else []
        for message in objects(fields.get("messages"), "messages"):
            chat["messages"].extend(_turn(message))
        return chat

    def session(self, fields: Fields) -> str | None:
        metadata = fields.get("metadata")
        user = named(metadata, "user_id") if isinstance(metadata, dict) else None
        return super().session(fields) or user

    def reply(self, message: Fields) -> bytes:
        """The arguments of calls arrive as text, and the next turn repeats them as JSON in any form."""
        calls = [{**call, "function": _function(call["function"])} for call in message.get("tool_calls", ())]
        return transcript.message({**message, "tool_calls": calls})


def _function(function: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return function
    return {**function, "arguments": json.dumps(arguments)}


def _tool(tool: object) -> object:
    """A tool of the client in the shape that chat completions give it; any other tool as it is, without its mark."""
    if not isinstance(tool, dict):
        return tool
    if "input_schema" not in tool:
        return _unmarked(tool)
    kept = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**kept, "parameters": tool["input_schema"]}}


def _unmarked(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "cache_control"}


def _system_text(system: object) -> object:
    """The system prompt as one text, or as it is if it has a form that is not known."""
    if not isinstance(system, list):
        return system
    texts = (block.get("text") for block in dicts(system) if block.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str) and not text.startswith(transcript.BILLING))


def _turn(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages of a chat that a message stands for: first the results of tools, then what the role itself says."""
    role, content = message.get("role"), message.get("content")
    if role == "system":
        content = _system_text(content)
        if content:
            yield {"role": role, "content": content}
        return
    if not isinstance(content, list):
        yield {"role": role, "content": content}
        return
    parts: list[object] = []
    said: dict[str, Any] = {"role": role}
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result" and role == "user":
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _result(block.get("content"))}
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            said.setdefault("tool_calls", []).append({"id": block.get("id"), "function": function})
        elif kind == "thinking":
            said["reasoning"] = said.get("reasoning", "") + str(block.get("thinking") or "")
        elif isinstance(block, dict):
            if kind != "redacted_thinking" and block.get("text") != "":
                parts.append(_unmarked(block))
        else:
            parts.append(block)
    if parts or len(said) > 1:
        yield {**said, "content": parts}


def _result(content: object) -> object:
    """What a tool has returned, without marks."""
    return [_unmarked(part) for part in dicts(content)] if isinstance(content, list) else content
