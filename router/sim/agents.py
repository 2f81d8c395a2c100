"""Conversations of agents: a reader of their traces, and the open-loop timeline on which they are played.

A trace has one conversation a line, JSON, gzip or not:

    {"tool": tokens, "system": tokens, "block": tokens, "threads": [[parent, [request, ...]], ...]}

`parent` is the index of the main thread's request that started this thread, a sub-agent; -1: it is the main thread,
which is the first. A request is
[t_s, input_tokens, output_tokens, api_s, think_s, stop, keep, [[first_id, count], ...]]:
- api_s: how long its answer took; think_s: how long after the answer before it the request came (t_s is not used);
- stop: how the answer ended (`types.Stop`);
- its blocks are the first `keep` of the request before it in its thread, then `count` consecutive ids from each
  first_id.

Ids are those of the conversation alone, but for the first 3/4 of the tools' and the system prompt's blocks, which all
conversations share.

On the timeline a number of users each take one conversation after the other, 10 s apart (exponential), in a random
order, until each conversation was taken once. A request comes max(0.5, api_s) + min(think_s, cap) seconds after the one
before it. A sub-agent's thread starts api_s after its parent's request and runs beside it. So requests come at these
times whatever becomes of them: an open loop.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, count
from typing import Any

from router.errors import TraceError
from router.sim.trace import REPORT_EVERY, Request, ignore, numbered_lines, show
from router.types import Stop

BETWEEN_CONVERSATIONS_S = 10.0  # mean
SHORTEST_ANSWER_S = 0.5
COMMON_PART = 0.75  # of the blocks of the tools and the system prompt
MOST_REQUESTS = 1 << 20  # of a trace, which is held in memory
MOST_BLOCKS = 1 << 20  # of a request
ID_SPACE = 1 << 44  # ids of a conversation lie that far from those of the next one
FIELDS = "[t_s, input_tokens, output_tokens, api_s, think_s, stop, keep, [[first_id, count], ...]]"


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """One request of a thread."""

    prompt_tokens: int
    output_tokens: int
    api_s: float
    think_s: float
    stop: Stop
    keep: int
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Thread:
    """The requests of one agent. `parent`: the main thread's request that started it; -1: it is the main thread."""

    parent: int
    requests: tuple[AgentRequest, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A main thread and its sub-agents. `number` tells it from the others of the trace."""

    number: int
    block_tokens: int
    common_blocks: int
    """So many blocks at the beginning of each prompt are the same in all conversations."""
    threads: tuple[Thread, ...]

    def session(self, thread: int) -> str:
        """Return the name of a thread's session."""
        return f"{self.number}.{thread}" if thread else str(self.number)

    def parent(self, thread: int) -> str | None:
        """Return the name of the session that started the thread, None for the main thread."""
        return self.session(0) if thread else None

    def blocks(self, before: Sequence[int], request: AgentRequest) -> list[int]:
        """Return the ids of a request's blocks; `before` are those of the request before it in its thread."""
        own = ID_SPACE * (self.number + 1)
        blocks = list(chain(before[: request.keep], *(range(own + f, own + f + n) for f, n in request.runs)))
        common = min(self.common_blocks, len(blocks))
        blocks[:common] = range(common)
        return blocks


def read_conversations(label: str) -> list[Conversation]:
    """Return the conversations of the file at the path `label`. Raises TraceError."""
    found: list[Conversation] = []
    requests = 0
    try:
        with open(label, "rb") as raw:
            for number, line in numbered_lines(label, raw):
                found.append(_Line(label, number).conversation(len(found), line))
                requests += sum(len(thread.requests) for thread in found[-1].threads)
                if requests > MOST_REQUESTS:
                    raise TraceError(label, number, f"{requests} requests so far", f"at most {MOST_REQUESTS}")
    except OSError as error:
        raise TraceError(label, None, error.strerror or str(error), "a readable file") from None
    if not found:
        raise TraceError(label, None, "nothing", "at least one conversation")
    return found


def holds_conversations(label: str) -> bool:
    """Whether the file holds conversations of agents, judged by its first line. Raises TraceError."""
    try:
        with open(label, "rb") as raw:
            _, line = next(numbered_lines(label, raw), (0, b""))
    except OSError as error:
        raise TraceError(label, None, error.strerror or str(error), "a readable file") from None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and "threads" in entry


class _Line:
    """A line that is read; it says what is wrong with it."""

    def __init__(self, label: str, number: int) -> None:
        self._label, self._number = label, number

    def conversation(self, index: int, line: bytes) -> Conversation:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise self._error(line, "a JSON object") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("threads"), list) or not entry["threads"]:
            raise self._error(line, "a JSON object with threads")
        block = self._whole(entry.get("block"), "block, tokens of at least 1", 1)
        prompt = sum(self._whole(entry.get(key, 0), f"{key}, whole tokens") for key in ("tool", "system"))
        threads = tuple(self._thread(thread, place) for place, thread in enumerate(entry["threads"]))
        for thread in threads[1:]:
            if thread.parent >= len(threads[0].requests):
                raise self._error(thread.parent, "a parent, the index of a request of the main thread")
        return Conversation(index, block, int(COMMON_PART * prompt / block), threads)

    def _thread(self, thread: Any, place: int) -> Thread:
        if not isinstance(thread, list) or len(thread) != 2 or not isinstance(thread[1], list) or not thread[1]:
            raise self._error(thread, "[parent, [request, ...]]")
        parent = self._whole(thread[0], "a parent, -1 for the first thread and at least 0 for the others", -1)
        if (parent < 0) != (place == 0):
            raise self._error(parent, "a parent, -1 for the first thread and at least 0 for the others")
        requests, before = [], 0
        for request in thread[1]:
            requests.append(self._request(request, before))
            before = requests[-1].keep + sum(count for _, count in requests[-1].runs)
        return Thread(parent, tuple(requests))

    def _request(self, request: Any, before: int) -> AgentRequest:
        if not isinstance(request, list) or len(request) != 8 or not isinstance(request[7], list):
            raise self._error(request, FIELDS)
        _, prompt_tokens, output_tokens, api_s, think_s, stop, keep, runs = request
        if type(stop) is not int or not Stop.UNKNOWN <= stop <= Stop.END_OF_TURN:
            raise self._error(stop, "stop, 0, 1 or 2")
        if self._whole(keep, "keep, a number of blocks") > before:
            raise self._error(keep, f"keep, at most the {before} blocks of the request before")
        for run in runs:
            if not isinstance(run, list) or len(run) != 2:
                raise self._error(run, "[first_id, count]")
            if self._whole(run[0], "a first id") + self._whole(run[1], "a count of ids") > ID_SPACE:
                raise self._error(run, f"ids below {ID_SPACE}")
        if keep + sum(run[1] for run in runs) > MOST_BLOCKS:
            raise self._error(request, f"at most {MOST_BLOCKS} blocks")
        return AgentRequest(
            self._whole(prompt_tokens, "input_tokens, at least 1", 1),
            self._whole(output_tokens, "output_tokens"),
            self._seconds(api_s, "api_s"),
            self._seconds(think_s, "think_s"),
            Stop(stop),
            keep,
            tuple((run[0], run[1]) for run in runs),
        )

    def _whole(self, value: Any, expected: str, low: int = 0) -> int:
        if type(value) is not int or value < low:
            raise self._error(value, expected)
        return value

    def _seconds(self, value: Any, name: str) -> float:
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise self._error(value, f"{name}, seconds of at least 0")
        return float(value)

    def _error(self, found: object, expected: str) -> TraceError:
        return TraceError(self._label, self._number, show(found), expected)


def deal(conversations: Sequence[Conversation], rng: random.Random) -> Iterator[Conversation]:
    """Give each conversation once, in random order."""
    order = list(conversations)
    rng.shuffle(order)
    return iter(order)


@dataclass(frozen=True)
class AgentTrace:
    """The open-loop timeline as a `Trace` for a single cache: the file at the path `file`, played by `users` users.

    Think times are capped at `think_cap_s`. The cache's blocks hold `merge` of the trace's.
    """

    file: str
    users: int
    think_cap_s: float = math.inf
    limit: int | None = None
    seed: int = 0
    merge: int = 4

    @property
    def label(self) -> str:
        return f"{self.file} x{self.users}"

    def open(self, capacity: int, report: Callable[[float], None] = ignore) -> Iterator[Request]:  # noqa: ARG002
        conversations = read_conversations(self.file)
        total = sum(len(thread.requests) for each in conversations for thread in each.threads)
        total = min(total, self.limit or total)
        for number, request in zip(range(total), self._requests(conversations), strict=False):
            if number % REPORT_EVERY == 0:
                report(number / total)
            yield request

    def _requests(self, conversations: Sequence[Conversation]) -> Iterator[Request]:
        rng, serial = random.Random(self.seed), count()
        deck = deal(conversations, rng)
        # Each event is a request to come: its time, a tie-break, and its thread. An event without one takes up the next
        # conversation.
        events: list[tuple[float, int, Playing | None]] = []

        def schedule(time_s: float, playing: Playing | None) -> None:
            heappush(events, (time_s, next(serial), playing))

        for _ in range(self.users):
            schedule(rng.expovariate(1 / BETWEEN_CONVERSATIONS_S), None)
        while events:
            now, _, playing = heappop(events)
            if playing is None:
                conversation = next(deck, None)
                if conversation is None:
                    continue
                playing = Playing(conversation)
            request = playing.next_request()
            yield playing.describe(request, now, self.merge)
            answered_s = now + max(SHORTEST_ANSWER_S, request.api_s)
            for child in playing.children():
                schedule(now + request.api_s, child)
            if following := playing.following:
                schedule(answered_s + min(following.think_s, self.think_cap_s), playing)
            elif playing.thread == 0:
                schedule(answered_s + rng.expovariate(1 / BETWEEN_CONVERSATIONS_S), None)


class Playing:
    """A thread that is being played. `done` of its requests have come; `blocks` are the ids of the last one's."""

    def __init__(self, conversation: Conversation, thread: int = 0) -> None:
        self.conversation, self.thread = conversation, thread
        self.done = 0
        self.blocks: list[int] = []

    @property
    def following(self) -> AgentRequest | None:
        """The request that comes next, None at the end of the thread."""
        requests = self.conversation.threads[self.thread].requests
        return requests[self.done] if self.done < len(requests) else None

    def next_request(self) -> AgentRequest:
        """Return the next request, which there is, and count it."""
        request = self.following
        assert request is not None
        self.done += 1
        self.blocks = self.conversation.blocks(self.blocks, request)
        return request

    def children(self) -> list[Playing]:
        """Return the sub-agents that the last request started."""
        if self.thread:
            return []
        threads = enumerate(self.conversation.threads)
        return [
            Playing(self.conversation, place) for place, thread in threads if place and thread.parent == self.done - 1
        ]

    def describe(self, request: AgentRequest, now: float, merge: int) -> Request:
        """Return the last request in blocks of `merge` ids, each named by its last id, which its prefix goes with."""
        return Request(
            self.blocks[merge - 1 :: merge],
            now,
            request.prompt_tokens,
            request.output_tokens,
            float(merge * self.conversation.block_tokens),
            session=self.conversation.session(self.thread),
            stop=request.stop,
            parent=self.conversation.parent(self.thread),
        )
