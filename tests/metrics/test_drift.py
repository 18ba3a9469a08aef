"""Drift against scipy, and where there are no ranks."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from gfi_lightning import UsageError
from gfi_lightning.metrics import HeatmapDrift, heatmap_drift, settled_at, top_fifth_iou


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


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_iou_against_sets(share):
    now, before = torch.rand(2, 6, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = before + 2 * now
    expected = []
    for one, other in zip(now.flatten(1).tolist(), before.flatten(1).tolist(), strict=True):
        count = round(share * 63)
        tops = [set(sorted(range(63), key=values.__getitem__)[63 - count :]) for values in (one, other)]
        if share == 1:  # the minimum is never important
            tops = [
                top - {min(range(63), key=values.__getitem__)} for top, values in zip(tops, (one, other), strict=True)
            ]
        expected.append(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    torch.testing.assert_close(top_fifth_iou(now, before, share).double(), torch.tensor(expected, dtype=torch.float64))


def test_iou_of_ties_and_of_constant_maps():
    flat, sparse = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
    sparse[0, 2, 4] = 1
    assert top_fifth_iou(flat, flat + 1).tolist() == [1]
    assert top_fifth_iou(flat, sparse).tolist() == top_fifth_iou(sparse, flat).tolist() == [0]
    assert top_fifth_iou(sparse, sparse).tolist() == [1]
    assert top_fifth_iou(sparse, sparse.flip(2)).tolist() == [0]  # what ties at 0 is not important
    plateau = torch.zeros(1, 3, 5)
    plateau[0, :2] = 1  # ten pixels tie for three places
    assert top_fifth_iou(plateau, sparse + plateau).tolist() == pytest.approx([10 / 11])


def test_the_class_averages_over_images():
    now, before = torch.rand(2, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    metric = HeatmapDrift()
    for part in (slice(0, 5), slice(5, 7)):
        metric.update(now[part], before[part])
    drift = heatmap_drift(now, before).float().mean()
    expected = {"drift": drift, "rank_correlation": 1 - drift, "top_fifth_iou": top_fifth_iou(now, before).mean()}
    torch.testing.assert_close(metric.compute(), expected)


def test_misuse():
    maps = torch.rand(2, 3, 4)
    with pytest.raises(UsageError, match=r"previous have shape \(1, 3, 4\) and heatmaps \(2, 3, 4\)"):
        HeatmapDrift().update(maps, maps[:1])
    with pytest.raises(UsageError, match=r"previous\[0\] holds NaN"):
        HeatmapDrift().update(maps, maps * torch.nan)
    with pytest.raises(UsageError, match="share=0"):
        top_fifth_iou(maps, maps, share=0)


@pytest.mark.parametrize(
    ("drift", "settled"),
    [
        ([math.nan, 0.5, 0.3, 0.1, 0.0], 20),  # the map of step 20 is the one that stays
        ([math.nan, 0.0, 0.3, 0.1, 0.05], 20),
        ([math.nan, 0.1, 0.1, 0.1, 0.1], 0),  # the threshold itself is no movement
        ([math.nan, 0.0, 0.0, 0.0, 0.2], None),
        ([math.nan, 0.0, math.nan, 0.2, 0.0], 30),
        ([math.nan, 0.0, math.nan, 0.0, 0.0], 20),  # from which on another method has made the maps
        ([math.nan, 0.0, 0.0, 0.0, math.nan], None),
    ],
)
def test_when_a_map_settled(drift, settled):
    assert settled_at([0, 10, 20, 30, 40], drift, threshold=0.1) == settled


def test_a_single_run_tells_nothing():
    assert settled_at([0], [math.nan], 0.1) is None
    assert settled_at([], [], 0.1) is None
