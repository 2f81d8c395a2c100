"""What a router has learned, as one JSON object. `gateway.snapshot` keeps it in a file across restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from router.core.experiment import Experiment
from router.errors import SnapshotError
from router.learners.estimates import OutputLength, TokenRatio
from router.prefix.index import PrefixIndex
from router.saved_state import SavedFields, SavedState
from router.types import EngineId


class LearnedState:
    """The learned latencies, lengths and cache behaviour. Load and the blocks that engines hold are left out.

    engines: returns the engines that are in the fleet now.
    """

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
        """Return all of it, for `load`: JSON types, finite numbers, and times as ages before `now`."""
        return {
            "output_lengths": self._lengths.dump(),
            "token_ratios": self._ratios.dump(),
            "survival_curves": self._index.dump(),
            "policies": self._experiment.dump(now),
        }

    def load(self, state: SavedFields, saved_s: float, names: Mapping[str, EngineId]) -> None:
        """Restore what was dumped. Raises SnapshotError, and then changes nothing.

        saved_s: the time of the dump on the present clock. names: the present engines, by the names that they had then.
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
        self._index.load(state.fields("survival_curves"))  # last, because it loads all or nothing and cannot be undone
