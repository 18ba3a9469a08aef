"""Where a base layer gives patches, the mask is asked for evidence as well as the feature maps."""

import math
from dataclasses import replace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.evidence import _mixed
from gfi_lightning.inversion.recipes import DEFAULT
from tests.inversion.architectures import TORCHVISION, images_for, seeded
from tests.networks import ToyCNN, ToyPatches, random_images

BY_FEATURES = replace(DEFAULT, evidence_by_mask=False)
PATCHES = ("fine_patches", "coarse_patches")


def explain(model, layer=None, recipe=DEFAULT, targets=None, **options):
    gfi = GuidedFeatureInversion(model.double(), layer, recipe=recipe, **options)
    return gfi.explain(random_images(4), targets)


def test_feature_maps_with_channels_first_are_asked_alone():
    assert torch.equal(explain(ToyCNN()).weights, explain(ToyCNN(), recipe=BY_FEATURES).weights)


@pytest.mark.parametrize(
    "layer", [None, PATCHES, "coarse_patches", ("fine_patches", "coarse"), ("fine", "coarse_patches")]
)
def test_one_layer_of_patches_is_enough(layer):
    default, by_features = explain(ToyPatches(), layer), explain(ToyPatches(), layer, BY_FEATURES)
    assert ((default.weights - by_features.weights).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_no_image_depends_on_the_others_of_its_batch(chunk_size):
    targets = torch.tensor([[0, 1, 2]] * 4)
    together, apart = (explain(ToyPatches(), PATCHES, targets=targets, chunk_size=size) for size in (None, chunk_size))
    torch.testing.assert_close(together.heatmaps, apart.heatmaps)
    torch.testing.assert_close(together.weights, apart.weights)


ASKED = {
    "probability": ({}, {}),
    "sigmoid": ({"score": "sigmoid"}, {}),
    "score of one's own": ({"score": lambda output, targets: 5 * output[:, 0]}, {}),
    "contrast": ({}, {"against": 1}),
}


@pytest.mark.parametrize("asked", ASKED)
def test_whatever_is_asked_in_half_precision_too(asked):
    (options, question), found = ASKED[asked], []
    for dtype in (torch.float32, torch.bfloat16):
        gfi = GuidedFeatureInversion(ToyPatches().to(dtype), PATCHES, **options)
        found.append(gfi.explain(random_images(4).to(dtype), 0, **question))
    full, half = found
    assert not half.degenerate.any()
    for pair in zip(full.heatmaps.flatten(1), half.heatmaps.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.9


def test_no_image_suffers_from_one_that_is_not_finite():
    images = random_images(4)
    gfi = GuidedFeatureInversion(ToyPatches().double(), PATCHES)
    expected = gfi.explain(images, 0)
    images[1], images[2] = torch.nan, 0.3
    explanation = gfi.explain(images, 0)
    assert explanation.degenerate.tolist()[1] is True
    for number in (0, 3):
        torch.testing.assert_close(explanation.heatmaps[number], expected.heatmaps[number])
    assert torch.isfinite(explanation.weights).all()


def test_a_mask_that_changes_nothing_tells_nothing():
    default, by_features = (
        explain(ToyPatches(), PATCHES, one, background=lambda x: x) for one in (DEFAULT, BY_FEATURES)
    )
    torch.testing.assert_close(default.weights, by_features.weights)
    assert torch.equal(default.signs, by_features.signs)
    assert (default.signs == -1).any()


def test_what_rounding_alone_tells_is_no_evidence():
    """The blurred background of an image of one colour is that colour, give or take rounding."""
    images = random_images(3, dtype=torch.float32)
    images[0], images[1] = 0.3, torch.tensor([-1.7, 0.1, 2.0])[:, None, None]
    found = []
    for recipe in (DEFAULT, BY_FEATURES):
        gfi = GuidedFeatureInversion(ToyPatches(), PATCHES, recipe=recipe)
        found.append(gfi.explain(images, 0).heatmaps)
    assert [torch.allclose(*pair, atol=1e-5) for pair in zip(*found, strict=True)] == [True, True, False]


def test_without_passes_for_evidence_there_is_none():
    changes = {"evidence_passes": 0, "evidence_noise": 0.0}
    default, by_features = (
        GuidedFeatureInversion(ToyPatches().double(), PATCHES, recipe=replace(one, **changes))
        for one in (DEFAULT, BY_FEATURES)
    )
    images = random_images(4)
    assert torch.equal(default.explain(images, 0).weights, by_features.explain(images, 0).weights)
    assert default.passes(images) == by_features.passes(images)


VALUES = [  # of an image: kept and removed by one kind of evidence, and by the other; and the share of that
    ((2.0, 1.0, 1.0, 2.0), 1 / (1 + math.exp(1.5))),
    ((-math.inf, 0.0, 3.0, 1.0), 1.0),
    ((1.0, -1.0, -math.inf, 5.0), 0.0),
    ((math.inf, math.inf, math.inf, math.inf), 0.5),
    ((math.nan, 0.0, -9.0, 9.0), 1.0),
    ((math.nan, 0.0, 0.0, math.nan), 0.5),
]


@pytest.mark.parametrize(("most", "parts"), [(100, [24]), (6, [6] * 4), (1, [6] * 4)])
def test_each_kind_weighs_as_much_as_its_loss_says(most, parts):
    images, recipe = random_images(len(VALUES)), replace(DEFAULT, target_area_penalty=0.0, removed_weight=0.5)
    (chunk,) = GuidedFeatureInversion(ToyPatches().double(), PATCHES, recipe=recipe).invert(images).chunks
    drawn = torch.Generator().manual_seed(0)
    one, other = ([torch.randn(weights.shape, generator=drawn).to(weights) for weights in chunk.weights] for _ in "12")
    values, asked = torch.tensor([row for row, _ in VALUES]).T.double().flatten(), []

    def wanted(versions):
        begin = sum(asked)
        asked.append(len(versions))
        return values[begin : begin + len(versions)]

    found = _mixed(recipe, chunk, [1e-30 * by_layer for by_layer in one], other, wanted, most)
    assert asked == parts
    shares = torch.tensor([share for _, share in VALUES]).double()[:, None]
    for mixed, ours, others in zip(found, one, other, strict=True):
        torch.testing.assert_close(mixed, (1 - shares) * unit(ours) + shares * unit(others))


def unit(evidence):
    return evidence / evidence.norm(dim=1, keepdim=True)


def test_where_one_kind_tells_nothing_the_other_stands_alone():
    (chunk,) = GuidedFeatureInversion(ToyPatches().double(), PATCHES).invert(random_images(4)).chunks
    drawn = torch.Generator().manual_seed(0)
    one, other = ([torch.randn(weights.shape, generator=drawn).to(weights) for weights in chunk.weights] for _ in "12")
    one[0][1], other[1][2, 0], one[1][3], other[1][3] = 0.0, torch.nan, 0.0, torch.inf
    fine, coarse = _mixed(DEFAULT, chunk, one, other, lambda versions: versions.mean((1, 2, 3)), 100)
    torch.testing.assert_close(fine[1], unit(other[0])[1])
    torch.testing.assert_close(coarse[2], unit(one[1])[2])
    torch.testing.assert_close(coarse[3], unit(torch.ones_like(coarse))[3])
    assert not torch.isclose(fine[0], unit(other[0])[0]).all()


def test_who_has_learned_that_there_are_patches_foretells_their_passes():
    model, images = ToyPatches(), random_images(3).float()
    first, second = GuidedFeatureInversion(model, PATCHES), GuidedFeatureInversion(model, PATCHES)
    first.explain(images, 0)
    assert sum(second.passes(images)) < sum(first.passes(images))
    second.capacity.learn(first.capacity.learned)
    assert second.passes(images) == first.passes(images)


@pytest.mark.parametrize(
    ("name", "layer", "gives_patches"),
    [
        ("ViT", None, True),
        ("Swin", None, True),
        ("Swin", "norm", True),
        ("Swin", "permute", False),  # the same, with the channels first
        ("MaxViT", None, False),
        ("Inception v3", None, False),
    ],
)
def test_who_gives_patches(name, layer, gives_patches):
    architecture = TORCHVISION[name]
    gfi, images = GuidedFeatureInversion(seeded(architecture), layer), images_for(architecture, 1)
    told = gfi.passes(images)
    gfi.explain(images, 0)
    assert sum(gfi.passes(images)) - sum(told) == (2 if gives_patches else 0)
