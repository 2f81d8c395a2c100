"""What the documents name exists: links, headings, paths, metrics, options, headers. What they promise to hold whole is
whole. Commands and requests: test_docs.py."""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_patches import settings
from engine_patches.adapter import Hint
from engine_patches.exporter import Exporter
from engine_patches.orders import ORDERS
from router import errors
from router.cli import main
from router.processes.shared_metrics import EdgesCollector
from router.types import Ending
from tests.support.documents import DOCUMENTS, HOST_FLAGS, ROOT, anchors, benchmark_flags, links, named, text, ticked
from tests.support.gateway_server import served

OPERATIONS, ARCHITECTURE = ROOT / "docs/operations.md", ROOT / "docs/architecture.md"
README_LINES = 140
TOP = "router|engine_patches|tests|benchmarks|docs|deploy|configs"
PATH = re.compile(rf"(?:{TOP})/[\w./{{}},-]*|[\w-]+\.(?:py|toml|sh)|Makefile|Dockerfile")
YOURS = {"deploy/.env"}  # files that a reader may make


@pytest.mark.parametrize("file", **named(DOCUMENTS))
def test_links_lead_somewhere(file: Path) -> None:
    for link in links(file):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_found_and_every_document_can_be_reached() -> None:
    assert sum("#" in link for file in DOCUMENTS for link in links(file)) > 20
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        file = todo.pop()
        reached.add(file)
        found = {(file.parent / link.partition("#")[0]).resolve() for link in links(file) if ":" not in link}
        todo += [each for each in found if each.suffix == ".md" and each not in reached and each.is_file()]
    assert reached == {file.resolve() for file in DOCUMENTS}


def expand(word: str) -> Iterator[str]:
    """`a/{b,c}.py`: both of them."""
    parts = re.split(r"\{(.*?)\}", word)
    for choice in product(*(part.split(",") if number % 2 else [part] for number, part in enumerate(parts))):
        yield "".join(choice)


@pytest.mark.parametrize("file", **named(DOCUMENTS))
def test_paths_exist(file: Path) -> None:
    for word in ticked(file):
        if PATH.fullmatch(word) and word not in YOURS:
            assert all((ROOT / path).exists() for path in expand(word)), word


def test_paths_are_found() -> None:
    assert sum(bool(PATH.fullmatch(word)) for file in DOCUMENTS for word in ticked(file)) > 60


def test_tests_exist() -> None:
    named_tests = [word.split("::") for file in DOCUMENTS for word in ticked(file) if "::" in word]
    assert len(named_tests) > 15
    for path, name in named_tests:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def metrics(collected: Any) -> dict[str, str]:
    """What a page of metrics may show: name by the name that documents use."""
    found = {}
    for metric in collected:
        if metric.type == "counter":
            found[f"{metric.name}_total"] = f"{metric.name}_total"
        else:
            suffixes = ("", "_bucket", "_count", "_sum") if metric.type == "histogram" else ("",)
            found |= {metric.name + suffix: metric.name for suffix in suffixes}
    return found


class Pool:
    """As much of an engine's pool as the exporter shows."""

    def __init__(self) -> None:
        self.order, self.hash_block_size, self.num_gpu_blocks = ORDERS["rlt_gix"](8), 16, 8
        self.hints: deque[Hint] = deque()


async def test_metrics_exist_and_all_are_described(tmp_path: Path) -> None:
    async with served(record=str(tmp_path / "trace.jsonl")) as gateway:
        known = metrics(gateway.registry.collect())
    known |= metrics(EdgesCollector(lambda: 2, lambda: {"edge": 0}).collect())
    exporter, pool = Exporter(9000, "127.0.0.1", "0.0.0", serve=lambda *_: None), Pool()
    exporter.show(pool)
    known |= metrics(exporter.collect())
    assert len(known) > 40
    for file in DOCUMENTS:
        # The changelog tells of names that are gone: "`old` is now `new`".
        lasting = re.sub(r"`\w+` is\s+now", "", file.read_text())
        for name in re.findall(r"leafcutter_[a-z0-9_]+", lasting):
            assert name in known or (name.endswith("_") and any(each.startswith(name) for each in known)), name
    described = set(ticked(OPERATIONS))
    assert set(known.values()) <= described


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    """All flags of a parser and of its commands."""
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= option_strings(command)
    return found


def test_options_exist() -> None:
    flags = option_strings(main.parser())
    names = {flag[2:].replace("-", "_") for flag in flags}
    variables = {f"LEAFCUTTER_{name.upper()}" for name in names} | {option.name for option in settings.OPTIONS}
    variables |= set(re.findall(r"LEAFCUTTER_[A-Z_]+", (ROOT / "deploy/setup.sh").read_text()))
    found = defaultdict(set)
    for file in DOCUMENTS:
        for word in ticked(file):
            if match := re.fullmatch(r"(--[a-z-]+)(?: .*)?", word):
                found["flags"].add(match[1])
            elif re.fullmatch(r"lbgr_(?!(?:paper|code|alpha)$)[a-z_]+", word):  # these three are policies
                found["names"].add(word)
        found["variables"] |= set(re.findall(r"LEAFCUTTER_[A-Z_]*[A-Z]", file.read_text()))
    assert found["flags"] <= flags | benchmark_flags() | HOST_FLAGS, found["flags"] - flags
    assert found["names"] <= names
    assert found["variables"] <= variables
    assert all(len(words) >= 4 for words in found.values())
    assert len(found) == 3


def test_headers_exist() -> None:
    source = "".join(file.read_text() for file in (ROOT / "router/gateway").rglob("*.py"))
    found = {name for file in DOCUMENTS for name in re.findall(r"x-leafcutter-[a-z-]+", file.read_text())}
    assert len(found) >= 5
    assert all(f'b"{name}"' in source for name in found)


# --- what the documents promise to hold whole -------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert 60 < len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def request_errors(kind: type[errors.RequestError]) -> set[type[errors.RequestError]]:
    return {kind}.union(*(request_errors(each) for each in kind.__subclasses__()))


def test_operations_has_every_ending_error_and_alert() -> None:
    words = set(ticked(OPERATIONS))
    codes = {error.code for error in request_errors(errors.RequestError) - {errors.RequestError}}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    for names in ({ending.value for ending in Ending}, codes, alerts):
        assert len(names) >= 5
        assert names <= words


def test_algorithms_has_every_policy_and_order() -> None:
    from router.policies.table import TABLE

    words = set(ticked(ROOT / "docs/algorithms.md"))
    assert words >= {*TABLE, *ORDERS}


def test_architecture_has_every_folder() -> None:
    words = set(ticked(ARCHITECTURE))
    folders = {
        f"{file.parent.relative_to(ROOT)}/"
        for package in ("router", "engine_patches")
        for file in (ROOT / package).rglob("__init__.py")
    }
    assert len(folders) > 10
    assert folders <= words


def test_architecture_answers_its_four_questions() -> None:
    section = text(ARCHITECTURE).split("## How to find things")[1].split("\n## ")[0]
    answers = re.findall(r"^\| Where .*\? \| `(.+)` \| `(\w+)` \|$", section, re.MULTILINE)
    assert len(answers) == 4
    for path, name in answers:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {
            each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
