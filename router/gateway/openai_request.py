"""Reading the body of a request. This is the only code that sees a request's raw JSON.

It is lenient by intent: it refuses only what no engine could read (no JSON, no messages, no prompt). Everything else
passes on to the engine byte for byte, with two exceptions: `_ask_usage` asks the engine to tell the usage at the end of
a stream, and a tenant's requests get its cache salt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from router.errors import BadRequest
from router.gateway import lenient_json, transcript
from router.gateway.body_edit import Edit, Insertion, set_fields
from router.gateway.headers import SESSION, SLO_TPOT_MS, SLO_TTFT_MS
from router.gateway.tenants import SALT, salt_for
from router.prefix import blocks
from router.types import BlockKey, ParsedRequest, Prompt

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROUTES = (CHAT, COMPLETIONS)
BYTES_PER_TOKEN = 4  # it sizes the blocks of text; predictions use a learned ratio
DEFAULT_COMPLETION_TOKENS = 16  # the bound of /v1/completions if the client sets none
SESSION_FIELDS = ("session_id", "user", "user_id")
NAME_CHARS = 256  # a longer session name is replaced by its hash, because clients choose the names and maps keep them
TRUE_WORDS = ("true", "1", "1.0", "on", "yes", "y", "t")  # the texts that the engine's own validation takes as true

COPIED_BYTES = 1 << 16  # a body of so many bytes and more is sent in pieces rather than copied

Reply = bytes | tuple[int, ...]
Piece = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A request that has been read: what routing needs of it, how the body for the engine differs, and how the answer
    continues the prompt."""

    parsed: ParsedRequest
    edit: Edit
    """What the engine gets that differs from the client's body."""
    hide_usage: bool
    """Whether the gateway asked for the usage chunk and the client did not."""
    echoes: bool
    """Whether the answer repeats the prompt."""
    continues: bool
    """Whether the answer continues the last message instead of starting a new one."""

    @property
    def prompt_estimate(self) -> float:
        """About how many tokens the (first) prompt has."""
        prompt = self.parsed.prompt
        return float(prompt.units) if prompt.in_tokens else prompt.units / BYTES_PER_TOKEN

    def body_for_engine(self, body: bytes | bytearray) -> tuple[Piece, ...]:
        """The body that the engine gets, in pieces: a large one is not copied. body: the client's."""
        if self.edit is None:
            return (body,)
        if not isinstance(self.edit, Insertion):
            return (self.edit,)
        at, text = self.edit
        if len(body) < COPIED_BYTES:
            return (body[:at] + text + body[at:],)
        view = memoryview(body)
        return view[:at], text, view[at:]

    def reply(self, message: Mapping[str, Any], token_ids: Sequence[int] = ()) -> Reply:
        """The reply in the units of the prompt, and in the form in which the next turn will repeat it.

        message: the engine's answer as an assistant message. token_ids: those of the answer, if it told them.
        """
        if self.parsed.prompt.in_tokens:
            return tuple(token_ids)
        if self.echoes:
            return b""
        if self.continues or self.parsed.route == COMPLETIONS:
            return transcript.encode(message.get("content") or "")
        return transcript.message(message)

    def reply_keys(self, message: Mapping[str, Any], token_ids: Sequence[int]) -> tuple[BlockKey, ...]:
        """Keys of the blocks that the reply adds to those of the prompt."""
        return blocks.extend(self.parsed.prompt, self.reply(message, token_ids))


def parse_request(
    body: bytes | bytearray,
    *,
    route: str,
    headers: Mapping[bytes, bytes],
    request_id: str,
    block_tokens: int,
    salt: bytes | None = None,
) -> OpenAIRequest:
    """Read a request. Raises BadRequest.

    route: one of ROUTES. headers: with names in lower case. block_tokens: the size of a block of the prefix index.
    salt: `ClientKey.salt` of the client.
    """
    try:
        fields = lenient_json.loads(body)
        if not isinstance(fields, dict):
            raise BadRequest("The request body must be a JSON object.")
        salts = {} if salt is None else {SALT: salt_for(salt, fields)}
        prompt, prompts = _prompt({**fields, **salts} if salts else fields, route, block_tokens)
        stream = _truth(fields.get("stream"))
        options = fields.get("stream_options")
        wants_usage = isinstance(options, dict) and _truth(options.get("include_usage"))
        asked = _ask_usage(options) if stream and not wants_usage else {}
        return OpenAIRequest(
            parsed=ParsedRequest(
                request_id=request_id,
                route=route,
                model=_model(fields),
                prompt=prompt,
                stream=stream,
                max_tokens=_max_tokens(fields, route),
                choices=prompts * (_positive(fields.get("n")) or 1),
                session=_session(headers, fields),
                slo_ttft_s=_bound_s(headers, SLO_TTFT_MS),
                slo_tpot_s=_bound_s(headers, SLO_TPOT_MS),
            ),
            edit=set_fields(body, fields, {**asked, **salts}),
            hide_usage=stream and not wants_usage,
            echoes=_truth(fields.get("echo")),
            continues=_truth(fields.get("continue_final_message")),
        )
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise BadRequest(f"The request body is not valid JSON: {error}") from None


def _ask_usage(options: object) -> dict[str, Any]:
    """The fields that ask for the usage at the end of a stream. options: the stream options of the client.

    They lose `continuous_usage_stats`: it takes effect only together with `include_usage`, which this client did not
    set.
    """
    kept = {k: v for k, v in options.items() if k != "continuous_usage_stats"} if isinstance(options, dict) else {}
    return {"stream_options": {**kept, "include_usage": True}}


def _prompt(fields: Mapping[str, Any], route: str, block_tokens: int) -> tuple[Prompt, int]:
    """The (first) prompt as chained blocks, and the number of prompts."""
    root = transcript.root(route, fields)
    if route == CHAT:
        _check_messages(fields.get("messages"))
        return blocks.chain(root, transcript.conversation(fields), block_tokens * BYTES_PER_TOKEN), 1
    content, prompts = _first_prompt(fields)
    if isinstance(content, str):
        return blocks.chain(root, transcript.encode(content), block_tokens * BYTES_PER_TOKEN), prompts
    try:
        return blocks.chain(root, content, block_tokens), prompts
    except (OverflowError, TypeError):
        raise BadRequest("`prompt` must be text, token ids, or a list of either.", param="prompt") from None


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise BadRequest("`messages` must be a list of messages.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(f"`messages[{index}]` must be an object.", param=f"messages[{index}]")


def _first_prompt(fields: Mapping[str, Any]) -> tuple[str | list[int], int]:
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


def _model(fields: Mapping[str, Any]) -> str:
    """The name of the model; empty if the client names none and so leaves the choice to the engine."""
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("`model` must be text.", param="model")
    return model or ""


def _max_tokens(fields: Mapping[str, Any], route: str) -> int | None:
    """The bound on the output that holds for this request; None: there is none."""
    bound = _positive(fields.get("max_completion_tokens")) or _positive(fields.get("max_tokens"))
    if bound is None and route == COMPLETIONS and "max_tokens" not in fields:
        return DEFAULT_COMPLETION_TOKENS
    return bound


def _bound_s(headers: Mapping[bytes, bytes], name: bytes) -> float | None:
    """A bound on a latency, which a header gives in milliseconds; None: the header is not there. Raises BadRequest."""
    text = headers.get(name)
    if text is None:
        return None
    try:
        bound_ms = float(text)
    except ValueError:
        bound_ms = math.nan
    if not 0 < bound_ms < math.inf:
        header = name.decode()
        raise BadRequest(f"`{header}` must be a number of milliseconds above 0, not {text[:64]!r}.", param=header)
    return bound_ms / 1000


def _session(headers: Mapping[bytes, bytes], fields: Mapping[str, Any]) -> str | None:
    """The client's name for the session, from its headers or else from its body; None: it gave none.

    The request id is never taken, because it is new with each request.
    """
    for name in SESSION:
        if value := headers.get(name):
            return _short(value.decode("latin-1"))
    params = fields.get("session_params")
    for session in (
        params.get("session_id") if isinstance(params, dict) else None,
        *(fields.get(name) for name in SESSION_FIELDS),
    ):
        if isinstance(session, str) and session:
            return _short(session)
    return None


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS else blake2b(name.encode("utf-8", "surrogatepass")).hexdigest()


def _positive(value: object) -> int | None:
    """The value if it is a positive integer, else None. The engine judges anything else that a client sends."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _truth(value: object) -> bool:
    """Whether the engine's validation would take the value as true."""
    return value is True or (value is not None and str(value).lower() in TRUE_WORDS)
