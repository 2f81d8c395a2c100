"""The command where only the plugin's part is installed."""

import builtins
import subprocess
import sys
from pathlib import Path

import pytest

from router.__main__ import main

ROOT = Path(__file__).parents[3]

# A finder that hides what the extra `gateway` brings, as in an environment without it.
HIDDEN = """
import importlib.abc, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""


def run_without(hidden: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    script = HIDDEN.format(hidden=hidden) + code
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", ["uvloop", "yaml", "fastapi"])
def test_without_the_routers_packages_the_command_says_how_to_have_them(missing: str) -> None:
    code = "import router.__main__; sys.argv = ['leafcutter', 'serve', '--worker-urls', 'http://127.0.0.1:1']\n"
    done = run_without((missing,), code + "sys.exit(router.__main__.main())")
    assert done.returncode == 1
    assert f"the router needs {missing}, which is not installed" in done.stderr
    assert "pip install 'leafcutter-router[gateway]'" in done.stderr


def test_the_plugin_needs_nothing_of_the_router() -> None:
    gateway = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "httpx", "aiohttp", "yaml", "router")
    done = run_without(gateway, "from engine_patches.plugin import register; register({}); print('ok')")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_fault_of_ours_is_not_taken_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: object, **kwargs: object) -> object:
        if name == "router.cli.main":
            raise ModuleNotFoundError("No module named 'router.cli.nothing'", name="router.cli.nothing")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        main()
