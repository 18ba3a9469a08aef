"""Drift against scipy, and where there are no ranks."""

import pytest
import torch
from scipy.stats import spearmanr

from gfi_lightning.metrics.drift import heatmap_drift


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_against_scipy(count, ties):
    generator = torch.Generator().manual_seed(0)
    now, before = torch.rand(2, count, 7, 9, generator=generator)
    if ties:
        now, before = (10 * now).round() / 10, (5 * before).round() / 5
    expected = [1 - spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(now, before, strict=True)]
    torch.testing.assert_close(heatmap_drift(now, before), torch.tensor(expected), check_dtype=False, atol=1e-5, rtol=0)


def test_known_cases():
    rising = torch.arange(12.0).view(1, 3, 4)
    assert heatmap_drift(rising, rising).item() == pytest.approx(0, abs=1e-6)
    assert heatmap_drift(rising, rising.exp()).item() == pytest.approx(0, abs=1e-6)
    assert heatmap_drift(rising, -rising).item() == pytest.approx(2, abs=1e-6)


def test_maps_without_ranks():
    flat, rising = torch.zeros(1, 3, 4), torch.arange(12.0).view(1, 3, 4)
    assert heatmap_drift(flat, flat).tolist() == [0]
    assert heatmap_drift(flat, rising).tolist() == heatmap_drift(rising, flat).tolist() == [1]
    mixed = heatmap_drift(torch.cat([flat, rising, flat]), torch.cat([rising, rising, flat]))
    assert mixed.tolist() == pytest.approx([1, 0, 0], abs=1e-6)
