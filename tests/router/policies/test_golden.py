"""What every policy makes of one small stored trace, decision by decision: a change here is a change of the policy,
meant or not.

The trace has shared prefixes, conversations, unstreamed requests and clients that leave; of the four engines one is
slow, one dies and comes back. After a change that is meant, `python -m tests.router.policies.test_golden` prints the
new numbers.
"""

from hashlib import blake2b
from pathlib import Path

import pytest

from router.policies.table import TABLE
from router.sim.fleet.scenario import FleetSpec, Run
from router.sim.fleet.simulation import simulate
from router.sim.fleet.traffic import replay
from router.sim.trace import TraceFile

TRACE = Path(__file__).parents[2] / "data" / "golden_trace.jsonl"
FLEET = FleetSpec(4, ("l40-8b",), 64, cache_tokens=12_000, slow=((2, 1.6),), fail=((1, 9.0),), join=((1, 14.0),))
GOLDEN = {
    ("lbgr", "lru"): ("77d25f0ee338", 0.639771, 263488),
    ("lbgr", "rlt_gix"): ("74efdda2a1e8", 0.658408, 260224),
    ("lbgr", "lru+rlt_gix"): ("d467222e5fe3", 0.64847, 258240),
    ("lbgr_paper", "lru"): ("66ea32e17fbb", 1.804091, 207936),
    ("lbgr_paper", "rlt_gix"): ("fa583fa8f5c6", 1.75792, 208640),
    ("lbgr_paper", "lru+rlt_gix"): ("156dfa8a2c0e", 1.750401, 206656),
    ("random", "lru"): ("1eb649a454d9", 0.839509, 187776),
    ("random", "rlt_gix"): ("1eb649a454d9", 0.831575, 194432),
    ("random", "lru+rlt_gix"): ("1eb649a454d9", 0.842128, 190912),
    ("round_robin", "lru"): ("c9e7c14e6e69", 0.897359, 169024),
    ("round_robin", "rlt_gix"): ("c9e7c14e6e69", 0.869321, 176896),
    ("round_robin", "lru+rlt_gix"): ("c9e7c14e6e69", 0.88987, 173888),
    ("least_loaded", "lru"): ("53ed1c448c90", 0.783255, 182400),
    ("least_loaded", "rlt_gix"): ("aa8e8dd4cc34", 0.762385, 192320),
    ("least_loaded", "lru+rlt_gix"): ("90b29d15fcde", 0.787989, 182016),
    ("power_of_two", "lru"): ("605f368f3cf5", 0.781046, 186368),
    ("power_of_two", "rlt_gix"): ("e6a9b4604dbe", 0.770601, 188160),
    ("power_of_two", "lru+rlt_gix"): ("b98bc3c72eae", 0.77164, 183808),
    ("consistent_hash", "lru"): ("88b2108280fb", 0.694297, 246592),
    ("consistent_hash", "rlt_gix"): ("108e1ea855bd", 0.692761, 248128),
    ("consistent_hash", "lru+rlt_gix"): ("0b71827eb949", 0.693921, 247232),
    ("cache_aware", "lru"): ("8e4108079db5", 0.747723, 273536),
    ("cache_aware", "rlt_gix"): ("8e4108079db5", 0.749317, 273408),
    ("cache_aware", "lru+rlt_gix"): ("8e4108079db5", 0.748164, 273472),
    ("lmetric", "lru"): ("06e1538b63f9", 0.653215, 256192),
    ("lmetric", "rlt_gix"): ("7e1246a481a5", 0.664208, 254016),
    ("lmetric", "lru+rlt_gix"): ("2efd7ee011e2", 0.655561, 254400),
    ("smetric", "lru"): ("bd78b9a3b40d", 0.677091, 262400),
    ("smetric", "rlt_gix"): ("e75d8d4b2c78", 0.664946, 265280),
    ("smetric", "lru+rlt_gix"): ("a9244a335f7e", 0.669377, 263360),
    ("dynamo_kv", "lru"): ("a894594d9368", 0.701029, 216448),
    ("dynamo_kv", "rlt_gix"): ("b68182476a09", 0.69772, 218816),
    ("dynamo_kv", "lru+rlt_gix"): ("5eb71626b833", 0.727733, 221376),
    ("preble", "lru"): ("0e2b882dc232", 0.676876, 263360),
    ("preble", "rlt_gix"): ("0dda513ee543", 0.659864, 260672),
    ("preble", "lru+rlt_gix"): ("fde9c23f7e56", 0.674506, 261440),
}


def outcome(policy: str, order: str) -> tuple[str, float, int]:
    """(hash of the engines chosen, in turn; mean latency, seconds; prompt tokens found cached)."""
    traffic = replay(TraceFile(str(TRACE)), skip=0, requests=None, rate=None, scale=1.0, spread=False)
    chosen: list[str] = []
    played = simulate(
        Run(traffic, FLEET, policy, order, seed=5), on_decision=lambda decision: chosen.append(decision.engine)
    )
    latencies = [served.done_s - served.arrival_s for served in played.served]
    digest = blake2b(" ".join(chosen).encode(), digest_size=6).hexdigest()
    return digest, round(sum(latencies) / len(latencies), 6), sum(served.cached_tokens for served in played.served)


def test_every_policy_has_its_numbers() -> None:
    assert {policy for policy, _ in GOLDEN} == set(TABLE)


@pytest.mark.parametrize(("policy", "order"), sorted(GOLDEN))
def test_same_as_ever(policy: str, order: str) -> None:
    assert outcome(policy, order) == GOLDEN[policy, order]


if __name__ == "__main__":
    for each in TABLE:
        for kind in ("lru", "rlt_gix", "lru+rlt_gix"):
            print(f"    {(each, kind)}: {outcome(each, kind)},".replace("'", '"'))
