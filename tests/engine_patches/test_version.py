"""The project's version is written in one place, `engine_patches.__version__`; everything else reads it."""

import tomllib
from importlib import metadata
from pathlib import Path

from engine_patches import __version__

ROOT = Path(__file__).parents[2]


def test_the_distribution_takes_its_version_from_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "engine_patches.__version__"}


def test_the_installed_distribution_is_of_this_version() -> None:
    """If not, it was installed before the number changed: install the project again."""
    assert metadata.version("leafcutter-router") == __version__


def test_the_dockerfile_does_not_repeat_it() -> None:
    assert f":{__version__}" not in (ROOT / "Dockerfile").read_text()
