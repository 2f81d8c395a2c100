"""Fetching a source: from an index in a folder, with archives made on the spot."""

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from router.errors import SetupError
from tests.support.vllm_source import Release, ensure, find_url, folder

VERSION = "0.26.0"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A source distribution: two Python files, and what is left behind."""
    files = ("vllm/__init__.py", "vllm/v1/core/block_pool.py", "vllm/kernel.cu", "setup.py", "vllm/../../out.py")
    path = tmp_path / f"vllm-{VERSION}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in files:
            member = tarfile.TarInfo(f"vllm-{VERSION}/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.fixture
def release(archive: Path) -> Release:
    return Release(VERSION, hashlib.sha256(archive.read_bytes()).hexdigest())


def at(url: str) -> Callable[[str, Mapping[str, str]], str]:
    """An index that knows one address."""
    return lambda *_: url


def refuse_to_ask(version: str, env: Mapping[str, str]) -> str:
    pytest.fail("the index was asked again")


def test_the_packages_python_files_and_nothing_else(archive: Path, release: Release, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    target = ensure(release, env, find=at(archive.as_uri()))
    assert target == folder(release, env) == tmp_path / "cache" / "leafcutter" / "hosts-1" / "vllm-0.26.0"
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {"vllm/__init__.py", "vllm/v1/core/block_pool.py", "vllm-0.26.0.dist-info/METADATA"}
    assert list(target.parent.iterdir()) == [target]
    assert "Version: 0.26.0+cpu" in (target / "vllm-0.26.0.dist-info" / "METADATA").read_text()


def test_a_second_time_needs_no_network(archive: Path, release: Release, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    first = ensure(release, env, find=at(archive.as_uri()))
    archive.unlink()
    assert ensure(release, env, find=refuse_to_ask) == first


def test_another_archive_under_that_name_is_refused(archive: Path, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(SetupError, match=r"SHA-256 is [0-9a-f]{64}, expected beef"):
        ensure(Release(VERSION, "beef"), env, find=at(archive.as_uri()))
    assert not (tmp_path / "cache").exists()


def test_without_network_and_cache_it_says_what_is_missing(tmp_path: Path) -> None:
    env = {**os.environ, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(
        SetupError, match=r"source of vLLM 0\.26\.0 is needed .* takes a network, once; uv does not find it"
    ):
        ensure(Release(VERSION, ""), env)


def test_a_broken_download_names_the_address(tmp_path: Path) -> None:
    missing = (tmp_path / "gone.tar.gz").as_uri()
    with pytest.raises(SetupError, match=r"gone\.tar\.gz could not be read"):
        ensure(Release(VERSION, ""), {"XDG_CACHE_HOME": str(tmp_path)}, find=at(missing))


def make_index(tmp_path: Path, archive: Path | None) -> dict[str, str]:
    """A package index in a folder: a wheel without content, and the source distribution if there is one."""
    page = tmp_path / "simple" / "vllm"
    page.mkdir(parents=True)
    wheel = page / f"vllm-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as parts:
        about = f"vllm-{VERSION}.dist-info"
        parts.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
        parts.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        parts.writestr(f"{about}/RECORD", "")
    files = [wheel, *([archive.rename(page / archive.name)] if archive else [])]
    (page / "index.html").write_text("".join(f'<a href="{file.name}">{file.name}</a>' for file in files))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    return {**env, "UV_CACHE_DIR": str(tmp_path / "uv"), "PIP_INDEX_URL": (tmp_path / "simple").as_uri()}


def test_a_mirror_named_for_pip_is_asked(tmp_path: Path, archive: Path) -> None:
    env = make_index(tmp_path, archive)
    assert find_url(VERSION, env) == (tmp_path / "simple" / "vllm" / archive.name).as_uri()


def test_a_mirror_without_the_source_distribution_is_named_as_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="has no source distribution"):
        find_url(VERSION, make_index(tmp_path, None))


def test_a_mirror_without_that_version_is_named_as_the_reason(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(SetupError, match=r"(?s)uv does not find it: .*vllm==0\.99\.0"):
        find_url("0.99.0", make_index(tmp_path, archive))
