"""The options of routing itself. Those of a policy are in the file of its formula."""

from __future__ import annotations

from dataclasses import dataclass

from router.options import option
from router.policies.table import FALLBACKS, TABLE

POLICIES = tuple(TABLE)


@dataclass(frozen=True)
class RoutingOptions:
    """Which policies there are, what the router assumes until it has observed something, and how much it keeps."""

    policy: str = option("lbgr", "how an engine is chosen", among=POLICIES)
    fallback_policy: str = option(
        "lmetric",
        "which chooses while the policy must not be heeded: it failed, is cold or predicts badly",
        among=FALLBACKS,
    )
    shadow: tuple[str, ...] = option(
        (), "policies that score every request beside the one that decides, and are only counted", among=POLICIES
    )
    seed: int | None = option(None, "seed of the tie-break; nothing: drawn anew at each start", low=0)
    prefix_block_tokens: int = option(
        64, "block of the router's prefix index; text counts 4 bytes a token", unit="tokens", low=1, high=65536
    )
    prefix_index_blocks: int = option(
        500_000, "most blocks the prefix index keeps, all engines together (up to about 300 bytes each)", low=1
    )
    default_capacity_tokens: int = option(
        100_000, "prefix cache assumed of an engine that does not tell its size", unit="tokens", low=1
    )
    default_output_tokens: float = option(64.0, "output length expected before any was seen", unit="tokens", low=1)
    decision_log_size: int = option(
        10_000,
        "decisions kept for /explain and /decisions (up to about 3 KB each); 0: none",
        low=0,
        high=10_000_000,
        aliases=("ledger_decisions",),
    )
    session_hold_secs: float = option(
        300.0,
        "longest wait of a request whose conversation has lost its cache, while the caches hold too little for all;"
        " 0: none waits",
        unit="seconds",
        low=0,
    )
    drift_answers: int = option(
        64, "answers over which an engine's prediction error is averaged for the drift alarm", low=1, high=1_000_000
    )
    drift_bound: float = option(
        0.5,
        "mean of (actual - predicted) / predicted, to either side, from which the alarm is on; off below half of it",
        low=0.001,
    )
