"""A model of one engine: continuous batching and chunked prefill as vLLM schedules them, over a cache of blocks.

A step spends its token budget in this order: one token for every request that decodes; then the next chunk of every
prompt that was begun; then new requests, first come first served. What is cached of a prompt is not computed again, but
for its last token, which is always computed. Blocks are allocated chunk by chunk. Where none is left for a request that
runs, the newest request is preempted: it releases its blocks and goes to the head of the queue, later finds what is
left of them cached, and computes the rest, the tokens that it had generated included. A block is cached as soon as a
step is going to fill it; a block of generated tokens is cached when the next one is allocated, or at the end.

While all requests decode and none can join them, nothing happens between one step and the next. Such steps are one
event. Their number k follows from the request that finishes first and from the blocks that are free; together they
take k A + B k (k - 1) / 2 seconds, A being the first step and B how much longer each step is than the one before it,
since the context grows evenly. A request that arrives cuts the event short at the end of the step that runs. As every
decoding request gains one token a step, everything that is due is known by the number of its step: two heaps hold the
steps in which requests finish and in which they need a block, so a step costs only what is due in it.
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

StepEvent = tuple[int, int, Job, int]
"""The number of a step, a tie-break, the job for which something is due then, and the job's version: the event is void
once the job has another version."""


class Engine:
    """One engine. Its caller calls `submit` for each request, and `advance` whenever the clock reaches `next_s`."""

    def __init__(self, hardware: Hardware, order: EvictionOrder, block_tokens: int, slowness: float = 1.0) -> None:
        self.hardware, self.pool, self.block_tokens = hardware, BlockPool(order), block_tokens
        self.slowness = slowness
        """f, the factor on every step that begins from now on (see `hardware`)."""
        self.next_s = NEVER
        """When the steps under way end; NEVER while the engine is idle."""
        self.busy_s = 0.0
        self.preemptions = 0
        self.waiting: deque[Job] = deque()
        self.running: dict[Job, None] = {}  # The newest one is the last.
        self._aborted: list[Job] = []
        self._prefilling: dict[Job, None] = {}
        self._chunks: list[tuple[Job, int]] = []  # Of the step under way: jobs, and how many prompt tokens of each.
        self._decoding_count = 0
        self._context_tokens = 0  # C: the computed tokens of all jobs that decode.
        self._steps_done = 0
        self._finishes: list[StepEvent] = []
        self._allocations: list[StepEvent] = []  # The first step for which a decoding job needs another block.
        self._serial = count()
        self._began_s = 0.0
        self._steps_under_way = 0
        self._step_s = self._growth_s = 0.0  # A and B.
        self._may_join = True  # Whether a request that arrives might join the next step.

    def fits(self, job: Job) -> bool:
        """Whether the cache is large enough to serve the job at all."""
        return job.prompt_tokens + job.output_tokens <= self.most_tokens

    @property
    def most_tokens(self) -> int:
        """The most tokens that a prompt and its answer can have together."""
        return self.pool.size * self.block_tokens

    def submit(self, job: Job, now: float) -> None:
        """Take in a job, which must fit."""
        job.prefill_tokens = job.prompt_tokens
        self.waiting.append(job)
        if self.next_s == NEVER:
            self._begin(now)
        elif self._may_join:
            self._cut_short(now)

    def abort(self, job: Job, now: float) -> None:
        """Its client has left. The job ends with the step that runs, and is not reported as done."""
        self._aborted.append(job)
        self._cut_short(now)

    def slow_down(self, slowness: float, now: float) -> None:
        """Set the factor f from the next step on."""
        self.slowness = slowness
        if self.next_s < NEVER:
            self._cut_short(now)

    def advance(self) -> tuple[list[Job], list[Job]]:
        """End the steps under way and begin the next ones. Call it at `next_s`.

        Returns the jobs that gave their first token, and those that are done.
        """
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
        """The process dies, and its cache with it. Return the jobs that it had: the running ones, then the others."""
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
        """Return how many steps are one event: until a decoding job finishes, or the blocks for all might run out."""
        while self._finishes[0][3] != self._finishes[0][2].version:
            heappop(self._finishes)
        steps, free = self._finishes[0][0] - self._steps_done, self.pool.free
        each = free // self._decoding_count  # Every job can have so many more blocks, each for block_tokens steps.
        if each or steps == 1:
            return min(steps, max(1, each * self.block_tokens))
        due = nsmallest(free + 1, [need[0] for need in self._allocations if need[3] == need[2].version])
        steps = min(steps, self.block_tokens)  # In so many steps no job needs two blocks.
        return min(steps, due[free] - 1 - self._steps_done) if len(due) > free else steps

    def _cut_short(self, now: float) -> None:
        """Let the steps under way end with the one that runs at `now`."""
        if self._steps_under_way == 1:
            return
        elapsed_s, half_s = now - self._began_s, self._growth_s / 2
        first_s = self._step_s - half_s
        # The root of half k^2 + first k = elapsed, in a form that holds for half = 0, too. The loop mends its rounding.
        steps = max(1, int(2 * elapsed_s / (first_s + math.sqrt(first_s * first_s + 4 * half_s * elapsed_s))))
        while steps < self._steps_under_way and self._duration_s(steps) < elapsed_s:
            steps += 1
        self._steps_under_way = min(self._steps_under_way, steps)
        self.next_s = self._began_s + self._duration_s(self._steps_under_way)

    # --- who takes part -------------------------------------------------------------------------------------------

    def _allocate_due(self, step: int) -> None:
        """Allocate a block to each decoding job that needs one for the steps up to that one."""
        needs = self._allocations
        while needs and needs[0][0] <= step:
            due, _, job, version = heappop(needs)
            if version != job.version:
                continue
            self._cache_full_blocks(job, len(job.blocks))
            if self._allocate(job, 1):
                self._schedule_allocation(job, due + self.block_tokens)

    def _schedule_allocation(self, job: Job, step: int) -> None:
        """Note that the job needs another block for that step, unless it finishes before."""
        if step <= job.decoding_since + job.output_tokens - job.generated:
            heappush(self._allocations, (step, next(self._serial), job, job.version))

    def _continue_prefills(self, budget: int) -> int:
        """Take the next chunks of the prompts that were begun. Return the budget that is left."""
        for job in list(self._prefilling):
            if budget <= 0:
                break
            if job in self._prefilling:  # It may have been preempted for a job before it.
                chunk = min(budget, job.prefill_tokens - job.computed)
                if self._allocate(job, self._missing_blocks(job, chunk)):
                    self._schedule_chunk(job, chunk)
                    budget -= chunk
        return budget

    def _admit(self, budget: int) -> None:
        """Start waiting jobs, in their order, while there are budget and blocks."""
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
        """Return how many blocks the job lacks for `chunk` more tokens."""
        return -(-(job.computed + chunk) // self.block_tokens) - len(job.blocks)

    def _allocate(self, job: Job, blocks: int) -> bool:
        """Give the job `blocks` more blocks, preempting the newest jobs until there are enough.

        Return False if the job was preempted itself before.
        """
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
        """Cache the first `full` blocks of the job, which are full or will be at the end of the step."""
        end = min(full, len(job.keys))
        if end > job.keyed_blocks:
            self.pool.cache(job.blocks, job.keys, job.keyed_blocks, end)
            job.keyed_blocks = end
            if job.session is not None:
                self.pool.order.assign(job.blocks[end - 1], job.session, job.arrival_s)

    def _finish_chunk(self, job: Job, chunk: int, now: float) -> bool:
        """Return whether the first token of the answer came out of this step."""
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
        """The job runs no longer: it is done, preempted, or aborted."""
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
