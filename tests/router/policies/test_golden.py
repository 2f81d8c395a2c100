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
    ("lbgr", "lru"): ("4ae9cb5fb7f4", 0.642745, 262144),
    ("lbgr", "rlt_gix"): ("ac81be123778", 0.657351, 260672),
    ("lbgr", "lru+rlt_gix"): ("5f2bc371fa8e", 0.647367, 258240),
    ("lbgr_paper", "lru"): ("c43173fc2407", 1.809153, 201536),
    ("lbgr_paper", "rlt_gix"): ("c941ca70f220", 1.509103, 210624),
    ("lbgr_paper", "lru+rlt_gix"): ("8bbfaacf7748", 1.843076, 202368),
    ("random", "lru"): ("7e8a57b98cff", 0.846236, 191424),
    ("random", "rlt_gix"): ("7e8a57b98cff", 0.846414, 193664),
    ("random", "lru+rlt_gix"): ("7e8a57b98cff", 0.861388, 191168),
    ("round_robin", "lru"): ("fcf1ef2b8101", 0.87709, 177536),
    ("round_robin", "rlt_gix"): ("fcf1ef2b8101", 0.864902, 181312),
    ("round_robin", "lru+rlt_gix"): ("fcf1ef2b8101", 0.872241, 180032),
    ("least_loaded", "lru"): ("6efc467754f5", 0.792345, 182144),
    ("least_loaded", "rlt_gix"): ("3cc9103c0e86", 0.777091, 187904),
    ("least_loaded", "lru+rlt_gix"): ("3dff72dce047", 0.76269, 189440),
    ("power_of_two", "lru"): ("4fa296d56526", 0.795188, 187072),
    ("power_of_two", "rlt_gix"): ("f7ae2ad9f8ec", 0.764552, 195328),
    ("power_of_two", "lru+rlt_gix"): ("a18ebabc356d", 0.780667, 186752),
    ("consistent_hash", "lru"): ("21e732c500a8", 0.697833, 246784),
    ("consistent_hash", "rlt_gix"): ("eead641f6960", 0.696586, 247808),
    ("consistent_hash", "lru+rlt_gix"): ("21e732c500a8", 0.697386, 247104),
    ("cache_aware", "lru"): ("8e4108079db5", 0.747723, 273536),
    ("cache_aware", "rlt_gix"): ("8e4108079db5", 0.749317, 273408),
    ("cache_aware", "lru+rlt_gix"): ("8e4108079db5", 0.748164, 273472),
    ("lmetric", "lru"): ("06e1538b63f9", 0.653215, 256192),
    ("lmetric", "rlt_gix"): ("7e1246a481a5", 0.664208, 254016),
    ("lmetric", "lru+rlt_gix"): ("1769d879aae0", 0.65961, 255872),
    ("smetric", "lru"): ("f48682c702b7", 0.682658, 262784),
    ("smetric", "rlt_gix"): ("d331c2c56878", 0.661795, 265792),
    ("smetric", "lru+rlt_gix"): ("d4bcdd2a9c5c", 0.666625, 263360),
    ("dynamo_kv", "lru"): ("9a9f335a60f2", 0.704525, 218560),
    ("dynamo_kv", "rlt_gix"): ("7e4f18aa85d1", 0.701447, 222720),
    ("dynamo_kv", "lru+rlt_gix"): ("5ff5c616c3c5", 0.726776, 226944),
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
