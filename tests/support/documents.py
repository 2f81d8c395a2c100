"""The project's documents as data: fenced blocks with their marks, the commands in them, links, words in backticks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MARKS = {
    *("needs: gpu", "needs: docker", "needs: engines", "needs: network", "needs: file"),
    *("takes: minutes", "takes: hours"),
    "shows: explain",
}
"""What a comment above a block may say. A command under `needs` or `takes` is not run by the tests."""

HOST_FLAGS = {"--enable-prompt-tokens-details", "--max-model-len", "--tensor-parallel-size", "--disable-log-stats"}
HOST_FLAGS |= {f"--data-parallel-{end}" for end in ("size", "rank", "backend", "hybrid-lb", "external-lb")}
"""Of vLLM, as far as documents name them."""

_BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
_MARK = re.compile(r"<!-- *(.*?) *-->")
_TICKS = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: that of its opening fence, from 1."""

    file: Path
    line: int
    language: str
    marks: frozenset[str]
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Nothing above it says that it needs something or takes long."""
        return not any(mark.startswith(("needs:", "takes:")) for mark in self.marks)


@dataclass(frozen=True)
class Command:
    """One command line of a `bash` block. env: the variables set before the program."""

    block: Block
    env: dict[str, str]
    program: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.block} {shlex.join([self.program, *self.arguments])[:60]}"


def text(file: Path) -> str:
    """A document without its fenced blocks."""
    return _BLOCK.sub("", file.read_text())


def blocks() -> list[Block]:
    found = []
    for file in DOCUMENTS:
        whole = file.read_text()
        for match in _BLOCK.finditer(whole):
            line = whole.count("\n", 0, match.start(2)) + 1
            found.append(Block(file, line, match[2], frozenset(_MARK.findall(match[1])), match[3]))
    return found


def commands() -> list[Command]:
    """Every command of every `bash` block, in the order of the documents."""
    return [
        _command(block, line)
        for block in blocks()
        if block.language == "bash"
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _command(block: Block, line: str) -> Command:
    words, env = shlex.split(line, comments=True), {}
    while _ASSIGNMENT.match(words[0]):
        name, _, env[name] = words.pop(0).partition("=")
    return Command(block, env, words[0].removeprefix(".venv/bin/"), words[1:])


def ticked(file: Path) -> list[str]:
    """What stands in backticks, outside fenced blocks."""
    return _TICKS.findall(text(file))


def links(file: Path) -> list[str]:
    """The targets of links and images."""
    return _LINK.findall(text(file))


def anchors(file: Path) -> set[str]:
    """The names by which the headings of a document can be linked to, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text(file))}


def benchmark_flags() -> set[str]:
    """The flags of all benchmarks together."""
    source = "".join(file.read_text() for file in (ROOT / "benchmarks").rglob("*.py"))
    return set(re.findall(r'"(--[a-z-]+)"', source))


def named(values: list[Any]) -> dict[str, Any]:
    """The arguments of a test that runs for each of them, under names that can be read."""
    names = [str(value.relative_to(ROOT) if isinstance(value, Path) else value) for value in values]
    return {"argvalues": values, "ids": [name.replace("/", "|") for name in names]}
