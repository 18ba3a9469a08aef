"""The recipes of the paper and of its authors' code, against a slow and obvious implementation of their tables."""

from dataclasses import replace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.backgrounds import background_function
from gfi_lightning.inversion.recipes import DEFAULT, PAPER
from tests.inversion.reference import explain_like_default, explain_like_paper, explain_like_release
from tests.networks import ToyCNN, ToyPatches, random_images

TOLERANCE = 1e-6


def assert_agrees(explanation, number, heatmap, weights, foreground):
    if weights.isnan().any():  # the penalty drove every ω to 0, and the reference divided 0 by 0
        assert explanation.degenerate[number]
        return
    torch.testing.assert_close(explanation.heatmaps[number].double(), heatmap, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(explanation.weights[number], weights, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(explanation.foreground[number].double(), foreground, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("background", ["blur", "mean", "noise"])
@pytest.mark.parametrize(("base", "inversion"), [("coarse", "coarse"), ("fine", "fine"), ("fine", "coarse")])
def test_paper(base, inversion, background):
    model, images = ToyCNN().double(), random_images(3, seed=1)
    explanation = GuidedFeatureInversion(
        model, base, inversion_layer=inversion, recipe="paper", background=background
    ).explain(images)
    behind = background_function(background)(images)
    for number, target in enumerate(model(images).argmax(1)):
        one = slice(number, number + 1)
        expected = explain_like_paper(model, images[one], target, behind[one], base, inversion)
        assert_agrees(explanation, number, *expected)
    assert not explanation.degenerate.all()


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("base", ["coarse", "fine"])
def test_release(base, seed):
    model, images = ToyCNN(seed=seed).double(), random_images(3, seed=seed)
    explanation = GuidedFeatureInversion(model, base, recipe="release").explain(images)
    behind = background_function("blur")(images)
    for number, target in enumerate(model(images).argmax(1)):
        one = slice(number, number + 1)
        expected = explain_like_release(model, images[one], target, behind[one], base)
        assert_agrees(explanation, number, *expected)
    assert not explanation.degenerate.all()


def test_sigmoid_raises_the_papers_penalty_to_that_of_several_labels():
    # Few steps, so that a penalty of 10 has not yet driven every ω to 0.
    model, images, steps = ToyCNN().double(), random_images(3, seed=1), (2, 5)
    targets = torch.tensor([0, 1, 2])
    recipe = replace(PAPER, inversion_steps=steps[0], target_steps=steps[1])
    explanation = GuidedFeatureInversion(model, "fine", recipe=recipe, score="sigmoid").explain(images, targets)
    behind = background_function("blur")(images)
    weights = []
    for number, target in enumerate(targets):
        one = slice(number, number + 1)
        arguments = (model, images[one], target, behind[one], "fine", "fine")
        expected = explain_like_paper(*arguments, steps=steps, score="sigmoid", multilabel=True)
        assert_agrees(explanation, number, *expected)
        single = explain_like_paper(*arguments, steps=steps, score="sigmoid", multilabel=False)
        weights.append((expected[1] - single[1]).abs().max())
    assert not explanation.degenerate.any()
    assert max(weights) > 10 * TOLERANCE, "the two penalties give the same: the test would not tell them apart"


STEPS = {
    "default": {},
    "limited": {"largest_learning_rate": 0.5},
    "not limited": {"reference_agreement": 1.0},
    "the same for all": {"reference_signal_to_noise": 0.0, "reference_agreement": 0.0},
}


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("layers", [("fine", "coarse"), ("coarse",), ("fine",)], ids="-".join)
@pytest.mark.parametrize("steps", STEPS)
def test_default(seed, layers, steps):
    model, images = ToyCNN(seed=seed).double(), random_images(3, seed=seed)
    recipe = replace(DEFAULT, **STEPS[steps])
    gfi = GuidedFeatureInversion(model, None if len(layers) == 2 else layers, recipe=recipe, inversion_layer=layers[-1])
    explanation = gfi.explain(images)
    assert gfi.layer == (layers if len(layers) == 2 else layers[0])
    behind = background_function("blur")(images)
    for number, target in enumerate(model(images).argmax(1)):
        one = slice(number, number + 1)
        expected = explain_like_default(model, images[one], target, behind[one], layers, recipe)
        assert_agrees(explanation, number, *expected)
    assert not explanation.degenerate.any()


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("layers", [("fine", "coarse"), ("coarse",), ("fine",)], ids="-".join)
def test_default_by_patches(seed, layers):
    model, images = ToyPatches(seed=seed).double(), random_images(3, seed=seed)
    named = [f"{layer}_patches" for layer in layers]
    explanation = GuidedFeatureInversion(model, named).explain(images)
    behind, shares = background_function("blur")(images), []
    for number, target in enumerate(model(images).argmax(1)):
        one = slice(number, number + 1)
        expected = explain_like_default(model, images[one], target, behind[one], layers, DEFAULT, shares)
        assert_agrees(explanation, number, *expected)
    assert not explanation.degenerate.any()
    assert any(0.05 < share < 0.95 for share in shares), "neither kind's loss would be missed"
