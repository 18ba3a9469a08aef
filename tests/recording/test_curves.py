"""The curves of a training, sample by sample."""

from dataclasses import replace

import pytest
import torch

from gfi_lightning.metrics import energy_in_region, entropy, half_area, heatmap_drift, top_fifth_iou
from gfi_lightning.recording.curves import CURVES, CurveTracker, means, means_by_class, means_by_sample
from tests.recording.test_history import SIZE, changed_maps, record


def test_each_curve_is_what_it_says():
    first, second, third = record(0, seed=1), record(1, seed=2), record(2, seed=3)
    tracker = CurveTracker({})
    assert not {"drift", "drift_from_first", "drift_floor"} & tracker.curves(first).keys()
    tracker.curves(second)
    curves = tracker.curves(third)
    expected = {
        "drift": heatmap_drift(third.maps(), second.maps()),
        "drift_from_first": heatmap_drift(third.maps(), first.maps()),
        "top_fifth_iou": top_fifth_iou(third.maps(), second.maps()),
        "top_fifth_iou_from_first": top_fifth_iou(third.maps(), first.maps()),
        "entropy": entropy(third.heatmaps()),
        "area": half_area(third.heatmaps()),
        "preserved": torch.tensor([0.75, 0.75]),
        "removed": torch.tensor([0.25, 0.25]),
        "settled": torch.tensor([0.0, 0.0]),
    }
    assert curves.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(curves[name], values.float())


def test_there_are_no_others():
    tracker = CurveTracker({})
    tracker.floor = torch.tensor([0.1, 0.2])
    masks = {"sky": torch.ones(2, *SIZE, dtype=torch.bool)}
    for run in (record(0), record(1, seed=1)):
        curves = tracker.curves(replace(run, regions=masks))
    assert sorted(name.removesuffix("/sky") for name in curves) == sorted(CURVES)


def test_what_moves_less_than_the_floor_has_settled():
    tracker = CurveTracker({})
    first, second = record(0), record(1, seed=1)
    tracker.curves(first)
    drift = tracker.curves(second)["drift"]
    tracker.curves(first)
    tracker.floor = torch.tensor([float(drift[0]) + 0.01, 0.0])
    assert tracker.curves(second)["settled"].tolist() == [1, 0]
    assert tracker.curves(second)["settled"].tolist() == [1, 1], "nothing has moved"
    assert tracker.curves(second)["drift"].tolist() == [0, 0]


def test_a_resumed_training_compares_with_what_was_before():
    whole, before = CurveTracker({}), CurveTracker({})
    for run in (record(0), record(1, seed=1)):
        whole.curves(run)
        before.curves(run)
    before.floor = whole.floor = torch.tensor([0.1, 0.2])
    curves, resumed = whole.curves(record(2, seed=2)), CurveTracker(before.state()).curves(record(2, seed=2))
    assert curves.keys() == resumed.keys()
    assert {"drift_from_first", "drift_floor"} < curves.keys()
    assert all(torch.equal(curves[name], resumed[name]) for name in curves)


def test_maps_of_another_size_are_not_compared():
    tracker = CurveTracker({})
    tracker.curves(record(0))
    assert "drift" not in tracker.curves(replace(record(1), grid=(2, 2)))
    assert "drift" in tracker.curves(replace(record(2), grid=(2, 2)))


def test_only_samples_with_a_region_have_a_share_of_it():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[1, :4] = True
    run = replace(record(0), regions={"sky": masks, "nowhere": torch.zeros_like(masks)})
    curves = CurveTracker({}).curves(run)
    assert curves["energy/sky"].isnan().tolist() == curves["pointing/sky"].isnan().tolist() == [True, False]
    assert curves["energy/sky"][1] == energy_in_region(run.heatmaps(), masks)[1]
    averages = means(curves)
    assert averages["energy/sky"] == pytest.approx(float(curves["energy/sky"][1]))
    assert not {"energy/nowhere", "pointing/nowhere"} & averages.keys()


def test_averages():
    curves = {"drift": torch.tensor([0.0, 0.5, 1.0]), "energy/sky": torch.tensor([0.25, torch.nan, torch.nan])}
    assert means(curves) == {"drift": 0.5, "energy/sky": 0.25}
    assert means_by_class(curves, [1, 1, None], ["ant", "bee"]) == {"drift/bee": 0.25, "energy/sky/bee": 0.25}
    assert means_by_class(curves, [0, 7, 7], ["ant"]) == {
        "drift/ant": 0,
        "energy/sky/ant": 0.25,
        "drift/class 7": 0.75,
    }
    assert means_by_class(curves, [0, 1, 2], ["bee", "bee", ""]) == {
        "drift/bee (class 0)": 0,
        "energy/sky/bee (class 0)": 0.25,
        "drift/bee (class 1)": 0.5,
        "drift/class 2": 1,
    }
    expected = {"drift/sample_0": 0, "drift/sample_1": 0.5, "drift/sample_2": 1, "energy/sky/sample_0": 0.25}
    assert means_by_sample(curves) == expected


def test_a_reversed_map_has_moved_as_far_as_can_be():
    tracker = CurveTracker({})
    tracker.curves(record(0))
    assert means(tracker.curves(changed_maps(record(1))))["drift"] == pytest.approx(2, abs=1e-5)
