"""Where there is no evidence: an empty map and a flag for that image, never NaN, the others untouched."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.recipes import RECIPES
from tests.networks import ToyCNN, random_images

FIELDS = ("heatmaps", "foreground", "score", "preserved", "removed", "weights")


class Spoiled(nn.Module):
    """A network whose feature maps are spoiled for the images that are marked by a huge first pixel.

    A blended image is marked too, a little less, as long as it is not all background.
    """

    def __init__(self, spoil):
        super().__init__()
        self.network = ToyCNN().double()
        self.maps = nn.Identity()
        self.coarse = nn.Sequential(self.maps, nn.ReLU())
        self.spoil = spoil

    def forward(self, images):
        marked = images[:, :1, :1, :1].abs() > 100
        images = torch.where(marked, images.clamp(-2, 2), images)
        maps = self.network.coarse(self.network.pool(self.network.fine(images)))
        return self.network.head(self.coarse(torch.where(marked, self.spoil(maps), maps)))


SPOILS = {
    "zero": torch.zeros_like,
    "constant": lambda maps: torch.full_like(maps, 3.0),
    "constant per channel": lambda maps: maps.mean((2, 3), keepdim=True).expand_as(maps),
    "NaN": lambda maps: torch.full_like(maps, torch.nan),
    "one NaN": lambda maps: maps.index_fill(3, torch.tensor([2]), torch.nan),
    "infinite": lambda maps: torch.full_like(maps, torch.inf),
}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("spoil", SPOILS)
def test_no_evidence_in_one_image(spoil, recipe):
    model, images = Spoiled(SPOILS[spoil]), random_images(4, seed=1)
    targets = model(images).argmax(1)
    gfi = GuidedFeatureInversion(model, "coarse", recipe=recipe)
    untouched = gfi.explain(images, targets)
    assert not untouched.degenerate.any()
    marked = images.clone()
    marked[1, 0, 0, 0] = 1e6
    explanation = gfi.explain(marked, targets)
    assert explanation.degenerate.tolist() == [False, True, False, False]
    for name in FIELDS:
        values = getattr(explanation, name)
        assert torch.isfinite(values).all(), name
        others = torch.tensor([0, 2, 3])
        torch.testing.assert_close(values[others], getattr(untouched, name)[others], rtol=0, atol=1e-8)
    assert explanation.heatmaps[1].count_nonzero() == explanation.foreground[1].count_nonzero() == 0


def test_a_dead_network():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    nn.init.constant_(model[0].bias, -1e3)
    explanation = GuidedFeatureInversion(model).explain(torch.rand(3, 3, 16, 16))
    assert explanation.degenerate.all()
    assert explanation.heatmaps.count_nonzero() == 0
    assert all(torch.isfinite(getattr(explanation, name)).all() for name in FIELDS)


def test_rounding_is_no_evidence():
    # Equal up to rounding: min-max would blow it up to a full picture.
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.full((1, 3, 16, 16), 0.3) + 1e-7 * torch.rand(1, 3, 16, 16)
    assert GuidedFeatureInversion(model, "1").explain(images).degenerate.all()


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_model_whose_scores_are_nan(recipe):
    class Broken(ToyCNN):
        def forward(self, images):
            return super().forward(images) * torch.nan

    explanation = GuidedFeatureInversion(Broken(), recipe=recipe).explain(random_images(2, dtype=torch.float32), 1)
    assert explanation.degenerate.all()
    assert all(torch.isfinite(getattr(explanation, name)).all() for name in FIELDS)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite(value):
    images = random_images(3, dtype=torch.float32)
    gfi = GuidedFeatureInversion(ToyCNN())
    clean = gfi.explain(images, 1)
    images[0, 0, 3, 3] = value
    explanation = gfi.explain(images, 1)
    assert explanation.degenerate.tolist() == [True, *clean.degenerate[1:].tolist()]
    assert torch.equal(explanation.heatmaps[1:], clean.heatmaps[1:])
    assert all(torch.isfinite(getattr(explanation, name)).all() for name in FIELDS)


def test_a_score_whose_gradient_is_not_a_number_lets_no_such_image_into_the_model():
    model, seen = ToyCNN().double(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(bool(args[0].isfinite().all())))

    def score(output, targets):
        return (output[:, 0] * 0).sqrt()  # 0, and its gradient 0 * inf

    explanation = GuidedFeatureInversion(model, "coarse", score=score).explain(random_images(2), 0)
    assert explanation.degenerate.all()
    assert len(seen) > 4
    assert all(seen)


def test_a_penalty_may_be_constant():
    free, constant = (
        replace(RECIPES["default"], target_penalty=penalty, penalty=lambda weights: weights.new_zeros(len(weights)))
        for penalty in (0.0, 1.0)
    )
    maps = [
        GuidedFeatureInversion(ToyCNN().double(), "coarse", recipe=recipe).explain(random_images(2), 0).heatmaps
        for recipe in (free, constant)
    ]
    assert torch.equal(*maps)
