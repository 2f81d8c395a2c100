"""The options of lbgr. The symbols in the help texts are those of the equation in `cost`."""

from __future__ import annotations

from dataclasses import dataclass

from router.options import option

OBJECTIVES = ("e2e", "ttft", "slo")


@dataclass(frozen=True)
class LbgrOptions:
    """The weights of the cost, and the conditions under which another policy decides."""

    objective: str = option(
        "e2e",
        "what is made short: whole answers (e2e), the first token (ttft), or whole answers within clients' own bounds"
        " (slo: headers x-slo-ttft-ms, x-slo-tpot-ms)",
        among=OBJECTIVES,
    )
    duplication_weight: float = option(4.0, "price of computing again what another engine has cached (kv)", low=0)
    duplication_weight_learned: float = option(
        3.0, "the same before engines whose eviction order is not LRU: there a copy displaces little", low=0
    )
    crowding_weight: float = option(
        3.0, "price of pushing out of a cache what its sessions will want again (kc)", low=0
    )
    first_token_weight: float = option(
        1.0, "what a second before the first token costs beside being one of latency (kf)", low=0
    )
    slo_weight: float = option(
        2.0, "what it costs to miss a client's bound, in times of the bound (ks, objective slo)", low=0
    )
    imposed_prefill: float = option(1.0, "weight of the prefill delay imposed on others (kp)", low=0)
    imposed_decode: float = option(1.0, "weight of the decode delay imposed on others (kd)", low=0)
    cold_samples: int = option(
        8, "samples it must have learned from before it is heeded (two a streamed request, one an unstreamed)", low=0
    )
    error_bound: float = option(
        4.0,
        "median of |actual - predicted| / predicted over the last 64 answers from which it is not heeded; again below"
        " half of it",
        low=0.001,
    )
