"""A batch is many problems of their own; nothing is computed that is not needed, and nothing is left behind."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.masks import normalize_then_upsample
from gfi_lightning.inversion.recipes import RECIPES
from tests.inversion.reference import capture
from tests.networks import ToyCNN, random_images

SHORT = replace(RECIPES["default"], inversion_steps=3, target_steps=4)
STAGE_1, STAGE_2 = 3, 1 + 4  # passes; that for the evidence takes all noisy copies of so few images at once


def count_calls(*modules):
    counts = dict.fromkeys(modules, 0)

    def count(module, args):
        counts[module] += 1

    for module in modules:
        module.register_forward_pre_hook(count)
    return counts


# On a toy network the paper's penalties, made for VGG, drive ω to the brink of 0, where the mask is a quotient of
# rounding errors: at full strength up to 2e-6 were measured between batch sizes, in float64.
LENIENT_PAPER = replace(RECIPES["paper"], inversion_penalty=0.1, target_penalty=0.01)


@pytest.mark.parametrize("recipe", ["default", "release", LENIENT_PAPER], ids=["default", "release", "paper"])
def test_together_is_one_by_one(recipe):
    model, images = ToyCNN().double().train(), random_images(16, seed=2)
    gfi = GuidedFeatureInversion(model, recipe=recipe)
    together = gfi.explain(images)
    assert not together.degenerate.all()
    alone = [gfi.explain(images[number : number + 1]) for number in range(16)]
    for name in ("heatmaps", "foreground", "weights", "score", "preserved", "removed"):
        one_by_one = torch.cat([getattr(explanation, name) for explanation in alone])
        torch.testing.assert_close(getattr(together, name), one_by_one, rtol=0, atol=1e-8)


def test_targets_side_by_side_are_targets_on_their_own():
    model, images = ToyCNN().double(), random_images(4)
    targets = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 4]])
    gfi = GuidedFeatureInversion(model, recipe=SHORT)
    together = gfi.explain(images, targets)
    assert together.heatmaps.shape == (4, 3, 16, 16)
    assert together.weights.shape == (4, 3, 8 + 6)  # both base layers
    assert together.foreground.shape == (4, 16, 16)
    for column in range(3):
        alone = gfi.explain(images, targets[:, column])
        torch.testing.assert_close(together.heatmaps[:, column], alone.heatmaps, rtol=0, atol=1e-8)
        torch.testing.assert_close(together.removed[:, column], alone.removed, rtol=0, atol=1e-8)


@pytest.mark.parametrize("chunk_size", [1, 3, 5])
def test_chunks_change_nothing_but_rounding(chunk_size):
    model, images = ToyCNN().double(), random_images(5)
    targets = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]])
    whole = GuidedFeatureInversion(model, recipe=SHORT).explain(images, targets)
    parts = GuidedFeatureInversion(model, recipe=SHORT, chunk_size=chunk_size).explain(images, targets)
    torch.testing.assert_close(parts.heatmaps, whole.heatmaps, rtol=0, atol=1e-8)
    torch.testing.assert_close(parts.foreground, whole.foreground, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("chunk_size", "expected"), [(None, [20]), (5, [10, 10]), (3, [6, 6, 6, 2])])
def test_so_many_noisy_copies_at_once_as_images_in_a_step(chunk_size, expected):
    model, sizes = ToyCNN(), []
    gfi = GuidedFeatureInversion(model, "coarse", recipe=SHORT, chunk_size=chunk_size)
    inversion = gfi.invert(random_images(5, dtype=torch.float32))
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    gfi.refine(inversion, 0)
    steps = [6] * 4 + [4] * 4 if chunk_size == 3 else [10] * 4
    assert sorted(sizes) == sorted(expected + steps)


@pytest.mark.parametrize("layer", [None, "coarse", "fine"])
@pytest.mark.parametrize("targets", [1, 3])
def test_forward_passes(layer, targets):
    model, images = ToyCNN(), random_images(4, dtype=torch.float32)
    calls = count_calls(model, model.fine, model.coarse, model.head)
    gfi = GuidedFeatureInversion(model, layer, inversion_layer="coarse", recipe=SHORT)
    gfi.explain(images, torch.zeros(4, targets, dtype=torch.long))
    assert calls[model] == calls[model.fine] == calls[model.coarse] == 1 + STAGE_1 + STAGE_2
    assert calls[model.head] == 1 + STAGE_2  # stage 1 runs nothing behind the inversion layer


def test_stage_1_stops_at_an_inversion_layer_in_front_of_the_base_layer():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    calls = count_calls(model.fine, model.pool, model.coarse)
    GuidedFeatureInversion(model, "coarse", inversion_layer="fine", recipe=SHORT).explain(images)
    assert calls[model.fine] == 1 + STAGE_1 + STAGE_2
    assert calls[model.pool] == calls[model.coarse] == 1 + STAGE_2


def test_a_layer_that_runs_several_times_counts_with_its_last_output():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.start = nn.Conv2d(3, 4, 3, padding=1)
            self.block = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, images):
            maps = self.block(self.block(self.start(images)))
            return self.head(maps.mean((2, 3)))

    torch.manual_seed(0)
    model, images = Shared().double(), random_images(2)
    calls = count_calls(model.block, model.head)
    explanation = GuidedFeatureInversion(model, "block", recipe=SHORT).explain(images)
    assert calls[model.block] == 2 * (1 + STAGE_1 + STAGE_2)
    assert calls[model.head] == 1 + STAGE_2
    # The same maps by another name
    model.last = nn.Identity()
    model.forward = lambda x: model.head(model.last(model.block(model.block(model.start(x)))).mean((2, 3)))
    named = GuidedFeatureInversion(model, "last", recipe=SHORT).explain(images)
    torch.testing.assert_close(explanation.heatmaps, named.heatmaps)


def test_no_parameter_gets_a_gradient():
    model = ToyCNN()
    received = []
    for parameter in model.parameters():
        parameter.register_hook(received.append)
    GuidedFeatureInversion(model, recipe=SHORT).explain(random_images(2, dtype=torch.float32))
    assert received == []
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_scores_are_those_of_the_blended_images():
    # A single step has a mask that can be computed by hand: that of uniform ω.
    model, images = ToyCNN().double(), random_images(3)
    recipe = replace(RECIPES["paper"], inversion_steps=0, target_steps=1)
    targets = torch.tensor([0, 1, 2])
    explanation = GuidedFeatureInversion(model, "coarse", recipe=recipe, background="mean").explain(images, targets)
    maps = model.coarse(model.pool(model.fine(images))).sum(1, keepdim=True)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    mask = nn.functional.interpolate((maps - low) / (high - low), size=(16, 16), mode="bilinear")
    color = images.mean((2, 3), keepdim=True)
    for name, mixed in (
        ("score", images),
        ("preserved", images * mask + color * (1 - mask)),
        ("removed", images * (1 - mask) + color * mask),
    ):
        expected = model(mixed).softmax(1).gather(1, targets[:, None]).squeeze(1)
        torch.testing.assert_close(getattr(explanation, name), expected)


def test_stage_1_alone():
    model, images = ToyCNN().double(), random_images(2)
    stage_1 = replace(SHORT, target_steps=0, evidence_passes=0)
    explanation = GuidedFeatureInversion(model, recipe=stage_1).explain(images)
    torch.testing.assert_close(explanation.heatmaps, explanation.foreground)
    assert (explanation.preserved > 0).all()


def test_select_goes_on_from_the_same_stage_1():
    model, images = ToyCNN().double(), random_images(5)
    gfi = GuidedFeatureInversion(model, recipe=SHORT, chunk_size=2)
    inversion = gfi.invert(images)
    chosen = torch.tensor([False, True, True, False, True])
    targets = torch.tensor([3, 1, 2])
    whole = gfi.refine(inversion, torch.tensor([0, 3, 1, 0, 2]))
    part = gfi.refine(inversion.select(chosen), targets)
    torch.testing.assert_close(part.heatmaps, whole.heatmaps[chosen])
    torch.testing.assert_close(part.foreground, whole.foreground[chosen])
    torch.testing.assert_close(part.score, whole.score[chosen])


def test_results_and_conventions():
    model, images = ToyCNN(), random_images(3, dtype=torch.float32)
    gfi = GuidedFeatureInversion(model, recipe=SHORT)
    explanation = gfi.explain(images)
    assert torch.equal(explanation.targets, model(images).argmax(1))
    assert explanation.heatmaps.dtype == explanation.foreground.dtype == torch.float32
    assert explanation.heatmaps.min() >= 0
    assert explanation.heatmaps.max() <= 1
    assert not explanation.heatmaps.requires_grad
    assert (explanation.weights >= 0).all()
    assert explanation.degenerate.dtype == torch.bool
    assert gfi.layer == ("fine", "coarse")
    assert explanation.against is None
    assert explanation.depths is None
    assert torch.equal(gfi.attribute(images, 2)[:, 0], gfi.explain(images, torch.tensor([2, 2, 2])).heatmaps)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    explanation = GuidedFeatureInversion(model, recipe=SHORT).explain(torch.rand(2, channels, 12, 20))
    assert explanation.heatmaps.shape == (2, 12, 20)


def test_within_inference_mode_and_with_a_batch_out_of_it():
    model = ToyCNN()
    with torch.inference_mode():
        images = random_images(2, dtype=torch.float32)
        inside = GuidedFeatureInversion(model, recipe=SHORT).explain(images)
    outside = GuidedFeatureInversion(model, recipe=SHORT).explain(images.clone())
    assert torch.equal(inside.heatmaps, outside.heatmaps)


def test_half_precision_gives_nearly_the_same_map():
    images = random_images(4, dtype=torch.float32)
    full = GuidedFeatureInversion(ToyCNN(), recipe=SHORT).explain(images, 0)
    half = GuidedFeatureInversion(ToyCNN().bfloat16(), recipe=SHORT).explain(images.bfloat16(), 0)
    assert half.heatmaps.dtype == torch.float32
    assert (half.heatmaps - full.heatmaps).abs().mean() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    gfi, images = GuidedFeatureInversion(ToyCNN(), layers=["fine"]), random_images(4, dtype=torch.float32)
    full = gfi.explain(images, 0)
    with torch.autocast("cpu", dtype=dtype):
        mixed = gfi.explain(images, 0)
        in_stages = gfi.refine(gfi.invert(images), 0)
        assert torch.is_autocast_enabled("cpu")
    for name in ("heatmaps", "foreground", "depths", "weights", "score", "removed"):
        assert torch.equal(getattr(mixed, name), getattr(full, name))
        assert torch.equal(getattr(in_stages, name), getattr(full, name))


class NeedsAutocast(nn.Module):
    """Its own code rounds to half precision, and leaves the weights to autocast."""

    def __init__(self):
        super().__init__()
        self.inner = ToyCNN()

    def forward(self, images):
        return self.inner(images.bfloat16())


def test_a_model_that_fails_without_autocast_has_it():
    images = random_images(2, dtype=torch.float32)
    gfi = GuidedFeatureInversion(NeedsAutocast(), layers=["inner.fine", "inner.coarse"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explanation = gfi.explain(images, 0)
    assert explanation.heatmaps.amax((1, 2)).eq(1).all()
    assert (explanation.depths.amax((2, 3)) > 0.5).all()
    with pytest.raises(RuntimeError, match="should be the same"):  # there is none
        gfi.explain(images, 0)


class AlwaysFails(ToyCNN):
    def __init__(self, error):
        super().__init__()
        self.errors = [error, RuntimeError("of autocast")]

    def forward(self, images):
        raise self.errors.pop(0)


@pytest.mark.parametrize(("kind", "tries"), [(ValueError, 2), (torch.OutOfMemoryError, 1)])
def test_what_fails_under_autocast_as_well_is_told_as_it_was_at_first(kind, tries):
    model = AlwaysFails(kind("the reason"))
    gfi = GuidedFeatureInversion(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(kind, match="the reason"):
        gfi.explain(random_images(1, dtype=torch.float32), 0)
    assert len(model.errors) == 2 - tries
    assert not gfi.capacity.learned["needs_autocast"]


def test_passes_are_told_before_the_first_explanation():
    model, images = ToyCNN(), random_images(1, dtype=torch.float32)
    gfi = GuidedFeatureInversion(model)
    told = gfi.passes(images)
    counts = count_calls(model)
    gfi.explain(images, 0)
    assert told == gfi.passes(images)
    assert sum(told) == counts[model]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "papr"}, "recipe='papr' is unknown: use one of default, paper, release"),
        ({"score": "logit"}, "score='logit' is unknown"),
        ({"background": "white"}, "background='white' is unknown: use one of blur, mean, noise"),
        ({"chunk_size": 0}, "chunk_size=0 must be a whole number, at least 1"),
        ({"layer": nn.ReLU()}, r"layer=ReLU\(\.\.\.\) is not part of this model"),
    ],
)
def test_misuse_of_the_constructor(arguments, message):
    with pytest.raises(UsageError, match=message):
        GuidedFeatureInversion(ToyCNN(), **arguments)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.zeros(3, 16, 16), None, r"images are Tensor\(3, 16, 16\) of float32; expected is .* \(N, C, H, W\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), None, "images are .* of uint8"),
        (torch.zeros(0, 3, 16, 16), None, r"images are Tensor\(0, 3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16), torch.tensor([0, 5]), "targets reach from 0 to 5, but the model has 5 classes"),
        (torch.zeros(2, 3, 16, 16), torch.tensor([0, -1]), "targets reach from -1 to 0"),
        (torch.zeros(2, 3, 16, 16), torch.tensor([0, 1, 2]), r"targets have shape \(3,\) for 2 images"),
        (torch.zeros(2, 3, 16, 16), torch.tensor([0.0, 1.0]), "targets are .* of float32; expected are class indices"),
    ],
)
def test_misuse_of_explain(images, targets, message):
    with pytest.raises(UsageError, match=message):
        GuidedFeatureInversion(ToyCNN()).explain(images, targets)


def test_attribute_takes_one_target_per_image():
    with pytest.raises(UsageError, match="one target per image"):
        GuidedFeatureInversion(ToyCNN(), recipe=SHORT).attribute(
            random_images(2, dtype=torch.float32), torch.zeros(2, 2, dtype=torch.long)
        )


class FrozenBackbone(ToyCNN):
    """Runs its features as the transfer learning tutorials do."""

    def forward(self, images):
        with torch.no_grad():
            features = self.pool(self.fine(images))
        return self.head(self.coarse(features))


class Detached(ToyCNN):
    def forward(self, images):
        return self.head(self.coarse(self.pool(self.fine(images))).detach())


@pytest.mark.parametrize("layer", ["fine", "coarse"])
def test_a_backbone_that_is_run_under_no_grad(layer):
    images = random_images(2, dtype=torch.float32)
    explanation = GuidedFeatureInversion(FrozenBackbone(), layer, recipe=SHORT).explain(images)
    expected = GuidedFeatureInversion(ToyCNN(), layer, recipe=SHORT).explain(images)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)
    assert torch.is_grad_enabled()


def test_a_gradient_that_is_cut_for_good():
    with pytest.raises(UsageError, match=r"Detached cuts the gradient .* Give forward="):
        GuidedFeatureInversion(Detached(), recipe=SHORT).explain(random_images(2, dtype=torch.float32))


def test_a_relu_that_the_head_uses_again():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)
            self.relu = nn.ReLU()
            self.hidden, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, images):
            maps = self.relu(self.convolution(images))
            return self.last(self.relu(self.hidden(maps.mean((2, 3)))))

    torch.manual_seed(0)
    model, images = Shared().double(), random_images(4)
    gfi = GuidedFeatureInversion(model, recipe=SHORT)
    first, second = gfi.explain(images, 0), gfi.explain(images, 0)
    assert gfi.layer == "relu"
    assert torch.equal(first.heatmaps, second.heatmaps)
    chunks = GuidedFeatureInversion(model, "relu", recipe=SHORT, chunk_size=1).explain(images, 0)
    torch.testing.assert_close(first.heatmaps, chunks.heatmaps)


def test_signs_and_weights_make_the_mask():
    model, images = ToyCNN().double(), random_images(2)
    recipe = replace(SHORT, resolutions=1, unit_range=False)
    gfi = GuidedFeatureInversion(model, layer="fine", recipe=recipe)
    explanation = gfi.explain(images, torch.tensor([0, 1]))
    signs = explanation.signs.double()
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert (explanation.weights >= 0).all()
    maps = capture(model, "fine", images)[0]
    total = (signs * explanation.weights)[:, :, None, None] * maps
    expected = normalize_then_upsample(total.sum(1, keepdim=True), (16, 16))[:, 0]
    torch.testing.assert_close(explanation.heatmaps, expected.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_steps": 2.5}, r"target_steps=2.5 must be a whole number"),
        ({"evidence_passes": -1}, r"evidence_passes=-1 must be a whole number, at least 0"),
        ({"evidence_passes": 3}, r"evidence_passes=3 must be even"),
        ({"tolerance": -0.1}, r"tolerance=-0.1 must be a number, at least 0"),
        ({"evidence_noise": -0.1}, r"evidence_noise=-0.1 must be a number, at least 0"),
        ({"coarsest_power": 0}, r"coarsest_power=0 must be a positive number"),
        ({"initial_weight": 0}, r"initial_weight=0 must be a positive number"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan must be a positive number"),
        ({"reference_signal_to_noise": -1.0}, r"reference_signal_to_noise=-1.0 must be a number, at least 0"),
        ({"largest_learning_rate": 0}, r"largest_learning_rate=0 must be a positive number"),
        ({"learning_rate": "0.1"}, r"learning_rate='0.1' must be a positive number"),
        ({"reference_signal_to_noise": None}, r"reference_signal_to_noise=None must be a number, at least 0"),
        ({"learning_rate": True}, r"learning_rate=True must be a positive number"),
        ({"target_penalty": -1.0}, r"target_penalty=-1.0 must be a number, at least 0"),
        ({"multilabel_target_penalty": "10"}, r"multilabel_target_penalty='10' must be a number, at least 0"),
        ({"target_area_penalty": float("nan")}, r"target_area_penalty=nan must be a finite number"),
        ({"largest_learning_rate": 0.1}, r"largest_learning_rate=0.1 is below learning_rate=0.16: raise"),
    ],
    ids=str,
)
def test_what_is_no_recipe(options, message):
    with pytest.raises(UsageError, match=message):
        replace(SHORT, **options)
