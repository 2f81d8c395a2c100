"""A vLLM engine inside this process that is stepped by hand: every step's time and the scheduler's share of it.

Import this before vLLM: what vLLM reads from the environment is set here.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine_patches.plugin import register
from engine_patches.settings import EVICTION, SEED

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine core in this very thread
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ.pop(EVICTION.name, None)  # the order is each engine's own here: vLLM itself shall load none
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# Half of the cores: the threads wait for each other at every operation, so one whose core is busy stalls them all.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 2)))


@dataclass(frozen=True)
class SessionTurn:
    """The next turn of a session: its prompt is all turns and answers of `session` before it, and `tokens`."""

    session: int
    tokens: list[int]
    output_tokens: int
    last: bool
    """The session ends with this turn."""


@dataclass(frozen=True)
class Step:
    seconds: float
    """Time of the engine's own loop body: schedule, run the model, update."""
    scheduler_s: float
    """Time inside `schedule` and `update_from_output`, where an eviction order makes all its decisions."""
    tokens: int
    requests: int

    @property
    def admits(self) -> bool:
        """A prompt is computed in it, so blocks are allocated and evicted; otherwise each request decodes a token."""
        return self.tokens > self.requests


class TimedEngine:
    """One engine with the named order (`off`: stock vLLM), at most `concurrency` requests at a time."""

    def __init__(self, order: str, seed: int, concurrency: int, args: Iterable[str]) -> None:
        self._engine = _start(order, seed, [*args])
        self._concurrency = concurrency
        self._waiting: deque[SessionTurn] = deque()
        self._running: dict[str, SessionTurn] = {}
        self._history: dict[int, list[int]] = {}
        """The turns and answers so far of each session that goes on, as this engine gave them."""
        self._number = 0
        self.prompt_tokens = self.cached_tokens = self._stored_blocks = 0
        core = self._engine.engine_core.engine_core
        self._pool = core.scheduler.kv_cache_manager.block_pool
        self._scheduler = core.scheduler
        self._step_s = self._scheduler_s = 0.0
        self._scheduled: Any = None
        self._observe(core)

    def _observe(self, core: Any) -> None:
        """Put clocks around what is timed, which is called once a step, and a counter around what stores blocks."""
        step, schedule, update = core.step_fn, core.scheduler.schedule, core.scheduler.update_from_output
        store = self._pool.cache_full_blocks

        def timed_step() -> Any:
            start = time.perf_counter()
            done = step()
            self._step_s = time.perf_counter() - start
            return done

        def timed_schedule(*args: Any) -> Any:
            start = time.perf_counter()
            self._scheduled = schedule(*args)
            self._scheduler_s = time.perf_counter() - start
            return self._scheduled

        def timed_update(*args: Any) -> Any:
            start = time.perf_counter()
            done = update(*args)
            self._scheduler_s += time.perf_counter() - start
            return done

        def counted_store(*args: Any, **kwargs: Any) -> None:
            before, after = kwargs["num_cached_blocks"], kwargs["num_full_blocks"]
            self._stored_blocks += after - before
            store(*args, **kwargs)

        core.step_fn, core.scheduler.schedule, core.scheduler.update_from_output = (
            timed_step,
            timed_schedule,
            timed_update,
        )
        self._pool.cache_full_blocks = counted_store

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def enqueue(self, wave: Iterable[SessionTurn]) -> None:
        self._waiting.extend(wave)

    def step(self) -> Step:
        """Admit what may run, then run one step of the engine.

        Admission is not timed, since hashing a prompt is no order's work.
        """
        while self._waiting and len(self._running) < self._concurrency:
            self._admit(self._waiting.popleft())
        for output in self._engine.step():
            if output.finished:
                self._finish(output)
        return Step(
            self._step_s,
            self._scheduler_s,
            self._scheduled.total_num_scheduled_tokens,
            len(self._scheduled.num_scheduled_tokens),
        )

    def _admit(self, turn: SessionTurn) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt = self._history.pop(turn.session, []) + turn.tokens
        sampling = SamplingParams(
            max_tokens=turn.output_tokens,
            ignore_eos=True,
            temperature=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._number += 1
        self._engine.add_request(str(self._number), {"prompt_token_ids": prompt}, sampling)
        self._running[str(self._number)] = turn

    def _finish(self, output: Any) -> None:
        turn = self._running.pop(output.request_id)
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens
        if not turn.last:
            self._history[turn.session] = [*output.prompt_token_ids, *output.outputs[0].token_ids]

    @property
    def evicted_blocks(self) -> int:
        """Blocks that lost their hash so far: those that ever got one, less those that have one."""
        return self._stored_blocks - sum(block.block_hash is not None for block in self._pool.blocks)

    def reset(self) -> None:
        """Empty the cache and clear the counters; the engine must be idle."""
        assert not self.busy
        while self._scheduler.has_requests():  # the last finished ones are not yet taken out of the batch
            self._engine.step()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the engine did not empty its prefix cache")
        self._history.clear()
        self.prompt_tokens = self.cached_tokens = self._stored_blocks = 0


def _start(order: str, seed: int, args: list[str]) -> Any:
    """An LLMEngine whose block pool is the order's. The pool class is put back for the next engine."""
    from vllm import EngineArgs, LLMEngine
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.core import kv_cache_coordinator

    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(args)
    own = kv_cache_coordinator.BlockPool
    register({EVICTION.name: order, SEED.name: str(seed)})
    try:
        return LLMEngine.from_engine_args(EngineArgs.from_cli_args(parsed))
    finally:
        kv_cache_coordinator.BlockPool = own
