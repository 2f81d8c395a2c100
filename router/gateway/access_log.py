"""The access log: one line for every request that is for an engine, when it is over.

    request_id, key, model, route      key: the name of the client's key; null if none was asked for
    status                             of the answer; null if the client left before it began
    ending, engine, tries              engine: of the last try; null if there was none
    prompt_tokens, cached_tokens, output_tokens   as the engine counts them; null if it did not tell
    predicted_ms, actual_ms            of the last try, from its choice to its end
    ttft_ms, total_ms                  from the arrival of the request to its first token, and to its end
    queue_ms, overhead_ms              the wait for a place, and what the gateway itself took until its answer began

The fields are those of a line of JSON (`logs`), or text of the form `name=value`, in which what is null is left out. No
line holds text of a prompt.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from router.logs import FIELDS
from router.types import Outcome

if TYPE_CHECKING:
    from router.gateway.exchange import Exchange

log = logging.getLogger("leafcutter.access")
TEXT_CHARS = 256  # clients choose the names of models

Fields = dict[str, str | int | float | None]


class AccessLog:
    """Writes the lines. as_json: the log is one of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def ended(self, exchange: Exchange, outcome: Outcome) -> None:
        """A request is over. outcome: how it ended for the client."""
        if not log.isEnabledFor(logging.INFO):
            return
        found = fields(exchange, outcome)
        if self._as_json:
            log.info("request", extra={FIELDS: found})
        else:
            log.info("%s", " ".join(f"{name}={_word(value)}" for name, value in found.items() if value is not None))


def fields(exchange: Exchange, outcome: Outcome) -> Fields:
    """The fields of one request's line, in their order."""
    placement, request, arrived_s = exchange.placement, exchange.request, exchange.arrived_s
    predicted_s = placement.predicted_s if placement is not None else None
    actual_s = outcome.done_s - placement.dispatched_s if placement is not None else None
    first_s = outcome.first_token_s
    return {
        "request_id": exchange.request_id,
        "key": exchange.client.key.name or None,
        "model": request.parsed.model[:TEXT_CHARS] if request is not None else None,
        "route": exchange.route,
        "status": exchange.client.status,
        "ending": outcome.ending.value,
        "engine": placement.engine if placement is not None else None,
        "tries": len(exchange.retries.tried),
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "output_tokens": outcome.output_tokens,
        "predicted_ms": _ms(predicted_s),
        "actual_ms": _ms(actual_s),
        "ttft_ms": _ms(first_s - arrived_s if first_s is not None else None),
        "total_ms": _ms(outcome.done_s - arrived_s),
        "queue_ms": _ms(exchange.queued_s),
        "overhead_ms": _ms(exchange.overhead_s),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _word(value: object) -> str:
    """The value as one word: text that is no plain word is quoted, so that nobody can forge a field or a line."""
    if not isinstance(value, str):
        return str(value)
    plain = value.isascii() and value.isprintable() and value and not set(value) & set(' "=\\')
    return value if plain else json.dumps(value)
