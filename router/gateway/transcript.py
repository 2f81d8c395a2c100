"""A conversation as bytes, in the order the engine will see it, so that a follow-up turn extends the turn before.

    turn 1:  <user: hello>
    reply:                 <assistant: hi>
    turn 2:  <user: hello> <assistant: hi> <user: and now?>

What stands in every prompt of a kind (model, cache salt, tools, template options) is the chain's root, `root`. The
chat template's own words are left out: the bytes only have to be equal where the engine's tokens are, and the ratio of
tokens to bytes is learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

# Fields that change how a prompt begins or which cache it may share. What changes only its end (add_generation_prompt,
# continue_final_message) is left out: the engine shares the beginning. In vLLM the LoRA is the model.
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
MESSAGE, FIELD = b"\x1e", b"\x1f"  # ASCII record and unit separator: no text has them, and templates show none
REASONING = ("reasoning", "reasoning_content")  # one field under its new and its old name

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def encode(text: str) -> bytes:
    """UTF-8 that also takes lone surrogates, which JSON can carry."""
    return text.encode("utf-8", "surrogatepass")


def canonical(value: object) -> bytes:
    """JSON of `value` with sorted keys and no spaces: equal for equal values."""
    return encode(_canonical(value))


def root(kind: str, body: Mapping[str, Any]) -> bytes:
    """All that prompts of one chain have in common; `kind` keeps chat and plain completions apart."""
    fields = {name: body[name] for name in ROOT_FIELDS if body.get(name) is not None}
    if body.get("tool_choice") == "none":  # the engine may then leave the tools out; other choices only guide decoding
        fields["tool_choice"] = "none"
    return canonical([kind, fields])


def conversation(body: Mapping[str, Any]) -> bytes:
    """The messages of a chat request. Its tools follow the leading system message, where templates write them:
    their text counts towards the prompt's length (that they are equal is the root's business)."""
    parts = [message(each) for each in body["messages"]]
    if body.get("tools"):
        leading = bool(body["messages"]) and body["messages"][0].get("role") in ("system", "developer")
        parts.insert(int(leading), canonical(body["tools"]))
    return b"".join(parts)


def message(fields: Mapping[str, Any]) -> bytes:
    """One message: role, reasoning, content, tool calls, then any other field that says something."""
    parts = [MESSAGE + encode(str(fields.get("role")))]
    rest = {
        name: value
        for name, value in fields.items()
        if name not in ("role", "content", "tool_calls", *REASONING) and value not in (None, "", [], {})
    }
    for name in REASONING:
        if fields.get(name):
            parts.append(canonical(fields[name]))
            break
    parts.append(_content(fields.get("content")))
    if calls := fields.get("tool_calls"):
        parts.append(canonical(_calls(calls)))
    if rest:
        parts.append(canonical(rest))
    return FIELD.join(parts)


def _content(content: object) -> bytes:
    """Text as it stands; parts joined by a newline, as the engine joins them; no content is empty content."""
    if content is None:
        return b""
    if isinstance(content, str):
        return encode(content)
    return b"\n".join(map(_part, content)) if isinstance(content, list) else canonical(content)


def _part(part: object) -> bytes:
    """One part of a content list: text as it stands, anything else (an image, a sound) as the digest of its JSON, since
    its length in bytes says nothing of its length in tokens."""
    if isinstance(part, str):
        return encode(part)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return encode(part["text"])
    return blake2b(canonical(part), digest_size=32).hexdigest().encode()


def _calls(calls: object) -> list[object]:
    """Tool calls down to id, name and arguments: what templates show, however a client repeats the rest."""
    return [_call(call) for call in calls] if isinstance(calls, list) else [calls]


def _call(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return call
    return [call.get("id"), function.get("name"), function.get("arguments")]
