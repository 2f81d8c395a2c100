"""What `acceptance` runs and checks, as tables: scenes (a load on a fleet), entrants (a policy over an order), checks.

The loads are those of the study that set the bounds, and three of our own (`OWN`). gsp: 14 requests a second are all
that four `l40-8b` can do under `lbgr` and `lru`; 9 a second with half the cache are as hard as 11 with the whole. chat:
sessions a second, of which 1.5 are too many. chat_long on four `h100-8b`: 2.05 at most (at 2.1 the caches thrash), so
1.0, 1.6 and 2.0 are 50, 80 and 97 %. trace: Mooncake's conversation trace on `h100-8b` in its own blocks of 512 tokens,
arrivals of one rounded time spread out, each seed another window of it.

Left out, for what they compare with is no part of the product: the authors' own router code ("code"), exact knowledge
of the caches (at once or a second late), eight survival classes, the copy of the engine's order in the router, and
engines that say they evict by LRU and do not (an LRU index before `rlt` or `rlt_gix` engines, a survival index before
`lru` ones). Decision times are measured by `decision_time`; that `lru` is vLLM's order, step by step, is a unit test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from router.policies.table import TABLE

TRACE = "trace"
L40, H100 = "l40-8b", "h100-8b"
BEST_OF = "|"  # between entrants of which the best one counts


@dataclass(frozen=True, slots=True)
class Scene:
    """A load on a fleet. `traffic`: a workload, or TRACE; `rate`: sessions a second; windows of a trace are
    `window_step` requests apart."""

    name: str
    traffic: str
    rate: float
    requests: int
    engines: int = 4
    hardware: str = L40
    cache_tokens: int | None = None
    slow: float = 1.0
    """How many times slower engine 0 is."""
    degrade: tuple[float, float, float] | None = None
    """Engine 0 is so many times slower from one second to another."""
    window_step: int = 0


SCENES: tuple[Scene, ...] = (
    Scene("gsp 7", "gsp", 7, 4096),
    Scene("gsp 11", "gsp", 11, 4096),
    Scene("gsp 13.4", "gsp", 13.4, 4096),
    Scene("gsp 14.5", "gsp", 14.5, 4096),
    Scene("gsp half kv 9", "gsp", 9, 4096, cache_tokens=75_000),
    Scene("gsp rotating 7", "gsp_rotating", 7, 4096),
    Scene("gsp rotating 12", "gsp_rotating", 12, 4096),
    Scene("hot 11", "hot", 11, 4096),
    Scene("gsp slow 10", "gsp", 10, 4096, slow=2.0),
    Scene("gsp degrade 10", "gsp", 10, 4096, degrade=(2.5, 150.0, 210.0)),
    Scene("gsp M=2 6", "gsp", 6, 2048, engines=2),
    Scene("gsp M=8 24", "gsp", 24, 8192, engines=8),
    Scene("heavy 30", "heavy", 30, 8192, hardware=H100),
    Scene("heavy 57", "heavy", 57, 8192, hardware=H100),
    Scene("chat 0.7", "chat", 0.7, 8192),
    Scene("chat 1.4", "chat", 1.4, 8192),
    Scene("chat slow 0.8", "chat", 0.8, 8192, slow=2.0),
    Scene("chat degrade 0.8", "chat", 0.8, 8192, degrade=(2.5, 800.0, 860.0)),
    Scene("chat_long 1.0", "chat_long", 1.0, 8192, hardware=H100),
    Scene("chat_long 1.6", "chat_long", 1.6, 8192, hardware=H100),
    Scene("chat_long 2.0", "chat_long", 2.0, 8192, hardware=H100),
    Scene("trace x4 2.0", TRACE, 2.0, 4000, hardware=H100, window_step=4000),
    Scene("trace x4 3.2", TRACE, 3.2, 4000, hardware=H100, window_step=4000),
    Scene("trace x4 3.9", TRACE, 3.9, 4000, hardware=H100, window_step=4000),
    Scene("trace x16 14", TRACE, 14, 8000, engines=16, hardware=H100, window_step=2000),
    Scene("trace x16 18", TRACE, 18, 8000, engines=16, hardware=H100, window_step=2000),
    Scene("gsp M=16 46", "gsp", 46, 16384, engines=16),
    Scene("gsp M=32 90", "gsp", 90, 16384, engines=32),
    Scene("agents 0.4", "agents", 0.4, 4096),
    Scene("agents M=8 3", "agents", 3, 8192, engines=8, hardware=H100),
    Scene("longdoc 1.5", "longdoc", 1.5, 2048),
)
CHATS = ("chat 0.7", "chat 1.4", "chat_long 1.0", "chat_long 1.6", "chat_long 2.0")
OWN = ("agents 0.4", "agents M=8 3", "longdoc 1.5")  # not in the study: prompts that all engines should hold
# The study's 27.
ROUTED_SCENES = tuple(scene.name for scene in SCENES if scene.cache_tokens is None and scene.name not in OWN)
JOINT_SCENES = (
    *("gsp 7", "gsp 11", "gsp 13.4", "gsp 14.5", "gsp half kv 9", "gsp rotating 12", "hot 11", "gsp slow 10"),
    *("gsp M=16 46", "chat 1.4", "chat_long 1.6", "chat_long 2.0", "trace x4 3.2", "trace x4 3.9"),
    *("trace x16 14", "trace x16 18", "heavy 57"),
)
KNOWN_ERROR = ("gsp 11", "gsp 13.4")  # where what the router believes of the caches is bounded
TOLD_WRONG = (*KNOWN_ERROR, "gsp half kv 9")


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy over engines of one order; `told`, `unstreamed`: as in `FleetSpec`."""

    policy: str
    order: str = "lru"
    options: Mapping[str, object] = field(default_factory=dict)
    told: float = 1.0
    unstreamed: float = 0.0

    @property
    def label(self) -> str:
        """All of the above in one word, under which runs are stored."""
        told = f" told={self.told:g}" if self.told != 1.0 else ""
        unstreamed = f" unstreamed={self.unstreamed:g}" if self.unstreamed else ""
        options = "".join(f" {name}={value}" for name, value in sorted(self.options.items()))
        return f"{self.policy}+{self.order}{told}{unstreamed}{options}"


ENTRANTS: Mapping[str, Entrant] = {
    **{policy: Entrant(policy) for policy in TABLE},
    "cache_aware .35": Entrant("cache_aware", options={"cache_threshold": 0.35}),  # half of a gsp prompt is shared
    "lbgr told 3": Entrant("lbgr", told=3.0),
    "lbgr unstreamed": Entrant("lbgr", unstreamed=1.0),
    "joint": Entrant("lbgr", "rlt_gix"),
    "joint told 3": Entrant("lbgr", "rlt_gix", told=3.0),
    "joint told 1/3": Entrant("lbgr", "rlt_gix", told=0.33),
    "joint unguarded": Entrant("lbgr", "gix"),
}
CONTENDERS = ("lmetric", "smetric", "preble", "cache_aware .35")  # each is the best baseline somewhere
BASELINES = (*(policy for policy in TABLE if policy not in ("lbgr", "lbgr_paper")), "cache_aware .35")


@dataclass(frozen=True, slots=True)
class Check:
    """`column` of `mine`, divided by that of the best of `others` if there are any, has a bound."""

    source: str
    scene: str
    mine: str
    others: tuple[str, ...]
    bound: float
    column: str = "mean_s"
    least: bool = False
    """The bound is a lower one."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The geometric mean of such quotients over `scenes`, or the `worst` of them, is at most `bound`.

    A bound of None only reports it. Of `others`, those count that have run.
    """

    source: str
    scenes: tuple[str, ...]
    mine: str
    others: tuple[str, ...]
    column: str
    bound: float | None
    worst: bool = False


def mean_checks(source: str, scenes: Sequence[str], mine: str, others: Mapping[str, float]) -> Iterator[Check]:
    """Checks of the mean latency, by the names of the entrants that `mine` is compared with."""
    for scene in scenes:
        for names, bound in others.items():
            yield Check(source, scene, mine, tuple(names.split(BEST_OF)), bound)


ROUTING, JOINT, OURS = "routing", "joint", "own"
CHECKS: tuple[Check, ...] = tuple(
    chain(
        mean_checks(ROUTING, ["gsp 7"], "lbgr", {"lmetric": 0.92, "preble": 0.85}),
        mean_checks(ROUTING, ["gsp 11"], "lbgr", {"preble": 0.92, "lmetric": 0.45, "smetric": 0.60}),
        mean_checks(ROUTING, ["gsp 13.4"], "lbgr", {"preble": 1.03, "lmetric": 0.20}),
        mean_checks(ROUTING, ["gsp 14.5"], "lbgr", {"preble": 1.15}),
        (Check(ROUTING, "gsp 14.5", "lbgr", ("preble",), 0.96, "throughput_rps", least=True),),
        (Check(ROUTING, "gsp 14.5", "lbgr", ("lmetric",), 1.25, "throughput_rps", least=True),),
        mean_checks(ROUTING, ["gsp rotating 12"], "lbgr", {"cache_aware .35": 1.10, "preble": 1.0}),
        mean_checks(ROUTING, ["hot 11"], "lbgr", {"smetric": 0.90, "preble": 0.88}),
        mean_checks(ROUTING, ["gsp slow 10"], "lbgr", {"preble": 0.82, "lmetric": 0.35}),
        mean_checks(ROUTING, ["gsp degrade 10"], "lbgr", {"preble": 0.90, "lmetric": 0.60}),
        mean_checks(ROUTING, ["gsp M=16 46"], "lbgr", {"preble": 0.75, "lmetric": 0.20}),
        mean_checks(ROUTING, ["gsp M=32 90"], "lbgr", {"preble": 0.70}),
        mean_checks(ROUTING, CHATS, "lbgr", {"lmetric|smetric|preble": 1.02}),
        mean_checks(ROUTING, ["chat slow 0.8"], "lbgr", {"lmetric": 0.98, "preble": 0.75}),
        mean_checks(ROUTING, ["trace x4 2.0"], "lbgr", {"lmetric": 0.98}),
        mean_checks(ROUTING, ["trace x4 3.2"], "lbgr", {"lmetric": 0.95}),
        mean_checks(ROUTING, ["trace x4 3.9"], "lbgr", {"lmetric": 0.99}),
        mean_checks(ROUTING, ["trace x16 14"], "lbgr", {"lmetric|smetric": 0.95}),
        mean_checks(ROUTING, ["trace x16 18"], "lbgr", {"lmetric|smetric": 0.92}),
        mean_checks(ROUTING, ["heavy 30", "heavy 57"], "lbgr", {"lmetric|smetric|preble": 1.02}),
        mean_checks(ROUTING, KNOWN_ERROR, "lbgr told 3", {"lbgr": 1.10}),
        mean_checks(ROUTING, ROUTED_SCENES, "lbgr unstreamed", {"lbgr": 1.08}),
        mean_checks(JOINT, ["gsp 7"], "joint", {"lbgr": 0.85}),
        mean_checks(JOINT, ["gsp 11"], "joint", {"lbgr": 0.75}),
        mean_checks(JOINT, ["gsp 13.4"], "joint", {"lbgr": 0.65}),
        mean_checks(JOINT, ["gsp 14.5"], "joint", {"lbgr": 0.50}),
        mean_checks(JOINT, ["gsp half kv 9"], "joint", {"lbgr": 0.66}),
        mean_checks(JOINT, ["gsp slow 10"], "joint", {"lbgr": 0.68}),
        mean_checks(JOINT, ["hot 11"], "joint", {"lbgr": 0.83}),
        mean_checks(JOINT, ["gsp M=16 46"], "joint", {"lbgr": 0.92}),
        mean_checks(JOINT, ["gsp rotating 12"], "joint", {"lbgr": 1.00}),
        mean_checks(JOINT, [*CHATS, "trace x4 3.2", "trace x16 14", "heavy 30", "heavy 57"], "joint", {"lbgr": 1.02}),
        mean_checks(JOINT, ["trace x4 3.9", "trace x16 18"], "joint", {"lbgr": 1.00}),
        mean_checks(JOINT, TOLD_WRONG, "joint told 3", {"joint": 1.06}),
        mean_checks(JOINT, TOLD_WRONG, "joint told 1/3", {"joint": 1.06}),
        (Check(JOINT, scene, "joint", (), 0.006, "hit_error") for scene in KNOWN_ERROR),
        (Check(JOINT, "chat 1.4", "joint", (), 0.10, "hit_error"),),
        mean_checks(OURS, OWN, "lbgr", {"lmetric|smetric|preble": 1.02}),
        mean_checks(OURS, OWN, "joint", {"lbgr": 1.02}),
    )
)
AGGREGATES = (
    Aggregate(ROUTING, ROUTED_SCENES, "lbgr", BASELINES, "mean_s", 0.96),
    Aggregate(ROUTING, ROUTED_SCENES, "lbgr", BASELINES, "mean_s", 1.15, worst=True),
    Aggregate(ROUTING, ROUTED_SCENES, "lbgr", BASELINES, "p99_s", 1.06),
    Aggregate(ROUTING, ROUTED_SCENES, "lbgr", BASELINES, "ttft_mean_s", 1.06),
    *(Aggregate(ROUTING, ROUTED_SCENES, name, BASELINES, "mean_s", None) for name in ("lbgr_paper", *CONTENDERS)),
    Aggregate(JOINT, JOINT_SCENES, "joint", ("lbgr",), "mean_s", 0.83),
    Aggregate(JOINT, JOINT_SCENES, "joint", ("lbgr",), "mean_s", 1.03, worst=True),
    Aggregate(JOINT, JOINT_SCENES, "joint", ("lbgr",), "p95_s", 0.85),
    Aggregate(JOINT, JOINT_SCENES, "joint", ("lbgr",), "ttft_mean_s", 0.82),
    # Both ways, so that they are the same: the guard never took over.
    Aggregate(JOINT, JOINT_SCENES, "joint", ("joint unguarded",), "mean_s", 1.0, worst=True),
    Aggregate(JOINT, JOINT_SCENES, "joint unguarded", ("joint",), "mean_s", 1.0, worst=True),
)
