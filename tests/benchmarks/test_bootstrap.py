import numpy as np
import pytest
import scipy.stats
from bench.bootstrap import estimate, paired_difference

VALUES = np.random.default_rng(1).normal(2, 1, 80)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_intervals_are_scipys(statistic):
    found = estimate(VALUES, statistic)
    expected = scipy.stats.bootstrap(
        (VALUES,), getattr(np, statistic), method="percentile", n_resamples=20_000, rng=np.random.default_rng(7)
    ).confidence_interval
    assert found.value == getattr(np, statistic)(VALUES)
    assert found.images == 80
    assert abs(found.low - expected.low) < 0.03
    assert abs(found.high - expected.high) < 0.03


def test_an_interval_holds_the_truth_as_often_as_it_says():
    samples = np.random.default_rng(2).normal(0, 1, (200, 50))
    covered = [found.low <= 0 <= found.high for found in map(estimate, samples)]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_the_same_values_give_the_same_interval():
    assert estimate(VALUES) == estimate(VALUES.copy())
    assert estimate(VALUES) != estimate(VALUES, seed=1)


def test_images_that_were_not_measured_do_not_count():
    gaps = np.concatenate([VALUES, np.full(20, np.nan)])
    assert estimate(gaps) == estimate(VALUES)
    nothing = estimate(np.full(3, np.nan))
    assert nothing.images == 0
    assert np.isnan(nothing.value)


def test_a_paired_difference_is_taken_image_by_image():
    noise = np.random.default_rng(3).normal(0, 0.01, 80)
    better = VALUES + 0.1 + noise
    better[60:] = np.nan  # a slow method, on fewer images
    found = paired_difference(better, VALUES)
    assert found.images == 60
    assert abs(found.value - (0.1 + noise[:60].mean())) < 1e-12
    assert 0.09 < found.low < found.high < 0.11
    alone = estimate(better)
    assert alone.high - alone.low > 10 * (found.high - found.low)
