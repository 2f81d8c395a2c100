"""Which module may import which, by the name of its folder alone.

The core decides without I/O, and the plugin is a guest in the engine.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A folder of the router may import itself and the folders that are named here.
TYPES = {"types", "errors", "options", "saved_state"}
INNER = TYPES | {"prefix", "learners"}
CORE = INNER | {"policies", "core"}
EDGE = CORE | {"config"}
OUTER = EDGE | {"descriptors", "logs", "tls"}
ROOMS: dict[str, set[str]] = {
    "types": {"types"},
    "errors": {"types"},
    "options": {"errors"},
    "saved_state": {"errors"},
    "prefix": INNER,
    "learners": INNER,
    "policies": INNER | {"policies"},
    "core": CORE,
    "config": CORE,
    "descriptors": set(),
    "logs": EDGE,
    "tls": EDGE,
    "gateway": OUTER | {"gateway"},
    "engines": OUTER | {"engines"},
    "sim": EDGE | {"sim"},
    "processes": OUTER | {"gateway", "engines", "processes"},
    "cli": OUTER | {"gateway", "engines", "processes", "sim", "cli"},
    "__main__": {"cli"},
    "__init__": set(),
}
SANS_IO = EDGE
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


def room(file: Path, package: str) -> str:
    """The folder, or the single module, that a file of a package belongs to."""
    return file.relative_to(ROOT / package).with_suffix("").parts[0]


def rooms_used(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(file) if name.startswith("router.")} & set(ROOMS)


def test_every_room_has_its_rule() -> None:
    assert {room(file, "router") for file in modules("router")} == set(ROOMS)


@pytest.mark.parametrize("file", modules("router"), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_what_its_name_allows(file: Path) -> None:
    name = room(file, "router")
    assert rooms_used(file) <= ROOMS[name] | {name}
    roots = {each.split(".")[0] for each in imports(file)}
    if name in SANS_IO:
        assert not roots & NO_IO, f"{name} does I/O or reads the clock"
    if name != "sim":
        assert "engine_patches" not in roots


@pytest.mark.parametrize("file", modules("router"), ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_takes_no_chance_from_the_air(file: Path) -> None:
    """A generator `random.Random(seed)` comes in as an argument; the generator of the module `random` is never used."""
    if room(file, "router") not in SANS_IO:
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"{file}:{node.lineno}: random.{node.attr}"


@pytest.mark.parametrize("name", ["edge", "supervisor"])
def test_processes_without_routes_of_operators_do_not_load_their_framework(name: str) -> None:
    """It takes as long to load as all the rest of an edge, in each of them."""
    code = f"import sys, router.processes.{name}; print('fastapi' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.mark.parametrize("file", modules("engine_patches"), ids=lambda file: str(file.relative_to(ROOT)))
def test_engine_patches_layers(file: Path) -> None:
    names = imports(file)
    roots = {name.split(".")[0] for name in names}
    assert "router" not in roots
    if room(file, "engine_patches") == "orders":
        own = {name for name in names if name.startswith("engine_patches")}
        assert all(name.startswith("engine_patches.orders") for name in own), own
        assert roots - {"engine_patches"} <= sys.stdlib_module_names
    if file.stem not in ("adapter", "plugin"):
        assert "vllm" not in roots
