"""The file that keeps the runs of `acceptance`, so that an interrupted one goes on and figures can be printed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from time import monotonic
from typing import Any

import engine_patches
import router
from benchmarks.routing.acceptance_grid import Scene

SAVE_EVERY_S = 20.0
Values = dict[str, float]
Key = tuple[str, str, int]  # a scene's name, an entrant's label, the seed


class RunStore:
    """The runs that are done, and the file that keeps them. Runs of a scene that has changed since are dropped."""

    def __init__(self, path: Path | None, scenes: Sequence[Scene]) -> None:
        self._path, self._scenes, self._saved_s = path, scenes, monotonic()
        self._source = source_digest()
        self._runs: dict[Key, Values] = {}
        self._sources: dict[Key, str] = {}
        if path is None or not path.exists():
            return
        kept = json.loads(path.read_text())
        known = {scene.name for scene in scenes if kept["scenes"].get(scene.name) == scene_json(scene)}
        for run in kept["runs"]:
            key = run.pop("scene"), run.pop("entrant"), run.pop("seed")
            if key[0] in known:
                self._sources[key] = run.pop("source")
                self._runs[key] = run

    def __contains__(self, key: Key) -> bool:
        return key in self._runs

    def forget(self, pattern: str) -> None:
        """Drop the runs of the entrants whose label matches."""
        self._runs = {key: values for key, values in self._runs.items() if not fnmatch(key[1], pattern)}

    def add(self, key: Key, values: Values) -> None:
        self._runs[key], self._sources[key] = values, self._source
        if monotonic() - self._saved_s > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        if self._path is None:
            return
        runs = [
            {"scene": scene, "entrant": label, "seed": seed, "source": self._sources[scene, label, seed], **values}
            for (scene, label, seed), values in sorted(self._runs.items())
        ]
        scenes = ",\n".join(f"{json.dumps(scene.name)}: {json.dumps(scene_json(scene))}" for scene in self._scenes)
        lines = ",\n".join(map(json.dumps, runs))
        beside = self._path.with_suffix(".part")  # so that whoever kills it finds the old file or the new one
        beside.write_text(f'{{"scenes": {{\n{scenes}\n}},\n"runs": [\n{lines}\n]}}\n')
        beside.replace(self._path)
        self._saved_s = monotonic()

    def values(self, scene: str, label: str, numbers: Sequence[int]) -> list[Values] | None:
        """The values of all these seeds, or None if one of them is missing."""
        keys = [(scene, label, seed) for seed in numbers]
        return [self._runs[key] for key in keys] if all(key in self for key in keys) else None

    def versions(self) -> int:
        """The number of versions of the sources that the runs come from."""
        return len({self._sources[key] for key in self._runs})


def scene_json(scene: Scene) -> Any:
    """The scene as JSON gives it back."""
    return json.loads(json.dumps(asdict(scene)))


def source_digest() -> str:
    """A digest of the code that is simulated."""
    found = hashlib.sha256()
    for package in (router, engine_patches):
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]
