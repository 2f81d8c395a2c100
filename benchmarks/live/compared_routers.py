"""The routers of `overhead.py`, each as a process in front of the same engines.

A router is named by its program and its policy, as in `vllm-router:cache_aware`. Programs that are no part of this
project are looked for in virtual environments; all run with their own defaults, but for what keeps two of them from
sharing a port and for the level of their logs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.live.gateway_process import free_port, running_gateway, running_router

DIRECT = "direct"
LEAFCUTTER, VLLM_ROUTER, SMG = "leafcutter", "vllm-router", "smg"
HOW_TO_INSTALL = (
    "python3 -m venv FOLDER && FOLDER/bin/pip install vllm-router==0.1.17 smg, and name it with --peers FOLDER"
)

Command = Callable[[str, int, Sequence[str]], list[str]]
"""From the policy, the port and the engines' URLs to the arguments of a program."""


def _vllm_router(policy: str, port: int, urls: Sequence[str]) -> list[str]:
    metrics = ["--prometheus-port", str(free_port())]
    return ["--policy", policy, "--port", str(port), *metrics, "--log-level", "warning", "--worker-urls", *urls]


def _smg(policy: str, port: int, urls: Sequence[str]) -> list[str]:
    metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    listen = ["--host", "127.0.0.1", "--port", str(port), *metrics]
    return ["launch", "--policy", policy, *listen, "--log-level", "warn", "--worker-urls", *urls]


PEERS: dict[str, Command] = {VLLM_ROUTER: _vllm_router, SMG: _smg}


@dataclass(frozen=True)
class Running:
    """A way to the engines. pid: of the router's first process, none for direct access."""

    name: str
    urls: tuple[str, ...]
    pid: int | None


def program_of(name: str) -> str:
    return name.partition(":")[0]


def find_peer(program: str, environments: Iterable[Path]) -> Path | None:
    """The executable of a program in the first of the virtual environments that has it."""
    files = [folder / "bin" / program for folder in environments]
    return next((file for file in files if file.is_file()), None)


def version_of(program: str, executable: Path | None) -> str:
    """The version of the package of that name, as its own virtual environment tells it."""
    python = executable.parent / "python" if executable else Path(sys.executable)
    package = "leafcutter-router" if program == LEAFCUTTER else program
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@asynccontextmanager
async def running(
    name: str, engines: Sequence[str], *, peers: Iterable[Path], leafcutter_args: Sequence[str], log: Path
) -> AsyncIterator[Running]:
    """One router, once it finds all of the engines healthy. For a peer its program must be there."""
    program, _, policy = name.partition(":")
    if program == DIRECT:
        yield Running(name, tuple(engines), None)
    elif program == LEAFCUTTER:
        flags = ["--policy", policy, "--log-level", "warning", *leafcutter_args]
        async with running_gateway(engines, *flags, log=log) as (url, pid):
            yield Running(name, (url,), pid)
    else:
        executable, port = find_peer(program, peers), free_port()
        command = [str(executable), *PEERS[program](policy, port, engines)]
        async with running_router(command, port, len(engines), log=log) as (url, pid):
            yield Running(name, (url,), pid)
