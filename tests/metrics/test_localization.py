"""Localisation against obvious loops, torchvision and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from torchvision.ops import box_iou, masks_to_boxes

from gfi_lightning import UsageError
from gfi_lightning.metrics import (
    EnergyPointingGame,
    LocalizationError,
    PointingGame,
    SalientObject,
    energy_in_region,
    localization_boxes,
    localization_hits,
    pointing_hits,
    regions_of_boxes,
    salient_object_scores,
    tune_alpha,
)
from gfi_lightning.metrics.localization import ALPHAS

SIZE = (13, 17)


def random_maps(count=20, seed=0, size=SIZE):
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


def random_boxes(count=20, seed=0, size=SIZE):
    """One to three boxes for each image, with fractions; some reach over the border."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor(size[::-1])
    boxes = []
    for number in range(count):
        sides = limits * (0.3 + 0.6 * torch.rand(number % 3 + 1, 2, generator=generator))
        corners = torch.rand(number % 3 + 1, 2, generator=generator) * (limits + 1 - sides)
        boxes.append(torch.cat([corners, corners + sides], 1))
    return boxes


def blobs(boxes, seed=0, size=SIZE):
    """Maps that are high within each image's first box, and noisy."""
    regions = regions_of_boxes([one[:1] for one in boxes], size)
    return regions + 0.3 * random_maps(len(boxes), seed, size)


def test_regions_of_boxes_against_a_loop():
    boxes = random_boxes()
    expected = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for number, image_boxes in enumerate(boxes):
        for x0, y0, x1, y1 in image_boxes.tolist():
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    if x0 <= column + 0.5 < x1 and y0 <= row + 0.5 < y1:
                        expected[number, row, column] = True
    assert 0.1 < expected.float().mean() < 0.9
    assert torch.equal(regions_of_boxes(boxes, SIZE), expected)


def test_integer_boxes_are_slices():
    region = regions_of_boxes([torch.tensor([[2, 1, 9, 7], [0, 0, 1, 1]]), torch.zeros(0, 4)], SIZE)
    expected = torch.zeros(2, *SIZE, dtype=torch.bool)
    expected[0, 1:7, 2:9] = expected[0, 0, 0] = True
    assert torch.equal(region, expected)


@pytest.mark.parametrize("tolerance", [0, 1, 2.5, 15])
def test_pointing_against_a_loop(tolerance):
    maps = random_maps(100)
    regions = regions_of_boxes([torch.tensor([[5, 4, 8, 7], [12, 0, 13, 2]])] * 100, SIZE)
    expected = []
    for heatmap, region in zip(maps.numpy(), regions.numpy(), strict=True):
        peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
        expected.append(min(math.dist(peak, place) for place in np.argwhere(region)) <= tolerance)
    assert pointing_hits(maps, regions, tolerance).tolist() == expected
    assert 0 < sum(expected) < 100 or tolerance == 15


def test_pointing_where_there_is_no_single_maximum():
    region = torch.tensor([[[False, True], [False, False]]])
    assert pointing_hits(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), region).tolist() == [True]  # the first in row order
    assert pointing_hits(torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]), region).tolist() == [False]
    assert pointing_hits(torch.full((1, 2, 2), 0.3), torch.ones(1, 2, 2, dtype=torch.bool)).tolist() == [False]
    assert pointing_hits(torch.eye(2)[None], torch.zeros(1, 2, 2, dtype=torch.bool), 9).tolist() == [False]


def test_energy_against_a_loop():
    maps, regions = random_maps() - 0.3, regions_of_boxes(random_boxes(), SIZE)
    expected = []
    for heatmap, region in zip(maps.tolist(), regions.tolist(), strict=True):
        inside = total = 0.0
        for values, flags in zip(heatmap, region, strict=True):
            for value, flag in zip(values, flags, strict=True):
                total += max(value, 0)
                inside += max(value, 0) if flag else 0
        expected.append(inside / total)
    torch.testing.assert_close(energy_in_region(maps, regions), torch.tensor(expected))


def test_energy_of_empty_maps():
    everything = torch.ones(2, 3, 4, dtype=torch.bool)
    assert energy_in_region(torch.stack([torch.zeros(3, 4), -torch.ones(3, 4)]), everything).tolist() == [0, 0]
    assert energy_in_region(torch.rand(2, 3, 4), everything).tolist() == [1, 1]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.8])
def test_boxes_against_torchvision(alpha):
    maps = random_maps() ** 4 - 0.05
    positive = maps.clamp(min=0)
    kept = positive > alpha * positive.mean((1, 2), keepdim=True)
    expected = masks_to_boxes(kept) + torch.tensor([0, 0, 1, 1])  # torchvision's end is inclusive
    assert torch.equal(localization_boxes(maps, alpha), expected.long())


def test_boxes_of_nothing_and_of_all():
    maps = torch.stack([torch.zeros(SIZE), torch.full(SIZE, 0.5), random_maps(1)[0]])
    whole, nothing = [0, 0, SIZE[1], SIZE[0]], [0, 0, 0, 0]
    assert localization_boxes(maps, 0).tolist() == [whole, whole, whole]
    assert localization_boxes(maps, 0.5).tolist()[:2] == [nothing, whole]
    assert localization_boxes(maps, 1000).tolist() == [nothing, nothing, nothing]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_hits_against_torchvision(alpha):
    boxes = random_boxes(60)
    maps = blobs(boxes)
    found = localization_boxes(maps, alpha).float()
    ious = [box_iou(box[None], one.float()).max() for box, one in zip(found, boxes, strict=True)]
    expected = [bool(iou > 0.5) for iou in ious]
    assert localization_hits(maps, boxes, alpha).tolist() == expected
    assert 0 < sum(expected) < 60


def test_a_hit_needs_more_than_half():
    box = torch.tensor([[0, 0, 4, 1]])
    half, more = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    half[..., 2:4], more[..., 1:4] = 1, 1
    assert localization_hits(half, [box], 1).tolist() == [False]  # IoU 2/4
    assert localization_hits(more, [box], 1).tolist() == [True]  # IoU 3/4
    assert localization_hits(more, [torch.zeros(0, 4)], 1).tolist() == [False]
    assert localization_hits(torch.zeros(1, 1, 8), [box], 1).tolist() == [False]


def test_tuning_finds_the_best_alpha():
    boxes = random_boxes(60)
    maps = blobs(boxes)
    errors = {alpha: 1 - localization_hits(maps, boxes, alpha).float().mean().item() for alpha in ALPHAS}
    best = tune_alpha(maps, boxes)
    assert errors[best] == min(errors.values()) < errors[0.0]
    assert all(errors[alpha] > errors[best] for alpha in ALPHAS if alpha < best)
    assert ALPHAS[:3] == (0, 0.5, 1)
    assert (ALPHAS[-1], len(ALPHAS)) == (10, 21)


def test_salience_against_scikit_learn():
    boxes = random_boxes(30)
    maps, regions = blobs(boxes) / 1.3, regions_of_boxes(boxes, SIZE)
    scores = salient_object_scores(maps, regions)
    for number, (heatmap, region) in enumerate(zip(maps.numpy(), regions.numpy(), strict=True)):
        found = heatmap > 2 * heatmap.mean()
        precision, recall, f_beta, _ = precision_recall_fscore_support(
            region.ravel(), found.ravel(), beta=math.sqrt(0.3), average="binary", zero_division=0
        )
        expected = (precision, recall, f_beta, np.abs(heatmap - region).mean())
        assert [float(one[number]) for one in scores] == pytest.approx(expected, abs=1e-6)


def test_salience_of_nothing():
    region = torch.tensor([[[True, False]]])
    assert [one.item() for one in salient_object_scores(torch.zeros(1, 1, 2), region)] == [0, 0, 0, 0.5]
    scores = salient_object_scores(torch.tensor([[[0.0, 0.0, 0.6]]]), torch.zeros(1, 1, 3, dtype=torch.bool))
    assert [one.item() for one in scores] == pytest.approx([0, 0, 0, 0.2])


def test_pointing_game_of_classes():
    maps, regions = random_maps(40), regions_of_boxes([torch.tensor([[0, 0, 10, 9]])] * 40, SIZE)
    classes = torch.tensor([0] * 25 + [1] * 10 + [3] * 5)
    hits = pointing_hits(maps, regions).float()
    metric = PointingGame(num_classes=4)
    for part in torch.arange(40).split(15):
        metric.update(maps[part], regions[part], classes[part])
    result = metric.compute()
    expected = torch.tensor([hits[:25].mean(), hits[25:35].mean(), math.nan, hits[35:].mean()])
    torch.testing.assert_close(result["per_class"], expected, equal_nan=True)
    torch.testing.assert_close(result["mean"], expected[[0, 1, 3]].mean())
    over_all = PointingGame()
    over_all.update(maps, regions)
    torch.testing.assert_close(over_all.compute(), {"mean": hits.mean()})
    assert hits.mean() != result["mean"]


def test_the_other_classes_average_over_images():
    boxes = random_boxes(40)
    maps, regions = blobs(boxes) / 1.3, regions_of_boxes(boxes, SIZE)
    metrics = EnergyPointingGame(), LocalizationError(alpha=1.5), SalientObject()
    for part in (slice(0, 31), slice(31, 40)):
        metrics[0].update(maps[part], regions[part])
        metrics[1].update(maps[part], boxes[part])
        metrics[2].update(maps[part], regions[part])
    torch.testing.assert_close(metrics[0].compute(), energy_in_region(maps, regions).mean())
    torch.testing.assert_close(metrics[1].compute(), 1 - localization_hits(maps, boxes, 1.5).float().mean())
    scores = salient_object_scores(maps, regions)._asdict()
    torch.testing.assert_close(metrics[2].compute(), {name: values.mean() for name, values in scores.items()})


MAPS, REGIONS = torch.rand(2, 4, 6), torch.ones(2, 4, 6, dtype=torch.bool)
BOX = torch.tensor([[0, 0, 3, 3]])
NAN = MAPS.clone().index_fill_(1, torch.tensor([2]), math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: EnergyPointingGame().update(MAPS[:, None], REGIONS),
            r"Tensor\(2, 1, 4, 6\).*expected is .*\(N, H, W\)",
        ),
        (lambda: EnergyPointingGame().update(REGIONS, REGIONS), "of bool; expected is a floating point tensor"),
        (lambda: EnergyPointingGame().update(NAN, REGIONS), r"heatmaps\[0\] holds NaN"),
        (lambda: EnergyPointingGame().update(MAPS[:0], REGIONS[:0]), "give at least one map"),
        (lambda: EnergyPointingGame().update(MAPS, MAPS), "regions are Tensor.*masks > 0"),
        (lambda: EnergyPointingGame().update(MAPS, REGIONS[:1]), r"regions have shape \(1, 4, 6\)"),
        (lambda: EnergyPointingGame().update(MAPS, ~REGIONS), r"regions\[0\] is empty"),
        (lambda: PointingGame(tolerance=-1), "tolerance=-1"),
        (lambda: PointingGame(num_classes=0), "num_classes=0"),
        (lambda: PointingGame(num_classes=2.0), "num_classes=2.0 must be a whole number"),
        (lambda: PointingGame().update(NAN, REGIONS), r"heatmaps\[0\] holds NaN"),
        (lambda: PointingGame().update(MAPS, ~REGIONS), r"regions\[0\] is empty"),
        (lambda: PointingGame(3).update(MAPS, REGIONS), "num_classes=3: give both or neither"),
        (lambda: PointingGame().update(MAPS, REGIONS, torch.tensor([0, 1])), "num_classes=None: give both"),
        (lambda: PointingGame(3).update(MAPS, REGIONS, torch.tensor([0, 3])), "from 0 to 3, but num_classes=3"),
        (lambda: PointingGame(3).update(MAPS, REGIONS, torch.rand(2)), "classes are Tensor.*integer"),
        (lambda: PointingGame(3).update(MAPS, REGIONS, torch.tensor([[0], [1]])), r"classes have shape \(2, 1\)"),
        (lambda: LocalizationError(alpha=-1), "alpha=-1"),
        (lambda: LocalizationError(1).update(MAPS, [BOX]), "for 1 images, and there are 2 heatmaps"),
        (lambda: LocalizationError(1).update(MAPS, [BOX, BOX[0]]), r"boxes\[1\] has shape \(4,\)"),
        (lambda: LocalizationError(1).update(MAPS, [BOX, BOX[:0]]), r"boxes\[1\] is empty"),
        (
            lambda: LocalizationError(1).update(MAPS, [BOX, torch.tensor([[3, 3, 2, 2]])]),
            r"boxes\[1\].*not x, y, width",
        ),
        (lambda: LocalizationError(1).update(MAPS, [BOX, torch.tensor([[7, 0, 9, 2]])]), r"outside.*4 × 6 pixels"),
        (lambda: LocalizationError(1).update(MAPS, [BOX * math.nan, BOX]), r"boxes\[0\]"),
        (lambda: LocalizationError(1).update(MAPS, [[0, 0, 1, 1], BOX]), r"boxes\[0\] is list"),
        (lambda: tune_alpha(MAPS, [BOX, BOX], []), "alphas are empty"),
        (lambda: SalientObject(beta_squared=-1), "beta_squared=-1"),
        (lambda: SalientObject().update(2 * MAPS.round() + 0.5, REGIONS), r"2.5; scale each to \[0, 1\]"),
        (lambda: SalientObject().update(MAPS, ~REGIONS), r"regions\[0\] is empty"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_no_images_have_no_regions():
    assert regions_of_boxes([], (4, 5)).shape == (0, 4, 5)
