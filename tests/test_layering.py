"""Who may import whom: the core decides without I/O, and the plugin stays a guest in the engine."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer may import itself and the layers before it.
LAYERS = [
    {"types", "errors", "option", "config", "state", "usage"},
    {"blocks", "transcript", "paths", "prefix", "shelf", "survival", "holdings", "fleet", "features", "learners"},
    {"ledger", "drift"},
    {"policies"},
    {"panel"},
    {"core"},
]
SHELL = {"gateway", "control", "app"}
EDGE = {"client", "forward", "metrics", "observe", "parse", "record", "relay", "snapshot"}
"""Used by one another and the shell only."""
SIMULATION = {"sim", "bench", "simulate"}  # of the router, `sim` alone drives the orders of the engines
NO_IO = {
    "fastapi",
    "starlette",
    "uvicorn",
    "aiohttp",
    "httpx",
    "asyncio",
    "prometheus_client",
    "yaml",
    "time",
    "socket",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its dotted name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(file: Path, package: str) -> str:
    """The module of a package that a file belongs to, one level down: `learners` for learners/scale.py."""
    return file.relative_to(ROOT / package).with_suffix("").parts[0]


def of_router(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(file) if name.startswith("router.")}


def rank(module: str) -> int | None:
    return next((index for index, layer in enumerate(LAYERS) if module in layer), None)


@pytest.mark.parametrize("file", modules("router"), ids=lambda file: str(file.relative_to(ROOT)))
def test_router_layers(file: Path) -> None:
    module = top(file, "router")
    mine = rank(module)
    used = {name for name in of_router(file) if (ROOT / "router" / name).is_dir() or _is_module(name)}
    if mine is not None:
        for name in used:
            other = rank(name)
            assert other is not None, f"{module} imports {name}, which lies outside the core"
            assert other <= mine, f"{module} imports {name} from a layer above it"
        roots = {name.split(".")[0] for name in imports(file)}
        assert not roots & NO_IO, f"{module} does I/O or reads the clock: {roots & NO_IO}"
    if module not in SHELL | EDGE:
        assert not used & EDGE, f"{module} imports {used & EDGE}"
    if module not in SIMULATION:
        assert "sim" not in used, f"{module} imports sim"
    if module != "sim":
        assert not any(name.split(".")[0] == "engine_patches" for name in imports(file)), f"{module}: engine_patches"


def _is_module(name: str) -> bool:
    return (ROOT / "router" / f"{name}.py").is_file()


@pytest.mark.parametrize("file", modules("router"), ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_takes_no_chance_from_the_air(file: Path) -> None:
    """`random.Random(seed)` as an argument, never the module's own generator."""
    if rank(top(file, "router")) is None:
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"{file}:{node.lineno}: random.{node.attr}"


@pytest.mark.parametrize("file", modules("engine_patches"), ids=lambda file: str(file.relative_to(ROOT)))
def test_engine_patches_layers(file: Path) -> None:
    names = imports(file)
    roots = {name.split(".")[0] for name in names}
    assert "router" not in roots
    if top(file, "engine_patches") == "orders":
        own = {name for name in names if name.startswith("engine_patches")}
        assert all(name.startswith("engine_patches.orders") for name in own), own
        assert roots - {"engine_patches"} <= sys.stdlib_module_names
    if file.stem not in ("adapter", "plugin"):
        assert "vllm" not in roots
