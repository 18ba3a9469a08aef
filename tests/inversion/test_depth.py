"""Each depth is stage 1 with that layer alone; all are looked at in one pass, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.recipes import RECIPES
from tests.inversion.test_guided import SHORT, STAGE_1, STAGE_2, FrozenBackbone, count_calls
from tests.networks import ToyCNN, random_images

LAYERS = ["fine.0", "fine", "coarse"]


@pytest.mark.parametrize("recipe", [SHORT, replace(RECIPES["release"], inversion_steps=3, target_steps=1)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_each_depth_is_stage_1_with_that_layer_alone(recipe, chunk_size):
    model, images = ToyCNN().double(), random_images(5)
    together = GuidedFeatureInversion(model, layers=LAYERS, recipe=recipe, chunk_size=chunk_size).explain(images)
    assert together.depths.shape == (5, 3, 16, 16)
    assert together.depths.dtype == torch.float32
    for number, layer in enumerate(LAYERS):
        alone = GuidedFeatureInversion(model, layer, recipe=recipe, chunk_size=chunk_size).invert(images)
        assert torch.equal(together.depths[:, number], alone.foreground)
        assert alone.foreground.any()


def test_all_else_is_as_without():
    model, images = ToyCNN().double(), random_images(3)
    targets = torch.tensor([[0, 1], [1, 2], [4, 3]])
    without = GuidedFeatureInversion(model, recipe=SHORT).explain(images, targets)
    with_depths = GuidedFeatureInversion(model, layers=LAYERS, recipe=SHORT).explain(images, targets)
    assert without.depths is None
    for name in ("heatmaps", "foreground", "score", "preserved", "removed", "weights", "degenerate"):
        assert torch.equal(getattr(with_depths, name), getattr(without, name))


def test_they_share_the_look_and_run_no_further_than_their_layer():
    model, images = ToyCNN(), random_images(4, dtype=torch.float32)
    calls = count_calls(model, model.fine, model.coarse, model.head)
    GuidedFeatureInversion(model, "coarse", layers=LAYERS, recipe=SHORT).explain(images, torch.zeros(4, 2).long())
    own = 1 + STAGE_1 + STAGE_2
    assert calls[model] == calls[model.fine] == own + 3 * STAGE_1
    assert calls[model.coarse] == own + STAGE_1
    assert calls[model.head] == 1 + STAGE_2


def test_names_resolutions_and_a_selection():
    model, images = ToyCNN().double(), random_images(5)
    gfi = GuidedFeatureInversion(model, layers=[model.fine, "coarse"], recipe=SHORT, chunk_size=2)
    inversion, chosen = gfi.invert(images), torch.tensor([False, True, True, False, True])
    assert gfi.layers == inversion.depths.layers == ("fine", "coarse")
    assert inversion.depths.grids == [(16, 16), (8, 8)]
    whole, part = gfi.refine(inversion, 0), gfi.refine(inversion.select(chosen), 0)
    assert torch.equal(part.depths, whole.depths[chosen])
    assert torch.equal(whole.select(chosen).depths, whole.depths[chosen])
    assert GuidedFeatureInversion(model).layers == ()
    assert GuidedFeatureInversion(model, layers=model.fine).layers == ("fine",)


class SharedReLU(nn.Module):
    """Calls one module at two depths, and lets it work in place."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
            self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, images):
        return self.head(self.relu(self.second(self.relu(self.first(images)))).mean((2, 3)))


class NamedReLUs(SharedReLU):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Identity(), nn.Identity()

    def forward(self, images):
        maps = self.one(self.relu(self.first(images)))
        return self.head(self.two(self.relu(self.second(maps))).mean((2, 3)))


def test_two_calls_of_one_module():
    images = random_images(3)
    calls = GuidedFeatureInversion(SharedReLU().double(), layers=["relu:1", "relu:2"], recipe=SHORT).explain(images)
    names = GuidedFeatureInversion(NamedReLUs().double(), layers=["one", "two"], recipe=SHORT).explain(images)
    torch.testing.assert_close(calls.depths, names.depths)
    assert not torch.allclose(calls.depths[:, 0], calls.depths[:, 1])


def test_a_backbone_that_is_run_under_no_grad():
    images = random_images(2, dtype=torch.float32)
    explanation = GuidedFeatureInversion(FrozenBackbone(), layers=LAYERS, recipe=SHORT).explain(images)
    expected = GuidedFeatureInversion(ToyCNN(), layers=LAYERS, recipe=SHORT).explain(images)
    assert torch.equal(explanation.depths, expected.depths)


def test_a_depth_that_is_dead_is_empty_and_harms_no_other():
    model, images = ToyCNN().double(), random_images(2)
    expected = GuidedFeatureInversion(model, layers=["fine.0"], recipe=SHORT).invert(images)
    model.fine[1].weight.data.zero_()
    model.fine[1].bias.data.fill_(-1.0)
    depths = GuidedFeatureInversion(model, layers=LAYERS, recipe=SHORT).explain(images, 0).depths
    torch.testing.assert_close(depths[:, 0], expected.depths.heatmaps[0])
    assert not depths[:, 1:].any()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"layers=\[\] names no layer: give one or several, or None"),
        ([nn.ReLU()], r"layers=ReLU\(\.\.\.\) is not part of this model"),
        (["fine", "layer4"], r"^layers='layer4' does not exist\. Usable layers \(.*\):\n  fine\.0: 8 × 16 × 16\n"),
        (["fine", "head.3"], r"^layers='head\.3' returns shape \(2, 5\), which has no spatial extent\. Usable layers"),
        (["spare"], r"^layers='spare' is not run in a forward pass\. Usable layers"),
    ],
)
def test_misuse(layers, message):
    model = ToyCNN()
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(UsageError, match=message):
        GuidedFeatureInversion(model, layers=layers, recipe=SHORT).explain(random_images(2, dtype=torch.float32))
