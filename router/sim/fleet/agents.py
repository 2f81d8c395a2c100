"""Agents as a closed loop: users who wait for their answers, as real ones do.

Each of the users takes one conversation of the trace after the other (`sim.agents`), in a random order that all users
share. A request comes its think time, capped, after the end of the answer before it. A sub-agent's thread starts when
the request that it belongs to has been answered, and runs beside its parent. When the main thread is through, the user
takes up the next conversation, 10 s later in the mean (exponential), and likewise when a request of it fails. Nobody
asks anything after the end of the run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

from router.sim.agents import BETWEEN_CONVERSATIONS_S, Conversation, Playing, deal, read_conversations
from router.sim.fleet.dialog import Turn, chain_ids
from router.sim.fleet.traffic import TOKEN_IDS_PER_SESSION, Session

DURATION_S = 6000.0
WARM_UP = 0.2  # the part of the duration whose requests are not counted


@dataclass(frozen=True)
class Agents:
    """The `Traffic` of `users` users with the conversations of the file at the path `file`, for `duration_s`.

    Raises TraceError while it is read.
    """

    file: str
    users: int
    think_cap_s: float = math.inf
    duration_s: float = DURATION_S
    rate: float = 0.0
    """Nobody knows how many sessions begin a second before they do."""

    @property
    def label(self) -> str:
        return f"{self.file} x{self.users}"

    @property
    def requests(self) -> int:
        """A guess: a request of each user every 30 s."""
        return max(1, round(self.users * self.duration_s / 30))

    @property
    def window_s(self) -> tuple[float, float]:
        """From when until when requests count."""
        return WARM_UP * self.duration_s, self.duration_s

    def open(self, seed: int, block_tokens: int) -> Iterator[Session]:
        players = _Players(self, seed, block_tokens)
        return iter(sorted(filter(None, (players.begin(0.0) for _ in range(self.users))), key=lambda s: s.arrival_s))


class _Players:
    """The users of one run."""

    def __init__(self, traffic: Agents, seed: int, block_tokens: int) -> None:
        self._traffic, self._block_tokens = traffic, block_tokens
        self._conversations = read_conversations(traffic.file)
        self._random = random.Random(seed)
        self._deck = self._deals()
        self._numbers = count(1)

    def _deals(self) -> Iterator[Conversation]:
        while True:
            yield from deal(self._conversations, self._random)

    def begin(self, now: float) -> Session | None:
        """A user takes up a conversation some time after `now`; None: the run has ended by then."""
        at_s = now + self._random.expovariate(1 / BETWEEN_CONVERSATIONS_S)
        return self._session(Playing(next(self._deck)), at_s)

    def _session(self, playing: Playing, at_s: float) -> Session | None:
        if at_s > self._traffic.duration_s:
            return None
        request = playing.next_request()
        conversation, number = playing.conversation, next(self._numbers)
        prefix = chain_ids(playing.blocks, conversation.block_tokens, request.prompt_tokens, self._block_tokens)
        turn = Turn(0.0, request.prompt_tokens - prefix.units, max(1, request.output_tokens), stop=request.stop)
        return Session(
            at_s,
            prefix,
            (turn,),
            number * TOKEN_IDS_PER_SESSION,
            conversation.session(playing.thread),
            parent=conversation.parent(playing.thread),
            follow=partial(self._follow, playing),
        )

    def _follow(self, playing: Playing, now: float, answered: bool) -> list[Session]:
        if not answered:  # too long for any engine, say: its user gives the conversation up
            return list(filter(None, [self.begin(now)])) if playing.thread == 0 else []
        following = [self._session(child, now) for child in playing.children()]
        if request := playing.following:
            following.append(self._session(playing, now + min(request.think_s, self._traffic.think_cap_s)))
        elif playing.thread == 0:
            following.append(self.begin(now))
        return [session for session in following if session is not None]
