"""The adapter over the oldest and the newest vLLM it supports, and the refusal of an older one.

Each in a process of its own, as a process has one vLLM; the one in this environment is a third, for the plain tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine_patches.host_interface import BELOW
from engine_patches.host_interface import OLDEST as SUPPORTED
from tests.support.vllm_source import NEWEST, OLDEST, REFUSED, Release, ensure

ROOT = Path(__file__).parents[2]


def run(release: Release, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the vLLM of that release."""
    # Compiled once, even where the environment says otherwise: compiling takes longer than the tests.
    env = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS")
    }
    env["PYTHONPATH"] = str(ensure(release, os.environ))
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def minor(release: Release) -> tuple[int, ...]:
    return tuple(int(part) for part in release.version.split(".")[:2])


def test_the_ends_of_the_supported_range_are_tried() -> None:
    assert minor(REFUSED) < minor(OLDEST) == SUPPORTED
    assert minor(NEWEST) == (BELOW[0], BELOW[1] - 1)


@pytest.mark.parametrize("release", [OLDEST, NEWEST], ids=lambda release: release.version)
def test_the_adapter_fits(release: Release) -> None:
    folder = str(ensure(release, os.environ))
    options = ["-m", "pytest", "-p", "tests.support.vllm_only", "--vllm", folder, "-p", "no:cacheprovider", "-rs"]
    done = run(release, *options, "tests/engine_patches")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 30
    assert "skipped" not in done.stdout


REGISTER = """
import vllm
from engine_patches.errors import HostError
from engine_patches.plugin import register
for version in (vllm.__version__, {claimed!r}):
    vllm.__version__ = version
    try:
        register({{"LEAFCUTTER_EVICTION": "rlt"}})
    except HostError as error:
        print("REFUSED", error)
"""


def test_an_older_vllm_is_refused_by_its_version_or_else_by_its_shape() -> None:
    """Its own version first; then as it would be refused if the supported range were wider than it is."""
    done = run(REFUSED, "-W", "ignore", "-c", REGISTER.format(claimed=OLDEST.version))
    by_version, by_shape = (line for line in done.stdout.splitlines() if line.startswith("REFUSED"))
    assert by_version.endswith("vLLM is version 0.25.1, supported is >=0.26,<0.34")
    assert "BlockPool has no method move_block_hashes" in by_shape
    assert "FreeKVCacheBlockQueue has no method iter_blocks_after" in by_shape


@pytest.mark.parametrize(
    ("release", "by_header", "by_xargs"),
    [
        (OLDEST, [], ["chat_completion", "completion", "responses"]),
        (
            NEWEST,
            ["chat_completion", "completion", "responses"],
            ["anthropic", "chat_completion", "completion", "responses"],
        ),
    ],
    ids=lambda value: value.version if isinstance(value, Release) else "",
)
def test_the_ways_of_a_session_into_the_engine(release: Release, by_header: list[str], by_xargs: list[str]) -> None:
    """Which APIs hand a session on: the header X-Session-ID (`Request.session_id`), and `vllm_xargs`."""
    entry = ensure(release, os.environ) / "vllm" / "entrypoints"
    apis = {path.parent.name: path.parent for path in [*entry.glob("openai/*/serving.py"), *entry.glob("*/serving.py")]}
    texts = {name: "".join(path.read_text() for path in sorted(api.glob("*.py"))) for name, api in apis.items()}
    assert sorted(name for name, text in texts.items() if "self._get_session_id(" in text) == by_header
    assert sorted(name for name, text in texts.items() if "vllm_xargs=" in text or ".vllm_xargs" in text) == by_xargs
