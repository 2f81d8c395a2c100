"""How benchmarks report: Markdown tables as the documents show them, and JSON files of all figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line of heads, a rule, and a line for each row. Cells are printed as they are."""
    lines = [_line(heads), "|---" * len(heads) + "|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float], digits: int) -> str:
    """The median of some rounds and their range: `2.50 [2.25-4.00]`."""
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}-{max(values):,.{digits}f}]"


def machine() -> dict[str, Any]:
    """What the figures of this process depend on."""
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def conclude(figures: Mapping[str, Any], out: Path | None, table: str, problems: Sequence[str]) -> int:
    """Report the figures, and to stderr what should not be so. Returns the exit status."""
    if out:
        write_json(out, {**machine(), **figures})
    print(table)
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


def write_json(file: Path, figures: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=1) + "\n")
