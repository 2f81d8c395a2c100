"""What a router has learned, as one JSON object: to be kept across restarts (`gateway.snapshot` keeps it in a file)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from router.core.experiment import Experiment
from router.errors import SnapshotError
from router.learners.estimates import OutputLength, TokenRatio
from router.prefix.index import PrefixIndex
from router.saved_state import SavedFields, SavedState
from router.types import EngineId


class LearnedState:
    """Latencies, lengths and caches, but neither load nor what engines hold. engines: those there are, when asked."""

    def __init__(
        self,
        lengths: OutputLength,
        ratios: TokenRatio,
        index: PrefixIndex,
        experiment: Experiment,
        engines: Callable[[], Iterable[EngineId]],
    ) -> None:
        self._lengths, self._ratios, self._index = lengths, ratios, index
        self._experiment, self._engines = experiment, engines

    def dump(self, now: float) -> SavedState:
        """All of it, for `load`: JSON types, finite numbers, times as ages."""
        return {
            "output_lengths": self._lengths.dump(),
            "token_ratios": self._ratios.dump(),
            "survival_curves": self._index.dump(),
            "policies": self._experiment.dump(now),
        }

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """Takes up what was dumped at saved_s, on the present clock, or raises SnapshotError and changes nothing.

        names: the engines there are, by the names they had.
        """
        before = SavedFields(self.dump(saved_s), "learned")
        try:
            self._load(state, saved_s, names)
        except SnapshotError:
            self._load(before, saved_s, {engine: engine for engine in self._engines()})
            raise

    def _load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        self._lengths.load(state, "output_lengths")
        self._ratios.load(state, "token_ratios")
        self._experiment.load(state.fields("policies"), saved_s, names)
        self._index.load(state.fields("survival_curves"))  # all or none by itself: it cannot unlearn a new order
