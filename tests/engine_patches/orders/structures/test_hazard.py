"""The table of hazards against its definitions, term by term."""

import math
import random

import pytest

from engine_patches.orders.structures.hazard import (
    BIN_OF_AGE,
    BINS,
    DECAY,
    HORIZON,
    STARTS,
    WIDTHS,
    HazardTable,
    gittins,
)

CLASSES = 20


def gittins_by_definition(hazards: list[float]) -> list[float]:
    """max over x >= b of P(reuse in b..x) / E[epochs held in b..x], every x tried."""
    found = []
    for first in range(BINS):
        survival, held, best = 1.0, 0.0, 0.0
        for bin_ in range(first, BINS):
            left = math.exp(-hazards[bin_] * WIDTHS[bin_])
            held += survival * (1 - left) / hazards[bin_]
            survival *= left
            best = max(best, (1 - survival) / held)
        found.append(best)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_index_is_the_best_rate_over_every_stretch(seed: int) -> None:
    chance = random.Random(seed)
    hazards = [math.exp(chance.uniform(-12, 2)) for _ in range(BINS)]
    assert gittins(hazards) == pytest.approx(gittins_by_definition(hazards), rel=1e-9)


def test_the_index_of_falling_hazards_is_the_hazard_and_rising_ones_look_ahead() -> None:
    falling = [2.0**-b for b in range(BINS)]
    assert gittins(falling) == pytest.approx(falling)
    rising = gittins(falling[::-1])
    assert all(index > hazard for index, hazard in zip(rising[:-1], falling[::-1][:-1], strict=True))


def test_bins_cover_every_age_once() -> None:
    assert len(BIN_OF_AGE) == HORIZON == sum(WIDTHS)
    assert [BIN_OF_AGE.index(bin_) for bin_ in range(BINS)] == list(STARTS)


def test_exposure_counts_each_block_and_epoch_half_of_the_first() -> None:
    """Ten blocks of class 3 born in epoch 0 and never used again: in bin b they are exposed for its width."""
    table = HazardTable(CLASSES, epoch_length=100, capacity=1000)
    table.at_risk[0][0][3] = 10
    for _ in range(STARTS[5]):
        table.advance()
    exposure = [0.0] * BINS  # the same with a loop over epochs
    for age in range(STARTS[5]):
        exposure[BIN_OF_AGE[age]] += 5 if age == 0 else 10
        exposure = [DECAY * value for value in exposure]
    assert table._exposure[3 * BINS : 4 * BINS] == pytest.approx(exposure)
    assert sum(table._exposure) == pytest.approx(sum(exposure))


def test_blocks_past_the_horizon_are_in_no_statistics() -> None:
    table = HazardTable(CLASSES, epoch_length=100, capacity=1000)
    table.at_risk[0][0][0] = 10
    for _ in range(HORIZON):
        table.advance()
    assert not any(any(kinds) for groups in table.at_risk for kinds in groups)


def test_hazards_follow_the_formulas_of_the_shrinkage() -> None:
    """One class with 30 reuses in 200 block-epochs of age 0, capacity 1000, epochs of 100, worked by hand:
    lam = 31/1200; g[0] = (30 + 5 lam 16/8.5)/205; level(0) = (30 + 100 lam)/(200 (30 + lam)/201 + 100 lam);
    hazard = (30 + 400 level g)/600."""
    table = HazardTable(CLASSES, epoch_length=100, capacity=1000)
    table.events[0], table._exposure[0] = 30.0, 200.0
    table._pool()
    lam = 31 / 1200
    shape = (30 + 5 * lam * 16 / 8.5) / 205
    level = (30 + 100 * lam) / (200 * (30 + lam) / 201 + 100 * lam)
    hazards = [hazard for c in range(CLASSES) for hazard in table.hazards(c)]
    assert hazards[0] == pytest.approx((30 + 400 * level * shape) / 600)
    # A class without data has the pooled shape at level 1.
    assert hazards[BINS] == pytest.approx(shape)
    assert min(hazards) > 0


def test_levels_are_steps_of_a_factor_one_and_a_half() -> None:
    table = HazardTable(CLASSES, epoch_length=256, capacity=2048)
    chance = random.Random(1)
    table.events[:] = [chance.uniform(0, 50) for _ in table.events]
    table._exposure = [chance.uniform(0, 500) for _ in table._exposure]
    table._pool()
    for c in range(CLASSES):
        expected = gittins_by_definition(table.hazards(c))
        for level, index in zip(table.levels(c), expected, strict=True):
            assert 1.5**level <= index * (1 + 1e-9)
            assert index < 1.5 ** (level + 1) * (1 + 1e-9)


def test_levels_are_those_of_the_end_of_the_epoch_whenever_they_are_asked_for() -> None:
    early, late = (HazardTable(CLASSES, epoch_length=100, capacity=1000) for _ in range(2))
    for table in (early, late):
        table.events[0], table.at_risk[0][0][0] = 30.0, 10
        table.advance()
    asked = early.levels(0)
    late.events[0] += 1e6
    assert late.levels(0) == asked
    late.advance()
    assert late.levels(0) != asked
