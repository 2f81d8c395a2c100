import random
from collections.abc import Iterator

import pytest

from router.policies.lbgr.latency import PRIOR, Coefficients, LatencyModel
from router.saved_state import SavedFields

PER_CASE = [
    Coefficients(9.0, 135.0, 2.0, 25.0, 0.1, 0.2, 4.0, 0.7),  # near the prior: a GPU
    Coefficients(
        80.0, 1000.0, 20.0, 12.0, 5.0, 1.0, 90.0, 0.7
    ),  # prefill ten times slower, decoding faster: two CPU cores
    Coefficients(1.0, 10.0, 0.1, 2.0, 0.02, 0.01, 0.2, 0.7),  # ten times faster
]


def prefill_of(c: Coefficients, requests: float, miss: float, hit: float) -> float:
    return c.a * requests + c.b * miss + c.al * hit + c.at * spread(miss, hit)


def spread(miss: float, hit: float) -> float:
    return miss * (hit + miss / 2)


def prompts(seed: int, count: int, longest: int = 200) -> Iterator[tuple[int, float, float, int, float, float]]:
    """(requests, miss, hit, output, others, context) of requests of every kind."""
    rng = random.Random(seed)
    for _ in range(count):
        lengths = rng.uniform(0.05, 2.0), rng.uniform(0, 2.0), rng.randrange(8, longest)
        yield rng.choice((1, 1, 2)), *lengths, rng.uniform(0, 12), rng.uniform(0, 20)


@pytest.mark.parametrize("truth", PER_CASE)
def test_streamed_requests_teach_prefill_and_decoding_apart(truth: Coefficients) -> None:
    model = LatencyModel()
    for requests, miss, hit, output, others, context in prompts(1, 60):
        model.learn_prefill(requests, miss, hit, spread(miss, hit), prefill_of(truth, requests, miss, hit))
        token_ms = truth.g0 + truth.g1 * others + truth.g2 * context
        model.learn_decode(output, others, context, (output - 1) * token_ms, 0.0, 0.0)
    assert model.prefill_ms(1, 1.0, 0.5, spread(1.0, 0.5)) == pytest.approx(prefill_of(truth, 1, 1.0, 0.5), rel=0.1)
    assert model.prefill_ms(1, 0.0, 2.0, 0.0) < model.prefill_ms(1, 2.0, 0.0, 2.0) / 3
    assert model.decode_ms(100, 4, 5) == pytest.approx(100 * (truth.g0 + truth.g1 * 4 + truth.g2 * 5), rel=0.1)


WHOLE = [
    (PER_CASE[0], 0.2),
    (Coefficients(80.0, 300.0, 6.0, 15.0, 2.0, 0.5, 15.0, 0.7), 0.3),  # prefill three times slower, decoding faster
    (PER_CASE[2], 0.2),
]


@pytest.mark.parametrize(("truth", "error"), WHOLE)
def test_whole_requests_teach_both_lines(truth: Coefficients, error: float) -> None:
    """Seen as one number, they never overrule the prior's ratio of the two altogether: four times off, it leaves a
    mark. Given less trust, it lets a queue pass for slow decoding (below)."""
    model = LatencyModel()
    for requests, miss, hit, output, others, context in prompts(2, 200, longest=40):
        token_ms = truth.g0 + truth.g1 * others + truth.g2 * context
        prefill_ms = prefill_of(truth, requests, miss, hit)
        model.learn_whole(
            requests, miss, hit, spread(miss, hit), output, others, context, prefill_ms + output * token_ms
        )
    assert model.prefill_ms(1, 1.5, 0.5, spread(1.5, 0.5)) == pytest.approx(prefill_of(truth, 1, 1.5, 0.5), rel=error)
    assert model.decode_ms(100, 4, 5) == pytest.approx(100 * (truth.g0 + truth.g1 * 4 + truth.g2 * 5), rel=error)


def test_mixed_traffic_shares_the_coefficients() -> None:
    truth = PER_CASE[1]
    model = LatencyModel()
    for n, (requests, miss, hit, output, others, context) in enumerate(prompts(3, 200)):
        prefill_ms = prefill_of(truth, requests, miss, hit)
        decode_ms = output * (truth.g0 + truth.g1 * others + truth.g2 * context)
        if n % 2:
            model.learn_whole(requests, miss, hit, spread(miss, hit), output, others, context, prefill_ms + decode_ms)
        else:
            model.learn_prefill(requests, miss, hit, spread(miss, hit), prefill_ms)
    assert model.coefficients.b == pytest.approx(truth.b, rel=0.1)
    assert model.coefficients.g0 + model.coefficients.g1 * 4 == pytest.approx(truth.g0 + truth.g1 * 4, rel=0.15)


def test_short_answers_say_nothing_of_decoding() -> None:
    model = LatencyModel()
    model.learn_decode(3, 0, 0, 10_000.0, 0.0, 0.0)
    assert (model.samples, model.coefficients) == (0, PRIOR)


def test_seconds_and_tokens_are_the_same_line() -> None:
    c = Coefficients(10.0, 100.0, 1.0, 20.0, 0.2, 0.1, 3.3, 0.7)
    s = c.per_token_s()
    assert s.a + s.b * 2000 + s.al * 500 == pytest.approx((c.a + c.b * 2 + c.al * 0.5) / 1000)
    assert s.at * 2000 * (500 + 1000) == pytest.approx(c.at * spread(2.0, 0.5) / 1000)
    assert s.g0 + s.g1 * 3 + s.g2 * 4000 == pytest.approx((c.g0 + c.g1 * 3 + c.g2 * 4) / 1000)


def test_long_prompts_show_what_attention_costs() -> None:
    """Prompts up to 60,000 tokens on a machine where it doubles the cost of a token at 20,000: told apart from b."""
    truth = Coefficients(10.0, 100.0, 1.0, 20.0, 0.2, 0.1, 5.0, 0.7)
    model, rng = LatencyModel(), random.Random(5)
    for _ in range(300):
        miss, hit = rng.choice([rng.uniform(0.1, 4), rng.uniform(5, 60)]), rng.choice([0.0, rng.uniform(0, 40)])
        model.learn_prefill(1, miss, hit, spread(miss, hit), prefill_of(truth, 1, miss, hit) * rng.uniform(0.9, 1.1))
    for miss, hit in ((1.0, 0.0), (40.0, 0.0), (2.0, 38.0)):
        assert model.prefill_ms(1, miss, hit, spread(miss, hit)) == pytest.approx(
            prefill_of(truth, 1, miss, hit), rel=0.1
        )


def test_full_steps_of_a_busy_engine_do_not_hide_the_cost_of_tokens() -> None:
    """Chunked prefill with 2,048 tokens a step and a queue that never empties: first tokens come a step or more apart,
    whatever the prompts, at 25 ms a step and 135 ms a thousand tokens."""
    model, rng = LatencyModel(), random.Random(7)
    carried = 0.0  # thousands of tokens of the next prompts that the last step has done already
    for _ in range(1500):
        miss = rng.choice((0.25, 0.5, 1.0, 2.0, 4.0))
        steps = 0
        while carried < miss:
            carried += 2.048
            steps += 1
        carried -= miss
        if steps:
            model.learn_prefill(1, miss, miss, spread(miss, miss), steps * (25 + 135 * 2.048))
    assert 40 < model.coefficients.b < 200
    assert model.prefill_ms(1, 8.0, 0.0, 32.0) > 2 * model.prefill_ms(1, 0.5, 0.0, 0.125)


def test_prefill_beside_is_told_apart_from_decoding_and_stretches_it() -> None:
    """Steps are shared: an answer waits for six tenths of the prefill beside it, which takes a third of its time."""
    model, rng = LatencyModel(), random.Random(11)
    for _ in range(600):
        output, others = rng.randrange(50, 400), rng.uniform(0, 12)
        alone_ms = (output - 1) * (25 + 0.3 * others)
        beside_ms = rng.uniform(0.0, 1.0) * alone_ms
        model.learn_decode(output, others, 0.0, alone_ms + 0.6 * beside_ms, beside_ms, 0.0)
    assert model.coefficients.gp == pytest.approx(0.6, abs=0.05)
    assert model.decode_ms(100, 4, 0) == pytest.approx(100 * (25 + 0.3 * 4), rel=0.05)
    assert model.stretch(0.0) == pytest.approx(1 + 0.6 * 0.5, rel=0.1)  # alone a half as much prefill as decoding


def test_decoding_is_stretched_tenfold_at_most() -> None:
    model = LatencyModel()
    for _ in range(50):
        model.learn_decode(100, 0.0, 0.0, 1000.0, 5000.0, 0.0)
    assert model.stretch(0.0) == pytest.approx(10.0)


def test_a_queue_of_whole_requests_is_not_taken_for_slow_decoding() -> None:
    """Answers of four tokens behind queues of any length, context growing with the queue: the queue is the cause."""
    truth, model, rng = PER_CASE[0], LatencyModel(), random.Random(13)
    for _ in range(800):
        queue = rng.randrange(0, 12)
        miss, hit = 2.0 * (1 + queue), 1.0
        pairs = 3.0 * (1 + queue)
        y_ms = truth.a * (1 + queue) + truth.b * miss + truth.at * pairs + 4 * (truth.g0 + truth.g2 * 3.0 * queue)
        model.learn_whole(1 + queue, miss, hit, pairs, 4, queue, 3.0 * queue, y_ms * rng.uniform(0.8, 1.2))
    assert model.coefficients.b * 2 + model.coefficients.at * 3 == pytest.approx(truth.b * 2 + truth.at * 3, rel=0.25)


def test_what_a_crowd_has_shown_is_forgotten_in_the_quiet_after_it() -> None:
    model = LatencyModel()
    for number in range(600):
        model.learn_decode(100, 50.0, 100.0, 20_000.0, 18_000.0, number * 0.1)
    assert model.stretch(60.0) > 2.5
    assert model.stretch(90.0) == pytest.approx(1 / (1 - 0.5 * (1 - 1 / model.stretch(60.0))), rel=0.01)
    for number in range(20):
        model.learn_decode(100, 0.0, 1.0, 1000.0, 0.0, 90.0 + 1.5 * number)
    assert model.stretch(120.0) < 1.25
    assert model.stretch(1e6) == pytest.approx(1.0)


def test_steady_traffic_keeps_what_it_shows() -> None:
    model = LatencyModel()
    for number in range(400):
        model.learn_decode(100, 2.0, 1.0, 1500.0, 500.0, number * 2.0)
    assert model.stretch(800.0) == pytest.approx(1 / (1 - model.coefficients.gp / 3), rel=0.05)


def test_a_restart_keeps_what_was_left_at_the_dump() -> None:
    model, restored = LatencyModel(), LatencyModel()
    for number in range(400):
        model.learn_decode(100, 2.0, 1.0, 1500.0, 500.0, number * 0.1)
    restored.load(SavedFields(model.dump(70.0), "latency"), 500.0)
    assert restored.stretch(500.0) == pytest.approx(model.stretch(70.0), rel=1e-3)
