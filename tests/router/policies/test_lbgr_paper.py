import math
import random
from typing import Any

import pytest

from router.config import configure
from router.core.router import Router
from router.policies.base import RoutingContext
from router.policies.lbgr_paper import LbgrPaper, Residual
from router.types import Candidate, Ending, EngineId, EngineInfo, EngineView, Outcome
from tests.support.virtual_fleet import VirtualEngine, answered, ask_for, mean_s, router_with, shared_prefixes, simulate

E0 = EngineId("e0")


def load_ms(router: Router, engine: EngineId = E0) -> object:
    return router.describe(engine)["load_ms"]


def test_worked_example() -> None:
    """1000 tokens of which 400 are cached, 50 expected: .01 * 400 + .1 * 600 + 20 * 50 = 1064 ms of service. 640 tokens
    were sent 45 ms ago, two decays of 31/32: .1 * 640 + 20 * 64 = 1344 ms, of which 1261.3125 are left."""
    options: dict[str, Any] = {
        "lbgr_paper_cached_ms_per_token": 0.01,
        "lbgr_paper_miss_ms_per_token": 0.1,
        "lbgr_paper_output_ms_per_token": 20.0,
    }
    router = router_with(1, "lbgr_paper", **options)
    router.route(ask_for(*range(10)), 1.0)
    view = EngineView(E0, EngineInfo(), 1, 1)
    (score,) = router._experiment.lead.choose(
        RoutingContext(ask_for(1), 1000.0, 50.0, 1.045, 0.0), [Candidate(view, 400.0)]
    )
    assert score.terms == pytest.approx({"service": 1.064, "queue": 1.2613125, "residual": 0.0})
    assert score.total == score.predicted_s == pytest.approx(2.3253125)


def test_a_load_decays_by_the_interval_and_leaves_with_its_request() -> None:
    router = router_with(1, "lbgr_paper")
    first, second = router.route(ask_for(*range(10)), 0.0), router.route(ask_for(20), 0.0)
    assert load_ms(router) == 4.0 * 640 + 4.0 * 64
    router.complete(second, Outcome(Ending.CANCELLED, 0.2))
    assert load_ms(router) == pytest.approx(2560 * (31 / 32) ** 10, abs=0.001)
    router.complete(first, answered(1.0))
    assert load_ms(router) == 0.0


def test_theta_is_the_least_squares_of_the_residuals() -> None:
    rng, truth = random.Random(1), (50.0, -3.0, 7.0, 0.5)
    residual = Residual(4, forgetting=0.95, covariance=1e6)
    for _ in range(200):
        phi = (1.0, rng.random(), rng.random(), 5 * rng.random())
        residual.learn_one(phi, sum(a * b for a, b in zip(truth, phi, strict=True)))
    assert residual.theta == pytest.approx(truth, abs=1e-3)


def test_forgetting_follows_a_change() -> None:
    residual = Residual(1, forgetting=0.95, covariance=1e6)
    for y_ms in [100.0] * 200 + [300.0] * 20:
        residual.learn_one((1.0,), y_ms)
    assert residual.theta[0] == pytest.approx(300 - 200 * 0.95**20, rel=1e-3)


def test_directions_without_samples_do_not_overflow() -> None:
    residual = Residual(4, forgetting=0.95, covariance=1e6)
    for n in range(30_000):
        residual.learn_one((1.0, 0.0, 0.5, 0.0), 80.0 + n % 3)
    assert all(math.isfinite(weight) for weight in residual.theta)
    assert residual.predict_one((1.0, 0.0, 0.5, 0.0)) == pytest.approx(81.0, abs=1.0)


def test_the_residual_learns_what_service_and_queue_leave_open() -> None:
    """Two engines, 64 tokens each time: 256 ms of service by the constants; e0 takes 400 ms, e1 as much as it says."""
    router = router_with(2, "lbgr_paper", lbgr_paper_residual="bias")
    for n in range(40):
        decision = router.route(ask_for(n), 10.0 * n, exclude={EngineId(f"e{n % 2}")})
        took_s = 0.4 if decision.engine == E0 else 0.256
        router.complete(decision, answered(10.0 * n + took_s))
    assert router.describe(E0)["theta_ms"] == pytest.approx([144.0], abs=0.1)
    assert router.describe(EngineId("e1"))["theta_ms"] == pytest.approx([1.0], abs=0.1)  # at least 1 ms in their code
    assert {router.route(ask_for(900 + n), 500.0 + 10 * n).engine for n in range(5)} == {"e1"}


@pytest.mark.parametrize("ending", [ending for ending in Ending if ending is not Ending.OK])
def test_only_answers_teach(ending: Ending) -> None:
    router = router_with(1, "lbgr_paper")
    for n in range(10):
        router.complete(router.route(ask_for(n), float(n)), Outcome(ending, n + 0.9, n + 0.1, 64, 0, 5))
    assert router.describe(E0) | {"theta_ms": [0.0] * 4, "load_ms": 0.0} == router.describe(E0)


def test_a_prediction_is_at_least_a_millisecond() -> None:
    router = router_with(1, "lbgr_paper")
    for n in range(50):
        router.complete(router.route(ask_for(n), float(n)), answered(n + 0.0001))
    assert router.route(ask_for(900), 99.0).predicted_s == 0.001


def test_another_policys_choices_can_be_followed() -> None:
    router, shadow = router_with(2, "least_loaded"), LbgrPaper()
    for n in range(20):
        decision = router.route(ask_for(n), float(n))
        shadow.dispatched(decision)
        released = router._fleet.release(decision.booking, n + 0.5, answered=True)
        assert released is not None
        shadow.learn(decision, released, answered(n + 0.5))
    assert shadow.describe(E0)["load_ms"] == 0.0
    assert shadow.describe(E0)["theta_ms"] != [0.0] * 4


def test_it_herds_where_waits_outlast_its_memory() -> None:
    """With the true cost of a token, 1 ms, on engines that take a second for a prompt: P forgets a queue in .6 s."""

    def run(policy: str, **options: Any) -> float:
        engines = [VirtualEngine(per_miss_s=0.001, token_s=0.0, crowd_s=0.0) for _ in range(4)]
        return mean_s(simulate(router_with(4, policy, **options), engines, shared_prefixes(1, rate=6.0, count=1500)))

    turns = run("round_robin")
    assert run("lbgr_paper", lbgr_paper_miss_ms_per_token=1.0) > 5 * turns
    assert run("lbgr") < turns


def test_the_constants_are_options() -> None:
    fast = configure(lbgr_paper_decay=0.5, lbgr_paper_decay_interval_ms=100.0).policies.lbgr_paper
    policy = LbgrPaper(fast)
    decision = router_with(1, "lbgr_paper").route(ask_for(*range(10)), 0.0)
    policy.dispatched(decision)
    view = EngineView(E0, EngineInfo(), 1, 1)
    (score,) = policy.choose(RoutingContext(ask_for(1), 0.0, 0.0, 0.35, 0.0), [Candidate(view, 0.0)])
    assert score.terms["queue"] == pytest.approx(2.560 / 8)
