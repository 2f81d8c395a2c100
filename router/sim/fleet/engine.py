"""A simulated engine: continuous batching and chunked prefill as vLLM schedules them, over a cache of blocks.

Each step takes, until the token budget is spent: a token for every request that decodes; the next chunk of every prompt
begun; new requests, first come first served, of which the cached prefix is not computed again (but for its last token).
Room is taken chunk by chunk. Where there is none for a request that runs, the newest one is preempted: it gives its
blocks back and comes first among the waiting, to hit what is left of them and compute the rest, its answer included.
A block is cached as soon as a step is to fill it; the generated ones when the next one is needed or at the end.

Nothing happens while all requests decode and none can join, so that such steps are one event: their number k is known
from the nearest end and from the room there is, their time is k A + B k (k - 1) / 2 since the context grows evenly. A
request that arrives cuts the stretch behind the step that runs. Every decoding request gains a token a step, so what
is due is kept by the number of the step: ends and needs of a block are two heaps, and a step costs what is due in it.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush, nsmallest
from itertools import count

from engine_patches.orders import EvictionOrder
from router.sim.fleet.hardware import Hardware
from router.sim.fleet.job import Job
from router.sim.fleet.pool import BlockPool

NEVER = math.inf


StepEvent = tuple[int, int, Job, int]  # number of the step, tie-break, job and its version


class Engine:
    """Drive it by `submit` and, whenever the clock reaches `next_s`, `advance`."""

    def __init__(self, hardware: Hardware, order: EvictionOrder, block_tokens: int, slowness: float = 1.0) -> None:
        self.hardware, self.pool, self.block_tokens = hardware, BlockPool(order), block_tokens
        self.slowness = slowness
        """f, the factor on every step that begins from now on."""
        self.next_s = NEVER
        """When the steps under way end."""
        self.busy_s = 0.0
        self.preemptions = 0
        self.waiting: deque[Job] = deque()
        self.running: dict[Job, None] = {}  # the newest last
        self._aborted: list[Job] = []
        self._prefilling: dict[Job, None] = {}
        self._chunks: list[tuple[Job, int]] = []  # of the step under way
        self._decoding_count = 0
        self._context_tokens = 0  # tokens computed of those that decode
        self._steps_done = 0  # steps that are over
        self._finishes: list[StepEvent] = []
        self._allocations: list[StepEvent] = []  # of a further block
        self._serial = count()
        self._began_s = 0.0
        self._steps_under_way = 0  # under way
        self._step_s = self._growth_s = 0.0  # A and B
        self._may_join = True  # a request that arrives might join the next step

    def fits(self, job: Job) -> bool:
        """Whether it can ever be served."""
        return job.prompt_tokens + job.output_tokens <= self.most_tokens

    @property
    def most_tokens(self) -> int:
        """Longest prompt and answer together."""
        return self.pool.size * self.block_tokens

    def submit(self, job: Job, now: float) -> None:
        job.prefill_tokens = job.prompt_tokens
        self.waiting.append(job)
        if self.next_s == NEVER:
            self._begin(now)
        elif self._may_join:
            self._cut_short(now)

    def abort(self, job: Job, now: float) -> None:
        """Its client has left: it goes with the end of the step that runs, and is not among those done."""
        self._aborted.append(job)
        self._cut_short(now)

    def slow_down(self, slowness: float, now: float) -> None:
        """Another factor f, from the next step on."""
        self.slowness = slowness
        if self.next_s < NEVER:
            self._cut_short(now)

    def advance(self) -> tuple[list[Job], list[Job]]:
        """The steps under way are over, the next ones begin. (Requests that gave their first token, those done)."""
        now = self.next_s
        self.busy_s += now - self._began_s
        self._steps_done += self._steps_under_way
        self._context_tokens += self._steps_under_way * self._decoding_count
        self._allocate_due(self._steps_done)
        first = [job for job, tokens in self._chunks if self._finish_chunk(job, tokens, now)]
        for job in self._aborted:
            if job in self.running:
                self._stop(job)
            else:
                self.waiting.remove(job)
        self._aborted.clear()
        done = []
        while self._finishes and self._finishes[0][0] <= self._steps_done:
            _, _, job, version = heappop(self._finishes)
            if version == job.version:
                done.append(job)
                self._stop(job)
        self._begin(now)
        return first, done

    def kill(self) -> list[Job]:
        """The process dies, and its cache with it. The requests it had, oldest first."""
        lost = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self.next_s = NEVER
        return lost

    # --- the steps under way --------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._chunks = []
        preempted = self.preemptions
        self._allocate_due(self._steps_done + 1)
        budget = self.hardware.budget_tokens - self._decoding_count
        budget = self._continue_prefills(budget)
        if self.preemptions == preempted:
            self._admit(budget)
        self._began_s = now
        if not self.running:
            assert not self.waiting, "an idle engine has room"
            self.next_s = NEVER
            return
        tokens = sum([tokens for _, tokens in self._chunks])
        lookback = sum([chunk * (job.computed + chunk / 2) for job, chunk in self._chunks])
        sequences = self._decoding_count + len(self._chunks)
        factor, hardware = self.slowness, self.hardware
        self._step_s = factor * hardware.step_s(tokens, lookback, sequences, self._context_tokens)
        self._growth_s = factor * hardware.context_ms * self._decoding_count / 1e3
        alone = not self._chunks and self.preemptions == preempted
        self._steps_under_way = self._steps_until_change() if alone else 1
        self._may_join = not self.waiting
        self.next_s = now + self._duration_s(self._steps_under_way)

    def _duration_s(self, steps: int) -> float:
        return steps * self._step_s + self._growth_s * (steps * (steps - 1) / 2)

    def _steps_until_change(self) -> int:
        """Steps until one of those that decode is done, as far as there is room for their blocks."""
        while self._finishes[0][3] != self._finishes[0][2].version:
            heappop(self._finishes)
        steps, free = self._finishes[0][0] - self._steps_done, self.pool.free
        each = free // self._decoding_count  # blocks for each of them: enough for so many times a block's tokens
        if each or steps == 1:
            return min(steps, max(1, each * self.block_tokens))
        due = nsmallest(free + 1, [need[0] for need in self._allocations if need[3] == need[2].version])
        steps = min(steps, self.block_tokens)  # in which none needs two
        return min(steps, due[free] - 1 - self._steps_done) if len(due) > free else steps

    def _cut_short(self, now: float) -> None:
        """End the stretch with the step that runs at `now`."""
        if self._steps_under_way == 1:
            return
        elapsed_s, half_s = now - self._began_s, self._growth_s / 2
        first_s = self._step_s - half_s
        # The root of half k^2 + first k = elapsed, in a form that bears half = 0; its rounding is made good below.
        steps = max(1, int(2 * elapsed_s / (first_s + math.sqrt(first_s * first_s + 4 * half_s * elapsed_s))))
        while steps < self._steps_under_way and self._duration_s(steps) < elapsed_s:
            steps += 1
        self._steps_under_way = min(self._steps_under_way, steps)
        self.next_s = self._began_s + self._duration_s(self._steps_under_way)

    # --- who takes part -------------------------------------------------------------------------------------------

    def _allocate_due(self, step: int) -> None:
        """A block for each decoding request that needs one up to that step."""
        needs = self._allocations
        while needs and needs[0][0] <= step:
            due, _, job, version = heappop(needs)
            if version != job.version:
                continue
            self._cache_full_blocks(job, len(job.blocks))
            if self._allocate(job, 1):
                self._schedule_allocation(job, due + self.block_tokens)

    def _schedule_allocation(self, job: Job, step: int) -> None:
        if step <= job.decoding_since + job.output_tokens - job.generated:
            heappush(self._allocations, (step, next(self._serial), job, job.version))

    def _continue_prefills(self, budget: int) -> int:
        """The next chunks of prompts that were begun. The budget left."""
        for job in list(self._prefilling):
            if budget <= 0:
                break
            if job in self._prefilling:  # not preempted for one before it
                chunk = min(budget, job.prefill_tokens - job.computed)
                if self._allocate(job, self._missing_blocks(job, chunk)):
                    self._schedule_chunk(job, chunk)
                    budget -= chunk
        return budget

    def _admit(self, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.hardware.most_sequences:
            job = self.waiting[0]
            hits = self.pool.find(job.keys, (job.prefill_tokens - 1) // self.block_tokens)
            job.computed = len(hits) * self.block_tokens
            job.blocks = hits
            chunk = min(budget, job.prefill_tokens - job.computed)
            lacking = self._missing_blocks(job, chunk)
            if lacking > self.pool.free_besides(hits):
                job.blocks = []
                break
            self.waiting.popleft()
            self.pool.use(hits)
            job.keyed_blocks = len(hits)
            job.blocks.extend(self.pool.allocate(lacking))
            if job.cached_tokens is None:
                job.cached_tokens = job.computed
            self.running[job] = self._prefilling[job] = None
            self._schedule_chunk(job, chunk)
            budget -= chunk

    def _missing_blocks(self, job: Job, chunk: int) -> int:
        """Blocks beside its own that it needs for so many more tokens."""
        return -(-(job.computed + chunk) // self.block_tokens) - len(job.blocks)

    def _allocate(self, job: Job, blocks: int) -> bool:
        """Give it so many more blocks; False if it was preempted itself before there was room."""
        while blocks > self.pool.free:
            newest = next(reversed(self.running))
            self._preempt(newest)
            if newest is job:
                return False
        if blocks:
            job.blocks.extend(self.pool.allocate(blocks))
        return True

    def _schedule_chunk(self, job: Job, chunk: int) -> None:
        self._cache_full_blocks(job, (job.computed + chunk) // self.block_tokens)
        self._chunks.append((job, chunk))

    def _cache_full_blocks(self, job: Job, full: int) -> None:
        """Its first `full` blocks are full."""
        end = min(full, len(job.keys))
        if end > job.keyed_blocks:
            self.pool.cache(job.blocks, job.keys, job.keyed_blocks, end)
            job.keyed_blocks = end

    def _finish_chunk(self, job: Job, chunk: int, now: float) -> bool:
        """Whether its first token came out of the step."""
        job.computed += chunk
        if job.computed < job.prefill_tokens:
            return False
        del self._prefilling[job]
        job.generated += 1
        job.decoding_since = self._steps_done
        self._decoding_count += 1
        self._context_tokens += job.computed
        heappush(
            self._finishes, (self._steps_done + job.output_tokens - job.generated, next(self._serial), job, job.version)
        )
        self._schedule_allocation(job, self._steps_done + 1 + len(job.blocks) * self.block_tokens - job.computed)
        if job.first_s is not None:
            return False
        job.first_s = now
        return True

    def _preempt(self, job: Job) -> None:
        self.preemptions += 1
        job.preemptions += 1
        self._stop(job)
        job.prefill_tokens = job.prompt_tokens + job.generated
        job.keyed_blocks = 0
        self.waiting.appendleft(job)

    def _stop(self, job: Job) -> None:
        """It no longer runs: done, preempted, or left by its client."""
        if job.decoding_since >= 0:
            steps = self._steps_done - job.decoding_since
            job.generated += steps
            job.computed += steps
            job.decoding_since = -1
            self._decoding_count -= 1
            self._context_tokens -= job.computed
        else:
            del self._prefilling[job]
        job.version += 1
        self._cache_full_blocks(job, job.computed // self.block_tokens)
        self.pool.release(job.blocks[::-1])
        job.blocks = []
        del self.running[job]
