"""Sessions: what one client sends, turn after turn, as text or as token ids.

A prompt holds everything that was said before it in its session, the engine's own answers included. A session with a
system prompt is a chat. Any other session is a chain of bare completions, without a chat template, whose answers have
exactly as many tokens as they were asked for; with token ids its requests are therefore the very same for a real engine
and, as `SessionTraffic`, for the simulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from router.sim.fleet import dialog, traffic

Content = str | tuple[int, ...]
"""Text, or token ids."""


@dataclass(frozen=True)
class Turn:
    content: Content
    """What is new in this turn's prompt."""
    output_tokens: int
    """The length of a bare completion; the most of a chat's answer, which ends where the model ends it."""
    think_s: float = 0.0
    """Pause between the answer before and this turn."""


@dataclass(frozen=True)
class Session:
    """Turns have the same kind of content throughout. `system`: the system prompt of a chat, whose turns are text."""

    arrival_s: float
    turns: tuple[Turn, ...]
    system: str | None = None


@dataclass(frozen=True)
class SessionTraffic:
    """Sessions of token ids as a `Traffic` of the simulator. `rate`: sessions a second."""

    label: str
    rate: float
    sessions: tuple[Session, ...]

    @property
    def requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)

    def at_rate(self, rate: float) -> SessionTraffic:
        """The same sessions, arriving at another rate."""
        scale = self.rate / rate
        sessions = tuple(replace(session, arrival_s=session.arrival_s * scale) for session in self.sessions)
        return SessionTraffic(self.label, rate, sessions)

    def open(self, seed: int, block_tokens: int) -> Iterator[traffic.Session]:  # noqa: ARG002  (nothing is drawn)
        for number, session in enumerate(self.sessions, start=1):
            first, *later = session.turns
            turns = [dialog.Turn(turn.think_s, len(turn.content), turn.output_tokens) for turn in later]
            opening = dialog.Turn(0.0, 0, first.output_tokens)
            head = dialog.chain_tokens(token_ids(first), block_tokens)
            yield traffic.Session(
                session.arrival_s, head, (opening, *turns), number * traffic.TOKEN_IDS_PER_SESSION, sets_max_tokens=True
            )


def token_ids(turn: Turn) -> tuple[int, ...]:
    assert not isinstance(turn.content, str), "the simulator takes token ids"
    return turn.content


def tokenize(model: str, sessions: Sequence[Session]) -> tuple[Session, ...]:
    """The sessions as chains of bare completions of token ids, a chat's system prompt before its first turn.

    model: a hub name or a folder, whose tokenizer is used.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(content: Content) -> tuple[int, ...]:
        return tuple(tokenizer(content, add_special_tokens=False)["input_ids"])

    def tokenized(session: Session) -> Session:
        turns = [replace(turn, content=encode(turn.content)) for turn in session.turns]
        turns[0] = replace(turns[0], content=encode(session.system or "") + token_ids(turns[0]))
        return Session(session.arrival_s, tuple(turns))

    return tuple(tokenized(session) for session in sessions)
