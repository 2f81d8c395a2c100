"""What the documents tell a reader to do works: commands without a mark are run, marked ones are checked as far as they
can be without being run (CONTRIBUTING.md, "Write a document"). What they name: test_docs_names.py."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_patches import settings
from router.cli import keys, main
from tests.support.documents import (
    DOCUMENTS,
    HOST_FLAGS,
    MARKS,
    ROOT,
    Block,
    Command,
    benchmark_flags,
    blocks,
    commands,
    named,
    ticked,
)
from tests.support.fake_engine import Script
from tests.support.gateway_server import BODIES, CHAT, served

BLOCKS, COMMANDS = blocks(), commands()
NOT_FORWARDED = {"/v1/realtime"}  # named in the README as what is missing
GATEWAY = re.compile(r"(?:http://)?(?:localhost|127\.0\.0\.1):30000(/.*)")


# --- blocks and commands ----------------------------------------------------------------------------------------


def test_every_block_names_its_language_and_its_marks_are_known() -> None:
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        assert block.language in ("bash", "python", "json", "yaml", "text"), block
        assert block.marks <= MARKS, block
    fences = sum(line.startswith("```") for file in DOCUMENTS for line in file.read_text().splitlines())
    assert fences == 2 * len(BLOCKS)
    assert {mark for block in BLOCKS for mark in block.marks} == MARKS


def check_leafcutter(command: Command) -> None:
    """Its flags parse, and their values are right."""
    if {"--help", "--version"} & set(command.arguments):
        assert command.block.runs, "it is quick, so it can be run"
        return
    arguments = main.parser().parse_args(command.arguments)
    if hasattr(arguments, "spec"):
        main.load(arguments.spec, arguments, {})
    elif arguments.start is keys.run:
        assert command.block.runs, "it is quick, so it can be run"
    elif "needs: file" not in command.block.marks:
        module: Any = inspect.getmodule(arguments.start)
        module.plan_of(arguments)


def check_python(command: Command) -> None:
    """The module is there, and the benchmarks know its flags."""
    assert command.arguments[0] == "-m"
    assert find_spec(command.arguments[1]) is not None
    flags = {word for word in command.arguments if word.startswith("--")}
    assert flags <= benchmark_flags()


def check_pytest(command: Command) -> None:
    paths = [word for word in command.arguments if "/" in word]
    assert paths
    assert all((ROOT / path).exists() for path in paths)


def check_make(command: Command) -> None:
    """The target exists, and what goes to `leafcutter up` parses."""
    makefile = (ROOT / "Makefile").read_text()
    target, *variables = command.arguments
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    values = dict(word.split("=", 1) for word in variables)
    assert all(re.search(rf"^{name} \?=", makefile, re.MULTILINE) for name in values)
    main.parser().parse_args(["up", *values.get("ARGS", "").split()])


def check_curl(command: Command) -> None:
    """That it is answered: `test_curl_is_answered`."""
    assert curl(command)[1].startswith("/")


def check_pip(command: Command) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    what = re.fullmatch(r"(?:\.|leafcutter-router)(?:\[(\w+)\])?", command.arguments[1])
    assert command.arguments[0] == "install"
    assert what
    assert what[1] is None or what[1] in extras


def check_vllm(command: Command) -> None:
    assert command.arguments[0] == "serve"
    assert {word for word in command.arguments if word.startswith("--")} <= {*HOST_FLAGS, "--port"}
    assert set(command.env) == {"LEAFCUTTER_EVICTION", "LEAFCUTTER_STATE_PORT"}
    settings.read_settings(command.env)


def check_docker(command: Command) -> None:
    assert command.arguments[:2] == ["compose", "-f"]
    assert (ROOT / command.arguments[2]).is_file()


CHECKS = {
    "leafcutter": check_leafcutter,
    "python": check_python,
    "pytest": check_pytest,
    "make": check_make,
    "curl": check_curl,
    "pip": check_pip,
    "vllm": check_vllm,
    "docker": check_docker,
}
RUNNABLE = {"leafcutter": ["-m", "router"], "python": [], "pytest": ["-m", "pytest", "-p", "no:cacheprovider"]}


def test_every_program_is_known_and_every_check_has_a_command() -> None:
    assert {command.program for command in COMMANDS} == set(CHECKS)
    for command in COMMANDS:
        assert command.program == "vllm" or not command.env, command
        assert command.program in RUNNABLE or not command.block.runs, f"{command}: it cannot be run here, so mark it"


@pytest.mark.parametrize("command", **named(COMMANDS))
def test_command_is_right(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    CHECKS[command.program](command)


RUN = [command for command in COMMANDS if command.block.runs]


@pytest.mark.parametrize("command", **named(RUN))
def test_command_without_a_mark_runs(command: Command) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LEAFCUTTER_")}
    done = subprocess.run(
        [sys.executable, *RUNNABLE[command.program], *command.arguments],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_each_kind_of_command_is_run() -> None:
    assert {command.program for command in RUN} >= {"leafcutter", "pytest"}
    assert {command.arguments[0] for command in RUN if command.program == "leafcutter"} >= {"bench", "simulate", "up"}


# --- requests ---------------------------------------------------------------------------------------------------


def curl(command: Command) -> tuple[str, str, dict[str, str], str | None]:
    """(method, path with query, headers, body) of a curl command to the gateway."""
    method, path, headers, body = None, "", {}, None
    words = iter(command.arguments)
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(":")
            headers[name.strip()] = value.strip()
        elif word == "-d":
            body = next(words)
        else:
            match = GATEWAY.fullmatch(word)
            assert match, f"{command}: {word} is neither a known flag nor an address of the gateway"
            path = match[1]
    return method or ("GET" if body is None else "POST"), path, headers, body


def curls() -> dict[Path, list[Command]]:
    found: dict[Path, list[Command]] = defaultdict(list)
    for command in COMMANDS:
        if command.program == "curl":
            found[command.block.file].append(command)
    return found


@pytest.mark.parametrize("file", **named(list(curls())))
async def test_curl_is_answered(file: Path) -> None:
    """Every curl command of a document, in its order, by one gateway in front of two fake engines."""
    async with served(Script(), Script(), known=False) as gateway:
        for command in curls()[file]:
            method, path, headers, body = curl(command)
            if body is not None:
                json.loads(body)
            answer = await gateway.client.request(method, path, headers=headers, content=body)
            assert answer.is_success, f"{command}: {answer.text}"


def test_curls_are_found() -> None:
    assert len(curls()) >= 4


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", **named(PYTHON))
async def test_python_runs(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    async with served(Script(), Script(), known=False) as gateway:
        code = block.text.replace("http://localhost:30000", gateway.url)
        assert code != block.text
        await asyncio.to_thread(exec, compile(code, str(block), "exec"), {})
    assert "Paris" in capsys.readouterr().out


def test_python_is_found() -> None:
    assert PYTHON


def test_json_and_yaml_are_whole() -> None:
    assert [json.loads(block.text) for block in BLOCKS if block.language == "json"]
    for block in BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.text)


def shape(value: Any) -> Any:
    """The keys of a JSON document, of lists those of their first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


async def test_explanation_has_the_fields_that_are_shown() -> None:
    (shown,) = [json.loads(block.text) for block in BLOCKS if "shows: explain" in block.marks]
    async with served(Script(), Script(), policy="lbgr", shadow=("lmetric",)) as gateway:
        body, headers = {**BODIES[CHAT], "stream": True}, {"x-request-id": "demo-1"}
        assert (await gateway.client.post(CHAT, json=body, headers=headers)).status_code == 200
        found = (await gateway.client.get("/explain/demo-1")).json()
    assert shape(found) == shape(shown)


async def test_endpoints_exist() -> None:
    words = {word for file in DOCUMENTS for word in ticked(file)}
    full = {word for word in words if re.fullmatch(r"(?:GET|PUT|POST|DELETE) /\S*", word)}
    bare = {word for word in words if re.fullmatch(r"/[a-z0-9_/]+", word)}
    assert len(full) >= 8
    assert len(bare) >= 6
    assert bare >= NOT_FORWARDED
    async with served(known=False) as gateway:

        async def unknown(method: str, path: str) -> bool:
            answer = await gateway.client.request(method, path)
            return answer.status_code >= 400 and answer.json()["error"].get("code") == "unknown_url"

        for word in full:
            assert not await unknown(*word.split()), word
        for path in bare:
            assert all([await unknown(method, path) for method in ("GET", "POST")]) == (path in NOT_FORWARDED), path
