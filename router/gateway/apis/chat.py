"""Chat completions."""

from __future__ import annotations

from router.gateway.apis.base import ChatLike, Fields, objects


class Chat(ChatLike):
    """`/v1/chat/completions`. Its bodies are what the transcript is made for."""

    asks_usage = True

    def chat(self, fields: Fields) -> Fields:
        objects(fields.get("messages"), "messages")
        return fields
