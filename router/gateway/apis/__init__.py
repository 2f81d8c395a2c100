"""The APIs of the engines, one file for each family.

To add a route, write a file here with a class derived from `base.Api`, and add a line to TABLE. The class says how a
body becomes a prompt, how an answer is observed, and how the answer continues the prompt. Everything else holds for all
routes alike: they are booked, retried, cancelled, relayed and counted by `handler`.

`chat`, `completions`, `responses` and `messages` are routed by prefix, `plain` has all others.
"""

from __future__ import annotations

from router.gateway.apis.base import Api
from router.gateway.apis.chat import Chat
from router.gateway.apis.completions import Completions
from router.gateway.apis.messages import Messages
from router.gateway.apis.plain import Audio, Passed, Plain
from router.gateway.apis.responses import Responses

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"

TABLE: dict[str, Api] = {
    CHAT: Chat(),
    COMPLETIONS: Completions(),
    RESPONSES: Responses(),
    MESSAGES: Messages(),
    "/v1/messages/count_tokens": Plain(computes=False),
    **dict.fromkeys(("/tokenize", "/detokenize"), Plain(computes=False)),
    **dict.fromkeys(("/v1/embeddings", "/pooling", "/classify"), Plain(computes=True)),
    **dict.fromkeys(("/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"), Plain(computes=True)),
    **dict.fromkeys(("/v1/audio/transcriptions", "/v1/audio/translations"), Audio()),
}
"""The routes that take a POST and go to engines, with the API of each."""

COMPLETED, PASSED = Completions(), Passed()


def find(route: str) -> Api:
    """The API of a route: that of the table, or that of the paths which the operator has opened."""
    return TABLE.get(route, PASSED)
