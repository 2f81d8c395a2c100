"""Running means for each class of traffic, kept in maps that drop the least recently used class at their cap.

`OutputLength` learns the length of answers. Classes are nested, and each has the plain mean of its first answers and
then a moving average over about 200. The prediction is that mean, shrunk towards the mean of the enclosing class.

`TokenRatio` learns for each model how many tokens a byte of text has. The gateway does not tokenize; it learns the
ratio from the `prompt_tokens` that engines report.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from router.errors import SnapshotError
from router.saved_state import SavedFields, number
from router.types import ParsedRequest

CLASSES = 4096
"""The most classes that each learner keeps, about 300 bytes each. A cap is needed, since clients choose the names."""

T = TypeVar("T")


class _Classes(Generic[T]):
    """An entry for each of the CLASSES names used last, the least recently used first."""

    def __init__(self, new: Callable[[], T]) -> None:
        self._new = new
        self._entries: OrderedDict[object, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: object) -> T | None:
        return self._entries.get(name)

    def open(self, name: object) -> T:
        """The entry of a class that has a sample now. A new one is made if there is none, and may drop another."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = self._new()
        else:
            self._entries.move_to_end(name)
        if len(self._entries) > CLASSES:
            self._entries.popitem(last=False)
        return entry

    def dump(self, numbers: Callable[[T], tuple[float, float]]) -> list[object]:
        """[name, number, number] of each class, the least recently used first. Names are text or tuples of JSON
        types."""
        return [
            [list(name) if isinstance(name, tuple) else name, *numbers(entry)] for name, entry in self._entries.items()
        ]

    def load(self, state: SavedFields, key: str, make: Callable[[float, float], T]) -> None:
        """Replace all classes by those under `key`. Raises SnapshotError."""
        found: OrderedDict[object, T] = OrderedDict()
        for place, row in state.items(key, CLASSES):
            if not isinstance(row, list) or len(row) != 3:
                raise SnapshotError(place, row, "a name and two numbers")
            name, *values = row
            if not _is_name(name):
                raise SnapshotError(place, name, "the name of a class")
            first, second = (number(value, place, 0.0) for value in values)
            found[tuple(name) if isinstance(name, list) else name] = make(first, second)
        self._entries = found


def _is_name(name: object) -> bool:
    return isinstance(name, str) or (
        isinstance(name, list) and all(part is None or isinstance(part, str | int) for part in name)
    )


def length_classes(request: ParsedRequest) -> tuple[object, ...]:
    """The nested classes whose answers are alike, the widest first: those of the model, of the route, of the client's
    bound on the output within a factor of two, and of the session if the client names one."""
    route = request.model, request.route
    bound = *route, None if request.max_tokens is None else request.max_tokens.bit_length()
    classes = request.model, route, bound
    return classes if request.session is None else (*classes, (*bound, request.session))


@dataclass(slots=True)
class _Length:
    mean_tokens: float = 0.0
    answers: int = 0


class OutputLength:
    """Expected output, tokens. A request belongs to nested classes, given with the widest first (`length_classes`)."""

    SLOWEST_GAIN = 1 / 200  # of the moving average, from the 200th answer on
    SHRINK = 4.0  # number of answers that the mean of the enclosing class counts as

    def __init__(self, start_tokens: float) -> None:
        self._start_tokens = start_tokens
        self.classes: _Classes[_Length] = _Classes(_Length)

    def predict_one(self, classes: Sequence[object]) -> float:
        mean_tokens = self._start_tokens
        for name in classes:
            entry = self.classes.find(name)
            if entry is not None:
                answers = min(float(entry.answers), 1 / self.SLOWEST_GAIN)
                mean_tokens += answers / (answers + self.SHRINK) * (entry.mean_tokens - mean_tokens)
        return mean_tokens

    def learn_one(self, classes: Sequence[object], output_tokens: float) -> None:
        for name in classes:
            entry = self.classes.open(name)
            entry.answers += 1
            entry.mean_tokens += max(self.SLOWEST_GAIN, 1 / entry.answers) * (output_tokens - entry.mean_tokens)

    def dump(self) -> list[object]:
        return self.classes.dump(lambda entry: (entry.mean_tokens, entry.answers))

    def load(self, state: SavedFields, key: str) -> None:
        """Raises SnapshotError."""
        self.classes.load(state, key, lambda mean_tokens, answers: _Length(mean_tokens, int(answers)))


@dataclass(slots=True)
class _Ratio:
    tokens: float
    units: float


class TokenRatio:
    """Tokens per byte by model: a ratio of sums over about 50 prompts, so that long prompts count by their length."""

    START = 0.25
    START_UNITS = 1000.0  # bytes that the start counts as
    DECAY = 0.98
    LOW, HIGH = 1 / 64, 4.0  # a ratio beyond these is not of text (images, several prompts in one body)

    def __init__(self) -> None:
        self.classes: _Classes[_Ratio] = _Classes(lambda: _Ratio(self.START * self.START_UNITS, self.START_UNITS))

    def predict_one(self, model: str) -> float:
        entry = self.classes.find(model)
        return entry.tokens / entry.units if entry else self.START

    def learn_one(self, model: str, units: int, prompt_tokens: int) -> None:
        if not self.LOW * units <= prompt_tokens <= self.HIGH * units:
            return
        entry = self.classes.open(model)
        entry.tokens = self.DECAY * entry.tokens + prompt_tokens
        entry.units = self.DECAY * entry.units + units

    def dump(self) -> list[object]:
        return self.classes.dump(lambda entry: (entry.tokens, entry.units))

    def load(self, state: SavedFields, key: str) -> None:
        """Raises SnapshotError."""
        self.classes.load(state, key, lambda tokens, units: _Ratio(max(1e-9, tokens), max(1.0, units)))
