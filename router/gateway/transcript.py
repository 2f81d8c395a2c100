"""A conversation as bytes, in the order in which the engine sees it, so that each turn begins with the turn before.

    turn 1:  <user: hello>
    reply:                 <assistant: hi>
    turn 2:  <user: hello> <assistant: hi> <user: and now?>

What shapes a prompt as a whole (model, cache salt, tools, template options) goes into the `root` of its chain of
blocks. The text that the chat template adds is left out: the bytes need only be equal where the engine's tokens are
equal, and the ratio of tokens to bytes is learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

# Fields that change how a prompt begins, or which cache it may share. Fields that change only its end, which are
# add_generation_prompt and continue_final_message, are left out, because the engine shares the beginning all the same.
# A LoRA adapter needs no field of its own: in vLLM its name is the model.
ROOT_FIELDS = (
    "model",
    "cache_salt",
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "truncation_side",
    "prompt_embeds",
)
# Claude Code begins the system prompt with a line that has a number of its own in each request. The engine drops it
# (vLLM, `_strip_claude_code_billing_header`), or no prompt would match another one.
BILLING = "x-anthropic-billing-header"
MESSAGE, FIELD = b"\x1e", b"\x1f"  # the ASCII record and unit separators, which no text contains
REASONING = ("reasoning", "reasoning_content")  # the new and the old name of one field

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def encode(text: str) -> bytes:
    """Encode as UTF-8. Lone surrogates, which JSON can carry, are encoded too."""
    return text.encode("utf-8", "surrogatepass")


def canonical(value: object) -> bytes:
    """The JSON of `value` with sorted keys and no spaces, so that equal values give equal bytes."""
    return encode(_canonical(value))


def root(kind: str, body: Mapping[str, Any]) -> bytes:
    """What all prompts of one chain have in common. kind: keeps chats and plain completions apart."""
    fields = {name: body[name] for name in ROOT_FIELDS if body.get(name) is not None}
    if body.get("tool_choice") == "none":  # the engine may leave the tools out; other values only guide decoding
        fields["tool_choice"] = "none"
    return canonical([kind, fields])


def conversation(body: Mapping[str, Any]) -> bytes:
    """The messages of a chat request, with its tools after the leading system message, where templates put them.

    The tools are here so that their text counts for the length of the prompt. Prompts with different tools are already
    kept apart by the root.
    """
    parts = [message(each) for each in body["messages"]]
    if body.get("tools"):
        leading = bool(body["messages"]) and body["messages"][0].get("role") in ("system", "developer")
        parts.insert(int(leading), canonical(body["tools"]))
    return b"".join(parts)


def message(fields: Mapping[str, Any]) -> bytes:
    """One message: its role, reasoning, content and tool calls, then any other field that is not empty."""
    parts = [MESSAGE + encode(str(fields.get("role")))]
    other_fields = {
        name: value
        for name, value in fields.items()
        if name not in ("role", "content", "tool_calls", *REASONING) and value not in (None, "", [], {})
    }
    for name in REASONING:
        if fields.get(name):
            parts.append(canonical(fields[name]))
            break
    content = fields.get("content")
    parts.append(_content(_unbilled(content) if fields.get("role") == "system" else content))
    if calls := fields.get("tool_calls"):
        parts.append(canonical(_calls(calls)))
    if other_fields:
        parts.append(canonical(other_fields))
    return FIELD.join(parts)


def _content(content: object) -> bytes:
    """The content as bytes. The parts of a list are joined by newlines, as the engine joins them."""
    if content is None:
        return b""
    if isinstance(content, str):
        return encode(content)
    return b"\n".join(map(_part, content)) if isinstance(content, list) else canonical(content)


def _unbilled(content: object) -> object:
    """The content of a system message without BILLING lines, as the engine will see it."""
    if isinstance(content, str):
        return content.partition("\n")[2] if content.startswith(BILLING) else content
    if not isinstance(content, list):
        return content
    kept = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str) and text.startswith(BILLING):
            part = text.partition("\n")[2]
        if part != "":
            kept.append(part)
    return kept


def _part(part: object) -> bytes:
    """One part of a content list. A part that is not text (an image, a sound) becomes the digest of its JSON, because
    its length in bytes says nothing about its length in tokens."""
    if isinstance(part, str):
        return encode(part)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return encode(part["text"])
    return blake2b(canonical(part), digest_size=32).hexdigest().encode()


def _calls(calls: object) -> list[object]:
    """The id, name and arguments of each tool call. Templates show these; clients may repeat the rest in any form."""
    return [_call(call) for call in calls] if isinstance(calls, list) else [calls]


def _call(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return call
    return [call.get("id"), function.get("name"), function.get("arguments")]
