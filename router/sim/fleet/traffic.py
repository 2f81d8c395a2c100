"""The traffic of a fleet: what clients ask and when, as sessions of one or more turns.

    gsp            128 groups of prompts of 512 to 8192 tokens, whose first half the group shares, and 4 tokens out;
                   the groups come in random order, each as often as the others
    gsp_rotating   the same, but the groups come in turn
    hot            the same in random order, but 30 % of the requests go to one group of 2048 tokens
    chat           conversations of 1 to 11 turns, each a question of 310 tokens and an answer of 311, with 10 s between
                   an answer and the next question; each turn repeats those before
    chat_long      the same with 1 to 15 turns and questions of 720 tokens
    longdoc        questions on long documents: 32 documents of 12,000 tokens are in use at a time, 8 questions on each
    heavy          64 system prompts of 1280 tokens, questions of 960, heavy-tailed answers of 170 (4096 at most)
    agents         loops of 12 steps over one of 4 tool prompts of 2048 tokens: 120 tokens out, 500 back, 2 s between

All lengths and pauses are means; lengths are log-normal. Sessions begin in a Poisson process. A later turn is asked a
pause after the answer before it, whenever that came (a closed loop). The workloads stand in for kinds of traffic: `gsp`
is that of arXiv 2601.18999, `chat` is like ShareGPT's data, `longdoc` is like LooGLE's. Their free numbers were picked
for plausible loads on the profiles of `hardware`: under `lru` and `lbgr` four `l40-8b` can do about 14 requests of
`gsp` or 1.5 sessions of `chat` a second, and four `h100-8b` can do 2 sessions of `chat_long`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from types import MappingProxyType
from typing import Protocol

from router.errors import TraceError
from router.sim.fleet.dialog import ROUTE, Turn, chain_ids, chain_tokens
from router.sim.trace import Request, TraceFile
from router.types import Prompt

LENGTHS = (512, 1024, 2048, 4096, 8192)  # Tokens of a prompt of gsp, equally often.
GROUPS = 128
TRACE_BLOCK = 512  # Tokens for which an id stands in a trace that does not say how many, as in Mooncake's.
TOKEN_IDS_PER_SESSION = 1 << 32  # Sessions number their own tokens so far apart that no two use the same ids.


@dataclass(frozen=True, slots=True)
class Session:
    """What one client is going to ask: one or more turns, the first one at `arrival_s`."""

    arrival_s: float
    prefix: Prompt
    """The beginning of its first prompt, which other sessions may share."""
    turns: tuple[Turn, ...]
    first_token_id: int
    """Its own tokens are numbered from this id."""
    session_id: str | None = None
    """The session that its requests name; None: they name none."""
    sets_max_tokens: bool = False
    """Whether each request sets max_tokens to the exact length of its answer."""
    parent: str | None = None
    """The session that started this one, of a sub-agent."""
    follow: Callable[[float, bool], list[Session]] | None = None
    """What its client, or others, ask after its last request has ended at this time, answered or not; None: nothing."""


class Traffic(Protocol):
    """Sessions of one kind, as often as they are asked for."""

    @property
    def label(self) -> str:
        """The name that a user gives it."""
        ...

    @property
    def rate(self) -> float:
        """Sessions a second."""
        ...

    @property
    def requests(self) -> int:
        """About how many requests the sessions have together."""
        ...

    def open(self, seed: int, block_tokens: int) -> Iterator[Session]:
        """Give the sessions in the order of their arrival, the same ones for the same seed."""
        ...


@dataclass(slots=True)
class Sampler:
    """The chance of a workload: texts of new tokens, lengths, and numbers of turns."""

    rng: random.Random
    block_tokens: int
    _next: int = 0

    def text(self, tokens: int) -> Prompt:
        """Return a prompt of `tokens` new tokens, with which several sessions may begin."""
        first, self._next = self._next, self._next + tokens
        return chain_tokens(range(first, first + tokens), self.block_tokens)

    def length(self, mean: float, sigma: float = 0.6, most: int = 1 << 20) -> int:
        """Return a log-normal length from 1 to `most`; `sigma` is the standard deviation of its logarithm."""
        return max(1, min(most, round(self.rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))))

    def turns(self, mean: float, most: int) -> int:
        """Return a geometric number of turns from 1 to `most`."""
        u = self.rng.random()
        return min(most, 1 + int(math.log(1 - u) / math.log(1 - 1 / mean)))


SessionContents = Iterator[tuple[Prompt, tuple[Turn, ...]]]
"""The prefixes and turns of sessions, without end."""


def gsp(sample: Sampler, *, rotating: bool = False, hot: float = 0.0) -> SessionContents:
    lengths = [LENGTHS[group % len(LENGTHS)] for group in range(GROUPS)]
    sample.rng.shuffle(lengths)
    prefixes = [sample.text(length // 2) for length in lengths]
    favourite = prefixes[lengths.index(2048)]

    def deal() -> Iterator[Prompt]:
        while True:
            sample.rng.shuffle(deck)
            yield from deck

    deck = prefixes * 32
    for prefix in cycle(prefixes) if rotating else deal():
        chosen = favourite if hot and sample.rng.random() < hot else prefix
        yield chosen, (Turn(0.0, chosen.units, 4),)


def chat(sample: Sampler, most_turns: int, question: float) -> SessionContents:
    start = sample.text(0)
    while True:
        yield (
            start,
            tuple(
                Turn(sample.rng.expovariate(0.1), sample.length(question), sample.length(311, 0.4))
                for _ in range(sample.rng.randint(1, most_turns))
            ),
        )


def longdoc(sample: Sampler, documents: int = 32) -> SessionContents:
    def document() -> list[Prompt]:
        """A new document, once for each question on it."""
        return [sample.text(sample.length(12_000, 0.5, 32_000))] * sample.rng.randint(4, 12)

    unasked = [document() for _ in range(documents)]
    while True:
        index = sample.rng.randrange(documents)
        yield unasked[index].pop(), (Turn(0.0, sample.length(40), sample.length(60)),)
        unasked[index] = unasked[index] or document()


def heavy(sample: Sampler) -> SessionContents:
    prefixes = [sample.text(1280) for _ in range(64)]
    while True:
        yield sample.rng.choice(prefixes), (Turn(0.0, sample.length(960), sample.length(170, 1.1, 4096)),)


def agents(sample: Sampler) -> SessionContents:
    prefixes = [sample.text(2048) for _ in range(4)]
    while True:
        steps = sample.turns(12, 40)
        first = Turn(0.0, sample.length(300), sample.length(120))
        later = (
            Turn(sample.length(2000, 0.8) / 1e3, sample.length(500, 0.8), sample.length(120)) for _ in range(steps - 1)
        )
        yield sample.rng.choice(prefixes), (first, *later)


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """How the sessions of a workload are made; the flags hold for each of them (see `Session`)."""

    make: Callable[[Sampler], SessionContents]
    sends_session_id: bool = False
    sets_max_tokens: bool = False


WORKLOADS: Mapping[str, WorkloadSpec] = MappingProxyType(
    {
        "gsp": WorkloadSpec(gsp, sets_max_tokens=True),
        "gsp_rotating": WorkloadSpec(lambda sample: gsp(sample, rotating=True), sets_max_tokens=True),
        "hot": WorkloadSpec(lambda sample: gsp(sample, hot=0.3), sets_max_tokens=True),
        "chat": WorkloadSpec(lambda sample: chat(sample, 11, 310), sends_session_id=True),
        "chat_long": WorkloadSpec(lambda sample: chat(sample, 15, 720), sends_session_id=True),
        "longdoc": WorkloadSpec(longdoc),
        "heavy": WorkloadSpec(heavy),
        "agents": WorkloadSpec(agents, sends_session_id=True),
    }
)


@dataclass(frozen=True)
class Workload:
    """The `Traffic` of one of `WORKLOADS`: sessions until they have `requests` turns together, or a few more."""

    label: str
    rate: float
    requests: int

    def open(self, seed: int, block_tokens: int) -> Iterator[Session]:
        spec = WORKLOADS[self.label]
        times, now, turns = random.Random(~seed), 0.0, 0
        contents = spec.make(Sampler(random.Random(seed), block_tokens))
        for number, (prefix, planned) in enumerate(contents, start=1):
            now += times.expovariate(self.rate)
            session_id = f"{self.label}-{number}" if spec.sends_session_id else None
            first_token_id = number * TOKEN_IDS_PER_SESSION
            yield Session(now, prefix, planned, first_token_id, session_id, spec.sets_max_tokens)
            turns += len(planned)
            if turns >= self.requests:
                return


@dataclass(frozen=True)
class Replay:
    """The `Traffic` of a part of a trace, in which every request is a session of its own.

    The trace must tell times and lengths. Raises TraceError while it is read.
    """

    file: TraceFile
    skip: int
    """How many requests at the beginning of the trace are left out."""
    requests: int
    """How many requests behind those are replayed."""
    rate: float
    scale: float
    """The times between requests are multiplied by it."""
    spread: bool
    """Whether requests of one time arrive evenly until the next time, since published traces round times to seconds."""
    id_tokens: float | None = None
    """Tokens for which an id stands, as the first request says; None: `TRACE_BLOCK`."""

    @property
    def label(self) -> str:
        return self.file.label

    def open(self, seed: int, block_tokens: int) -> Iterator[Session]:  # noqa: ARG002  (a trace is what it is)
        lines = islice(self.file.open(0), self.skip, self.skip + self.requests)
        timed = (timed_request(self.file, number, request) for number, request in enumerate(lines, self.skip + 1))
        start_s: float | None = None
        for number, (arrival_s, details) in enumerate(ordered_in_time(timed, self.spread), 1):
            request, prompt_tokens, output_tokens = details
            start_s = arrival_s if start_s is None else start_s
            prefix = chain_ids(request.blocks, self.id_tokens or TRACE_BLOCK, prompt_tokens, block_tokens)
            turn = Turn(
                0.0,
                prompt_tokens - prefix.units,
                output_tokens,
                request.abandon_after_s,
                request.max_tokens,
                request.stream,
                request.route or ROUTE,
                request.stop,
                request.tool,
            )
            at_s, first_token_id = (arrival_s - start_s) * self.scale, number * TOKEN_IDS_PER_SESSION
            yield Session(at_s, prefix, (turn,), first_token_id, request.session, parent=request.parent)


TimedRequest = tuple[float, tuple[Request, int, int]]
"""The arrival in seconds; and the request, its prompt tokens and its output tokens."""


def timed_request(file: TraceFile, number: int, request: Request) -> TimedRequest:
    """Return the time and the lengths of the request. Raises TraceError if the trace does not tell one of them."""
    if request.arrival_s is None or not request.prompt_tokens or request.output_tokens is None:
        raise TraceError(
            file.label, None, f"no times or lengths in request {number}", "timestamp, input_length and output_length"
        )
    return request.arrival_s, (request, request.prompt_tokens, max(1, request.output_tokens))


def ordered_in_time(timed: Iterator[TimedRequest], spread: bool) -> Iterator[TimedRequest]:
    """Give the requests in their order, their times made monotonic: one that lies before its predecessor's is raised to
    it. With `spread` the requests of one time are then spread evenly until the next time."""
    together: list[TimedRequest] = []
    for arrival_s, details in timed:
        last_s = together[-1][0] if together else arrival_s
        if not spread or arrival_s > last_s:
            step_s = (arrival_s - last_s) / max(1, len(together)) if spread else 0.0
            yield from ((at_s + index * step_s, each) for index, (at_s, each) in enumerate(together))
            together.clear()
        together.append((max(arrival_s, last_s), details))
    yield from together


def replay(
    file: TraceFile, *, skip: int, requests: int | None, rate: float | None, scale: float, spread: bool
) -> Replay:
    """Return a part of a trace as traffic: `requests` of its requests (None: all) behind the first `skip`.

    The part is read once to measure its rate. The times between requests are multiplied by `scale`, or, if `rate` is
    given, scaled so that this many requests arrive a second. Raises TraceError if the part is empty, or if no time
    passes in it and a rate is wanted.
    """
    first_s = last_s = 0.0
    id_tokens: float | None = None
    count = 0
    for number, request in enumerate(islice(file.open(0), skip, None if requests is None else skip + requests), 1):
        arrival_s, _ = timed_request(file, skip + number, request)
        if number == 1:
            first_s, id_tokens = arrival_s, request.block_tokens
        last_s, count = max(last_s, arrival_s), number
    span_s = last_s - first_s
    if not count or (rate and not span_s):
        raise TraceError(file.label, None, f"{count} requests in {span_s:g} s", "requests at different times")
    if rate:
        scale = count / span_s / rate
    return Replay(file, skip, count, count / (span_s * scale) if span_s * scale else 0.0, scale, spread, id_tokens)
