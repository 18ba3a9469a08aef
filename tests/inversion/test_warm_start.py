"""An explanation that goes on from what was found before for the same images."""

from dataclasses import fields, replace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.recipes import RECIPES
from gfi_lightning.inversion.stages import heatmaps_of
from gfi_lightning.inversion.start import Start
from tests.networks import ToyCNN, random_images

DEFAULT = RECIPES["default"]
STANDING = replace(DEFAULT, inversion_steps=0, target_steps=0)
TOLERANT = replace(DEFAULT, tolerance=0.01)
ALIKE = replace(DEFAULT, reference_signal_to_noise=0.0, reference_agreement=0.0)
FIELDS = ("heatmaps", "foreground", "weights", "signs", "score", "preserved", "removed", "degenerate")
TARGETS = torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]])
CHANNELS = {"fine": 8, "coarse": 6}
LAYERS = ["coarse", ["fine", "coarse"]]


def explainer(recipe=DEFAULT, layer="coarse", seed=1, **options):
    return GuidedFeatureInversion(ToyCNN(seed=seed).double(), layer, recipe=recipe, **options)


def found(gfi, images, targets):
    """An explanation, and where the next one would start."""
    inversion = gfi.invert(images)
    explanation = gfi.refine(inversion, targets)
    return explanation, Start.of(inversion, explanation)


def channels(layer):
    return CHANNELS[layer] if isinstance(layer, str) else sum(map(CHANNELS.get, layer))


def nothing(count, layer):
    """Of no use for any pair."""
    return torch.full((*TARGETS[:count].shape, channels(layer)), torch.nan, dtype=torch.float64)


def assert_same(one, other, **tolerance):
    for name in FIELDS:
        if tolerance:
            torch.testing.assert_close(getattr(one, name), getattr(other, name), **tolerance)
        else:
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("skips_evidence", [True, False])
def test_a_start_without_anything_is_the_cold_one(recipe, layer, skips_evidence):
    images = random_images(4)
    gfi = explainer(recipe, layer)
    uniform = torch.full((4, channels(layer)), gfi.recipe.initial_weight, dtype=torch.float64)
    cold = gfi.explain(images, TARGETS)
    for start in (
        Start(uniform),
        Start(torch.full_like(uniform, torch.nan)),
        Start(torch.zeros_like(uniform)),
        Start(uniform, nothing(4, layer), torch.ones(nothing(4, layer).shape, dtype=torch.int8), skips_evidence),
        Start(uniform[:, 1:], nothing(4, layer)[..., 1:]),  # of another layer
    ):
        assert_same(gfi.explain(images, TARGETS, start=start), cold)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_steps_the_mask_is_that_of_the_start(layer):
    """Of another model's ω and signs on this one's feature maps, which are not what it would find."""
    images = random_images(4)
    before, start = found(explainer(layer=layer, seed=7), images, TARGETS)
    gfi = explainer(STANDING, layer)
    now = gfi.explain(images, TARGETS, start=start)
    assert torch.equal(now.weights, before.weights)
    assert torch.equal(now.signs, before.signs)
    inversion = gfi.invert(images, start)
    assert torch.equal(inversion.weights, start.foreground)
    (chunk,) = gfi.invert(images).chunks
    parts = [channels(one) for one in ([layer] if isinstance(layer, str) else layer)]
    foreground = heatmaps_of(chunk, gfi.recipe, start.foreground.split(parts, 1))
    assert torch.equal(now.foreground, foreground)
    for column in range(2):
        signed = [
            weights * signs
            for weights, signs in zip(
                *(one[:, column].split(parts, 1) for one in (before.weights, before.signs)), strict=True
            )
        ]
        torch.testing.assert_close(now.heatmaps[:, column], heatmaps_of(chunk, gfi.recipe, signed), rtol=0, atol=1e-6)
    cold = explainer(STANDING, layer).explain(images, TARGETS)
    assert (now.heatmaps - cold.heatmaps).abs().mean() > 0.01
    assert (now.foreground - cold.foreground).abs().mean() > 0.005


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("recipe", [*RECIPES.values(), TOLERANT], ids=[*RECIPES, "tolerant"])
def test_together_is_one_by_one(layer, recipe):
    """Where only some images, and only some of their targets, have been explained before.

    From what larger steps find, the paper's recipe arrives at empty masks.
    """
    images = random_images(4)
    _, start = found(explainer(ALIKE, layer, seed=7), images, TARGETS)
    start.foreground[0] = torch.nan
    start.weights[0, 1] = torch.nan
    start.weights[2] = torch.nan
    gfi = explainer(recipe, layer)
    together = gfi.explain(images, TARGETS, start=start)
    in_chunks = explainer(recipe, layer, chunk_size=3).explain(images, TARGETS, start=start)
    assert_same(in_chunks, together, rtol=0, atol=1e-8)
    cold = gfi.explain(images, TARGETS)
    for row in range(4):
        own = Start(start.foreground[[row]], start.weights[[row]], start.signs[[row]])
        alone = gfi.explain(images[[row]], TARGETS[[row]], start=own)
        assert_same(alone, together.select(torch.arange(4) == row), rtol=0, atol=1e-8)
    differ = (together.heatmaps - cold.heatmaps).abs().amax((2, 3)) > 1e-6
    assert differ[[0, 1, 1, 3, 3], [0, 0, 1, 0, 1]].all()
    # Unknown pairs go on from stage 1's ω, which is that of a cold one only for the first image.
    assert not differ[0, 1]


@pytest.mark.parametrize("skips_evidence", [True, False])
def test_no_evidence_is_asked_for_where_all_is_known(skips_evidence):
    seen = []
    model = ToyCNN().double()
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    gfi = GuidedFeatureInversion(model, "coarse")
    images = random_images(4)
    _, start = found(gfi, images, 1)
    steps = DEFAULT.inversion_steps + 2 * DEFAULT.target_steps
    cold = 4 * (1 + steps + DEFAULT.evidence_passes)  # the look comes first
    assert sum(seen) == cold
    for known in (True, False):
        seen.clear()
        if not known:
            start.weights[3] = torch.nan
        gfi.explain(images, 1, start=replace(start, skips_evidence=skips_evidence))
        assert sum(seen) == (cold - 4 * 4 if known and skips_evidence else cold)
        assert len(seen) <= sum(gfi.passes(images))


def test_evidence_is_asked_for_by_chunk():
    seen = []
    model = ToyCNN().double()
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    gfi = GuidedFeatureInversion(model, "coarse", recipe=replace(DEFAULT, target_steps=1), chunk_size=2)
    images = random_images(4)
    inversion = gfi.invert(images)
    start = Start.of(inversion, gfi.refine(inversion, 1))
    start.weights[3] = torch.nan
    seen.clear()
    gfi.refine(inversion, 1, start=start)
    assert sum(seen) == 4 + 2 * 4 + 4  # the first chunk, the second one's evidence, and its step


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 0.0])
def test_what_is_of_no_use_is_left(broken):
    images = random_images(3)
    gfi = explainer(layer=["fine", "coarse"])
    _, start = found(gfi, images, 1)
    start.foreground[1] = start.weights[1] = broken
    warm, cold = gfi.explain(images, 1, start=start), gfi.explain(images, 1)
    for name in FIELDS:
        assert torch.equal(getattr(warm, name)[1], getattr(cold, name)[1]), name
        assert torch.isfinite(getattr(warm, name)).all()


def test_a_sample_that_had_no_evidence_starts_cold():
    """And its image, whose features were not finite, has them now."""
    images = random_images(3)
    gfi = explainer()
    blind = images.clone()
    blind[1] = torch.nan
    before, start = found(gfi, blind, TARGETS[:3])
    assert before.degenerate.tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert start.weights.isnan().all(2).tolist() == before.degenerate.tolist()
    warm, cold = gfi.explain(images, TARGETS[:3], start=start), gfi.explain(images, TARGETS[:3])
    assert not warm.degenerate.any()
    torch.testing.assert_close(warm.heatmaps[1], cold.heatmaps[1], rtol=0, atol=1e-6)


def test_channels_that_have_died_since_are_no_start():
    """What was found weighs a single channel, of which nothing is left."""
    images = random_images(3)
    gfi = explainer()
    alone = torch.zeros(3, CHANNELS["coarse"], dtype=torch.float64)
    alone[:, 2] = 1
    start = Start(alone, alone)
    assert not torch.equal(gfi.explain(images, 1, start=start).heatmaps, gfi.explain(images, 1).heatmaps)
    with torch.no_grad():
        gfi._network.model.coarse[1].weight[2] = 0
        gfi._network.model.coarse[1].bias[2] = -1
    assert_same(gfi.explain(images, 1, start=start), gfi.explain(images, 1))


def test_depths_start_from_nothing():
    images = random_images(2)
    gfi = explainer(layers=["fine"])
    _, start = found(explainer(seed=7), images, 1)
    warm, cold = gfi.explain(images, 1, start=start), gfi.explain(images, 1)
    assert torch.equal(warm.depths, cold.depths)
    assert not torch.equal(warm.foreground, cold.foreground)


def test_the_start_is_left_as_it_was():
    images = random_images(2)
    gfi = explainer()
    _, start = found(gfi, images, 1)
    before = [getattr(start, field.name).clone() for field in fields(start) if field.name != "skips_evidence"]
    gfi.explain(images, 1, start=start)
    after = [getattr(start, field.name) for field in fields(start) if field.name != "skips_evidence"]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start(torch.ones(3, 6)), r"start\.foreground has shape \(3, 6\): expected is \(2, K\), a row for each image"),
        (Start(torch.ones(6)), r"start\.foreground has shape \(6,\): expected is \(2, K\)"),
        (
            Start(torch.ones(2, 6), torch.ones(2, 6), torch.ones(2, 6)),
            r"start\.weights and start\.signs have shapes \(2, 6\) and \(2, 6\): expected is \(2, 2, K\), a row for",
        ),
        (Start(torch.ones(2, 6), torch.ones(2, 2, 6), torch.ones(2, 2, 5)), r"shapes \(2, 2, 6\) and \(2, 2, 5\)"),
    ],
)
def test_a_start_of_other_images_is_refused(start, message):
    with pytest.raises(UsageError, match=message):
        explainer().explain(random_images(2), TARGETS[:2], start=start)


def test_only_what_is_known_in_all_layers_takes_steps_of_the_learning_rate():
    """Another recipe, whose steps are the same for all, agrees with the default's in these alone."""
    images = random_images(3)
    layers = ["fine", "coarse"]
    _, start = found(explainer(layer=layers), images, 1)
    start.weights[1, : CHANNELS["fine"]] = torch.nan
    start.weights[2] = torch.nan
    default, alike = (explainer(one, layers).explain(images, 1, start=start).weights for one in (DEFAULT, ALIKE))
    assert ((default - alike).abs().amax(1) < 1e-12).tolist() == [True, False, False]
