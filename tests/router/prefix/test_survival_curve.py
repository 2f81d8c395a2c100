import pytest

from router.prefix.survival_curve import PRIOR, SurvivalCurve


def test_the_curve_learns_by_bin_and_never_rises() -> None:
    curve = SurvivalCurve()
    for _ in range(200):
        curve.learn([(3, 0.0)])
    assert curve.chance[3] == pytest.approx(0, abs=0.05)
    assert curve.chance[2] == PRIOR[2]
    assert curve.chance == sorted(curve.chance, reverse=True)
    for _ in range(400):
        curve.learn([(3, 1.0), (9, 0.5)])
    assert curve.chance[3] > 0.9
    assert 0.45 < curve.chance[9] < 0.55
