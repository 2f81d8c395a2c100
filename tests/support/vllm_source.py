"""vLLM's Python source at a given version, from its source distribution: nothing is built, nothing installed.

vLLM's cache manager is plain Python: with its source first on the module path and this environment's torch, it runs
without the native code of its wheels (300 MB each). uv finds the archive (about 40 MB), so a mirror or a proxy is
honoured as in `make setup`; afterwards the cache folder answers without a network.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from router.errors import SetupError

FORMAT = "hosts-1"  # raise when the layout of a folder changes: the path holds it
TRIES = 3
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Release:
    """A version of vLLM and the SHA-256 of its source distribution, in hexadecimal."""

    version: str
    sha256: str


REFUSED = Release("0.25.1", "ddbdec3f1c0f21afa70b7eb6ddf3faa29d26b1302ee4b5d5e00ec3af41b0c2e4")
OLDEST = Release("0.26.0", "23e9fa19d7e20ce7dcc1c074d41503e2116d23f19e688f5d5ea91b741f958502")
NEWEST = Release("0.33.0", "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112")


def folder(release: Release, env: Mapping[str, str]) -> Path:
    """Where the source lies: below XDG_CACHE_HOME or ~/.cache, beside the converted model."""
    base = env.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "leafcutter" / FORMAT / f"vllm-{release.version}"


def find_url(version: str, env: Mapping[str, str]) -> str:
    """The address of the source distribution, by the package index that uv is set to. Raises SetupError."""
    # uv does not read pip's settings: hand over a mirror, as deploy/setup.sh does.
    if env.get("PIP_INDEX_URL"):
        env = {"UV_DEFAULT_INDEX": env["PIP_INDEX_URL"], **env}
    # A platform that vLLM has wheels for: their metadata is served apart, so that uv builds nothing to read it.
    command = "uv pip compile - --quiet --no-deps --format pylock.toml --python-platform x86_64-manylinux_2_28"
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        input=f"vllm=={version}",
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"uv does not find it: {done.stderr.strip()}")
    (package,) = tomllib.loads(done.stdout)["packages"]
    url = package.get("sdist", {}).get("url")
    if url is None:
        raise SetupError("the package index has no source distribution of it")
    return str(url)


def ensure(release: Release, env: Mapping[str, str], find: Callable[[str, Mapping[str, str]], str] = find_url) -> Path:
    """The folder to put first on the module path, fetched now if it is not there yet. Raises SetupError."""
    target = folder(release, env)
    if target.is_dir():
        return target
    try:
        archive = _fetch(find(release.version, env))
        found = hashlib.sha256(archive).hexdigest()
        if found != release.sha256:
            raise SetupError(f"the archive's SHA-256 is {found}, expected {release.sha256}")
    except SetupError as error:
        raise SetupError(
            f"the Python source of vLLM {release.version} is needed to check the adapter against it, and {target} "
            f"does not hold it yet. Fetching it takes a network, once; {error}"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    # Into a folder beside it, then renamed: an interrupted unpacking never looks like a source.
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}-part-"))
    try:
        _unpack(archive, part)
        _describe(release.version, part)
        if not target.exists():
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _fetch(url: str) -> bytes:
    problem: Exception | None = None
    for _ in range(TRIES):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                return bytes(response.read())
        except (OSError, http.client.HTTPException) as error:
            problem = error
    raise SetupError(f"{url} could not be read ({problem!r}, {TRIES} tries)") from problem


def _unpack(archive: bytes, target: Path) -> None:
    """The Python files of the package alone, where `import vllm` finds them."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name).relative_to(PurePosixPath(member.name).parts[0])
            if member.isfile() and path.suffix == ".py" and path.parts[0] == "vllm" and ".." not in path.parts:
                source = tar.extractfile(member)
                assert source is not None
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_bytes(source.read())


def _describe(version: str, target: Path) -> None:
    """Package metadata: by the word `cpu` in it vLLM picks its platform, so a GPU in the machine changes nothing."""
    metadata = target / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


if __name__ == "__main__":
    try:
        for each in (REFUSED, OLDEST, NEWEST):
            print(ensure(each, os.environ))
    except SetupError as error:
        sys.exit(str(error))
