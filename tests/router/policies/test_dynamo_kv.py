import pytest

from router.config import configure
from router.policies.base import RoutingContext
from router.policies.dynamo_kv import DynamoKv
from router.types import Candidate, EngineId, EngineInfo, EngineView
from tests.support.virtual_fleet import ask_for


def scored(prompt: float, *engines: tuple[float, float, float], **options: float) -> list[float]:
    """engines: (tokens queued, tokens in use, tokens cached)."""
    candidates = [
        Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), 1, 0, queued, in_use), hit)
        for n, (queued, in_use, hit) in enumerate(engines)
    ]
    policy = DynamoKv(configure(**options).policies.dynamo_kv)
    return [s.total for s in policy.choose(RoutingContext(ask_for(1), prompt, 64.0, 0.0, 0.0), candidates)]


def test_the_example_of_dynamos_guide() -> None:
    """Blocks to prefill 8, 5, 2 and blocks in use 10, 5, 9 cost 18, 10, 11. (That table has fewer in use than the
    prompt is long, since Dynamo counts shared blocks once: hence the negative tokens here.)"""
    block, prompt = 64.0, 640.0
    rows = [(8.0, 10.0), (5.0, 5.0), (2.0, 9.0)]
    engines = [(0.0, decode * block - prompt, prompt - prefill * block) for prefill, decode in rows]
    assert scored(prompt, *engines) == [18.0, 10.0, 11.0]


def test_queued_prefill_counts_twice_over_until_its_first_token() -> None:
    """320 tokens queued are 5 blocks to prefill and 5 in use; once prefilled, only in use."""
    before, after = scored(640.0, (320.0, 320.0, 0.0), (0.0, 320.0, 0.0))
    assert (before, after) == (10 + 5 + 10 + 5, 10 + 10 + 5)


def test_the_weight_is_an_option() -> None:
    light, heavy = (scored(640.0, (0.0, 0.0, 320.0), dynamo_kv_overlap_score_weight=w)[0] for w in (0.0, 2.0))
    assert (light, heavy) == (10.0, 20.0)


@pytest.mark.parametrize("block", [16, 64, 4096])
def test_the_size_of_a_block_changes_no_order(block: int) -> None:
    engines = [(0.0, 5000.0, 0.0), (900.0, 900.0, 600.0), (0.0, 4000.0, 320.0)]
    scores = scored(640.0, *engines, prefix_block_tokens=block)
    assert sorted(range(3), key=scores.__getitem__) == [1, 2, 0]
