"""Reading a request: what routing needs of it, and how the body for the engine differs. This is the only code that sees
the raw body; what its fields mean is in `apis`.

It is lenient by intent: it refuses only what no engine could read (no JSON, no messages, no prompt). Everything else
passes on to the engine byte for byte, but for the fields that `parse_request` sets (`body_edit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

from router.errors import BadRequest
from router.gateway import apis, body_edit, lenient_json, multipart
from router.gateway.apis.base import BYTES_PER_TOKEN, MOST_COUNT, Api, Reply, positive, truth
from router.gateway.body_edit import Body, Edit, Piece
from router.gateway.headers import FINAL_SESSION, PARENT_SESSION, SESSION, SLO_TPOT_MS, SLO_TTFT_MS
from router.gateway.tenants import SALT, salt_for
from router.prefix import blocks
from router.types import BlockKey, ParsedRequest

NAME_CHARS = 256  # a longer session name is replaced by its hash, because clients choose the names and maps keep them
LEAST_BOUND_S = 1e-9  # a tighter bound on a latency means the same: it cannot be held
NO_ALIASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A request that has been read: what routing needs of it, how the body for the engine differs, and how the answer
    continues the prompt."""

    parsed: ParsedRequest
    edit: Edit
    """How what the engine gets differs from the client's body."""
    hide_usage: bool
    """Whether the gateway asked for the usage chunk and the client did not."""
    echoes: bool
    """Whether the answer repeats the prompt."""
    continues: bool
    """Whether the answer continues the last message instead of starting a new one."""

    @property
    def api(self) -> Api:
        return apis.find(self.parsed.route)

    @property
    def prompt_estimate(self) -> float:
        """About how many tokens the (first) prompt has."""
        prompt = self.parsed.prompt
        return float(prompt.units) if prompt.in_tokens else prompt.units / BYTES_PER_TOKEN

    def body_for_engine(self, body: Body) -> tuple[Piece, ...]:
        """The body that the engine gets, in pieces: a large one is not copied. body: the client's."""
        return body_edit.apply(self.edit, body)

    def reply(self, message: Mapping[str, Any], token_ids: Sequence[int] = ()) -> Reply:
        """The reply in the units of the prompt, and in the form in which the next turn will repeat it.

        message: the engine's answer as an assistant message. token_ids: those of the answer, if it told them.
        """
        if self.parsed.prompt.in_tokens:
            return tuple(token_ids)
        if self.echoes:
            return b""
        return apis.COMPLETED.reply(message) if self.continues else self.api.reply(message)

    def reply_keys(self, message: Mapping[str, Any], token_ids: Sequence[int]) -> tuple[BlockKey, ...]:
        """Keys of the blocks that the reply adds to those of the prompt."""
        return blocks.extend(self.parsed.prompt, self.reply(message, token_ids))


def parse_request(
    body: Body,
    *,
    route: str,
    headers: Mapping[bytes, bytes],
    request_id: str,
    block_tokens: int,
    aliases: Mapping[str, str] = NO_ALIASES,
    salt: bytes | None = None,
) -> OpenAIRequest:
    """Read a request. Raises BadRequest.

    route: one of `apis.TABLE`, or a path that the operator has opened. headers: with names in lower case. block_tokens:
    the size of a block of the prefix index. aliases: the names of models by the names that clients may use for them.
    salt: `ClientKey.salt` of the client.
    """
    api = apis.find(route)
    try:
        fields, form = _fields(body, headers.get(b"content-type", b""), api)
        alias = _model(fields)
        model = aliases.get(alias, alias)
        stream, options = truth(fields.get("stream")), fields.get("stream_options")
        wants_usage = isinstance(options, dict) and truth(options.get("include_usage"))
        hide_usage = stream and api.asks_usage and not wants_usage
        values: dict[str, Any] = {} if model == alias else {"model": model}
        edit: Edit
        if form is not None:
            edit = form.rename("model", model) if values else None
        else:
            if hide_usage:
                values["stream_options"] = _asking_usage(options)
            if salt is not None and fields:
                values[SALT] = salt_for(salt, fields)
            edit = body_edit.set_fields(body, fields, values)
        prompt, prompts = api.prompt({**fields, **values} if values else fields, block_tokens)
        return OpenAIRequest(
            parsed=ParsedRequest(
                request_id=request_id,
                route=route,
                model=model,
                prompt=prompt,
                stream=stream,
                max_tokens=api.max_tokens(fields),
                choices=min(MOST_COUNT, prompts * (positive(fields.get("n")) or 1)),
                session=_scoped(_session(headers, api, fields), salt),
                parent=_scoped(_header_text(headers, PARENT_SESSION), salt),
                final=truth(_header_text(headers, FINAL_SESSION)),
                slo_ttft_s=_bound_s(headers, SLO_TTFT_MS),
                slo_tpot_s=_bound_s(headers, SLO_TPOT_MS),
                generates=api.generates,
            ),
            edit=edit,
            hide_usage=hide_usage,
            echoes=truth(fields.get("echo")),
            continues=truth(fields.get("continue_final_message")),
        )
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise BadRequest(f"The request body is not valid JSON: {error}") from None


def _fields(body: Body, content_type: bytes, api: Api) -> tuple[Mapping[str, Any], multipart.Form | None]:
    """The fields of the body, and the form that they stand in; None: it is JSON. Raises BadRequest and ValueError."""
    if content_type != b"application/json" and multipart.is_form(content_type):
        try:
            form = multipart.read_form(body, content_type)
            return form.fields, form
        except BadRequest:
            if not api.lenient:
                raise
    try:
        fields = lenient_json.loads(body)
    except ValueError:
        if not api.lenient:
            raise
        return {}, None
    if isinstance(fields, dict):
        return fields, None
    if api.lenient:
        return {}, None
    raise BadRequest("The request body must be a JSON object.")


def _asking_usage(options: object) -> dict[str, Any]:
    """The stream options that ask for the usage. options: those of the client.

    They lose `continuous_usage_stats`: it takes effect only together with `include_usage`, which this client did not
    set.
    """
    kept = {k: v for k, v in options.items() if k != "continuous_usage_stats"} if isinstance(options, dict) else {}
    return {**kept, "include_usage": True}


def _model(fields: Mapping[str, Any]) -> str:
    """The name of the model; empty if the client names none and so leaves the choice to the engine."""
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("`model` must be text.", param="model")
    return model or ""


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
    return max(LEAST_BOUND_S, bound_ms / 1000)


def _scoped(name: str | None, salt: bytes | None) -> str | None:
    """The name of a session as only clients of this salt can give it: those of other tenants are other sessions."""
    if name is None or salt is None:
        return name
    return blake2b(name.encode("utf-8", "surrogatepass"), key=salt[:64], digest_size=16).hexdigest()


def _header_text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return _short(value.decode("latin-1")) if value else None


def _session(headers: Mapping[bytes, bytes], api: Api, fields: Mapping[str, Any]) -> str | None:
    """The client's name for the session, from its headers or else from its body; None: it gave none.

    The request id is never taken, because it is new with each request.
    """
    for name in SESSION:
        if text := _header_text(headers, name):
            return text
    name_in_body = api.session(fields)
    return None if name_in_body is None else _short(name_in_body)


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS else blake2b(name.encode("utf-8", "surrogatepass")).hexdigest()
