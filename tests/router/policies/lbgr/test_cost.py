from router.policies.lbgr.cost import queued_tokens, running_load


def test_only_what_fits_the_cache_runs_at_once() -> None:
    assert running_load(6, 500.0, 1000.0) == (6, 500.0)
    assert running_load(6, 3000.0, 1000.0) == (2.0, 1000.0)


def test_the_head_of_the_queue_counts_less_the_longer_it_is_served() -> None:
    assert queued_tokens(900.0, 300.0, 0.0) == 900.0
    assert queued_tokens(900.0, 300.0, 200.0) == 700.0
    assert queued_tokens(900.0, 300.0, 8900.0) == 600.0  # never more than itself
    assert queued_tokens(900.0, 300.0, -50.0) == 900.0  # a clock that ran backwards
    assert queued_tokens(299.9, 300.0, 8900.0) == 0.0  # sums of floats drift
