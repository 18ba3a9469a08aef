"""An image whose mask has stopped changing is left alone, and the others do not notice."""

from dataclasses import replace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.recipes import RECIPES, Recipe
from tests.networks import ToyCNN, random_images

LONG = replace(RECIPES["default"], inversion_steps=6, target_steps=8, evidence_passes=0, evidence_noise=0)
# At full strength the penalties on a toy network make all ω smaller alike at first, which leaves the mask as it is.
LENIENT_RELEASE = replace(RECIPES["release"], inversion_penalty=0.05, target_penalty=0.02)
FIELDS = ("heatmaps", "foreground", "weights", "score", "preserved", "removed")


def constant(step: int, steps: int) -> float:
    return 1.0


def sizes_of_passes(recipe: Recipe, images: torch.Tensor) -> list[int]:
    """How many images went through the network in each pass."""
    model, sizes = ToyCNN().double(), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    GuidedFeatureInversion(model, "coarse", recipe=recipe).explain(images, 1)
    return sizes


@pytest.mark.parametrize(("recipe", "tolerance"), [(LONG, 0.01), (RECIPES["default"], 0.02), (LENIENT_RELEASE, 0.002)])
def test_together_is_one_by_one(recipe, tolerance):
    """Also where stage 2 goes on with the optimiser of stage 1."""
    recipe, images = replace(recipe, tolerance=tolerance), random_images(8, seed=2)
    sizes = sizes_of_passes(recipe, images)
    assert len({*sizes}) > 3  # they stop one after the other
    gfi = GuidedFeatureInversion(ToyCNN().double(), "coarse", recipe=recipe)
    together = gfi.explain(images, 1)
    alone = [gfi.explain(image, 1) for image in images.split(1)]
    for name in FIELDS:
        one_by_one = torch.cat([getattr(explanation, name) for explanation in alone])
        torch.testing.assert_close(getattr(together, name), one_by_one, rtol=0, atol=1e-8)


def test_whoever_stops_stays_where_it_is():
    """After one step where every change is small enough, as if there had been no more."""
    recipe, images = replace(LONG, schedule=constant), random_images(4)
    gfi = GuidedFeatureInversion(ToyCNN().double(), "coarse", recipe=replace(recipe, tolerance=1.0))
    expected = GuidedFeatureInversion(
        ToyCNN().double(), "coarse", recipe=replace(recipe, inversion_steps=1, target_steps=1)
    )
    stopped, short = gfi.explain(images, 1), expected.explain(images, 1)
    for name in FIELDS:
        assert torch.equal(getattr(stopped, name), getattr(short, name)), name
    assert sizes_of_passes(replace(recipe, tolerance=1.0), images) == [4, 4, 8]  # look, stage 1, stage 2


def test_a_tolerance_that_is_never_met_changes_nothing():
    images = random_images(4)
    plain = GuidedFeatureInversion(ToyCNN().double(), recipe=LONG).explain(images, 1)
    same = GuidedFeatureInversion(ToyCNN().double(), recipe=replace(LONG, tolerance=1e-12)).explain(images, 1)
    for name in FIELDS:
        assert torch.equal(getattr(plain, name), getattr(same, name)), name


def test_the_passes_that_are_foretold_are_the_most():
    recipe, images = replace(LONG, tolerance=0.01), random_images(5)
    foretold = sum(GuidedFeatureInversion(ToyCNN(), "coarse", recipe=recipe).passes(images))
    sizes = sizes_of_passes(recipe, images)
    assert len(sizes) <= foretold
    assert sum(sizes) < sum(sizes_of_passes(LONG, images))
