"""Completions of plain text or of token ids."""

from __future__ import annotations

from router.errors import BadRequest
from router.gateway import transcript
from router.gateway.apis.base import BYTES_PER_TOKEN, Api, Fields
from router.prefix import blocks
from router.types import Prompt

DEFAULT_COMPLETION_TOKENS = 16  # the bound on the output if the client sets none


class Completions(Api):
    """`/v1/completions`."""

    asks_usage = True

    def prompt(self, fields: Fields, block_tokens: int) -> tuple[Prompt, int]:
        root = transcript.root("/v1/completions", fields)
        content, prompts = _first_prompt(fields)
        if isinstance(content, str):
            return blocks.chain(root, transcript.encode(content), block_tokens * BYTES_PER_TOKEN), prompts
        try:
            return blocks.chain(root, content, block_tokens), prompts
        except (OverflowError, TypeError):
            raise BadRequest("`prompt` must be text, token ids, or a list of either.", param="prompt") from None

    def max_tokens(self, fields: Fields) -> int | None:
        bound = super().max_tokens(fields)
        return DEFAULT_COMPLETION_TOKENS if bound is None and "max_tokens" not in fields else bound

    def reply(self, message: Fields) -> bytes:
        return transcript.encode(message.get("content") or "")


def _first_prompt(fields: Fields) -> tuple[str | list[int], int]:
    """The first prompt and the number of prompts. The field `prompt` is a text, a list of texts, a list of token ids,
    or a list of such lists."""
    prompt = fields.get("prompt")
    if prompt is None and fields.get("prompt_embeds") is not None:
        return "", 1
    if isinstance(prompt, str):
        return prompt, 1
    if isinstance(prompt, list) and prompt:
        first = prompt[0]
        return (first, len(prompt)) if isinstance(first, str | list) else (prompt, 1)
    raise BadRequest("`prompt` must be text, token ids, or a list of either.", param="prompt")
