"""Why this class rather than that one: what a model that knew only these two would answer."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.recipes import RECIPES
from gfi_lightning.inversion.scores import log_odds, target_scores
from tests.inversion.test_guided import SHORT, STAGE_1, STAGE_2, count_calls
from tests.networks import ToyCNN, random_images

FIELDS = ("heatmaps", "score", "preserved", "removed", "weights")


class OnlyTwo(nn.Module):
    """The same network, but for the two classes that each image is asked about."""

    def __init__(self, model, targets, against):
        super().__init__()
        self.model, self.pairs = model, torch.stack([targets, against], 1)

    def forward(self, images):
        pairs = self.pairs.repeat(-(-len(images) // len(self.pairs)), 1)[: len(images)]  # kept and removed images
        return self.model(images).gather(1, pairs)


@pytest.mark.parametrize("recipe", [SHORT, replace(RECIPES["release"], inversion_steps=3, target_steps=4)])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_it_is_the_softmax_of_the_two(recipe, score):
    model, images = ToyCNN().double(), random_images(4)
    targets, against = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 0, 1, 1])
    contrast = GuidedFeatureInversion(model, recipe=recipe, score=score).explain(images, targets, against=against)
    two = GuidedFeatureInversion(OnlyTwo(model, targets, against), recipe=recipe).explain(images, 0)
    for name in FIELDS:
        torch.testing.assert_close(getattr(contrast, name), getattr(two, name), rtol=0, atol=1e-8)
    plain = GuidedFeatureInversion(model, recipe=recipe, score=score).explain(images, targets)
    assert (contrast.heatmaps - plain.heatmaps).abs().amax((1, 2)).min() > 1e-4
    assert torch.equal(contrast.against, against)


class SingleLogit(ToyCNN):
    """Two classes by the logit of one."""

    def forward(self, images):
        return super().forward(images)[:, :1]


@pytest.mark.parametrize("recipe", ["default", SHORT], ids=["default", "short"])
def test_a_single_logit_is_explained_as_its_twin_with_two(recipe):
    class BothLogits(SingleLogit):
        def forward(self, images):
            logit = super().forward(images)
            return torch.cat([3 - logit, 3 + logit], 1) / 2

    images, targets = random_images(3), torch.tensor([0, 1, 1])
    single = GuidedFeatureInversion(SingleLogit().double(), recipe=recipe)
    both = GuidedFeatureInversion(BothLogits().double(), recipe=recipe)
    for against in (None, 1 - targets):
        found = single.explain(images, targets, against=against)
        for name, value in vars(both.explain(images, targets, against=against)).items():
            if name in FIELDS:
                torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=1e-8)
    assert torch.equal(single.invert(images).predicted, both.invert(images).predicted)
    assert torch.equal(single.invert(images).runner_up(), both.invert(images).runner_up())


def test_of_a_single_logit_it_is_the_class_against_the_other():
    class BothLogits(SingleLogit):
        def forward(self, images):
            logit = super().forward(images)
            return torch.cat([-logit, logit], 1) / 2

    images, targets = random_images(3), torch.tensor([0, 1, 1])
    single = GuidedFeatureInversion(SingleLogit().double(), recipe=SHORT, score="sigmoid")
    both = GuidedFeatureInversion(BothLogits().double(), recipe=SHORT)
    contrast = single.explain(images, targets, against=1 - targets)
    for name, value in vars(both.explain(images, targets)).items():
        if name in FIELDS:
            torch.testing.assert_close(getattr(contrast, name), value, rtol=0, atol=1e-8)
    torch.testing.assert_close(contrast.score, single.explain(images, targets).score)
    assert single.invert(images).runner_up().tolist() == (1 - single.invert(images).predicted).tolist()


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_scores_are_the_probability_if_it_were_either_of_the_two(score):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, against = torch.tensor([0, 1, 4, 2]), torch.tensor([3, 0, 2, 1])
    p = target_scores(logits, targets, score, against)
    for row, (target, other) in enumerate(zip(targets, against, strict=True)):
        powers = logits[row].exp()
        torch.testing.assert_close(p[row], powers[target] / (powers[target] + powers[other]))
    torch.testing.assert_close(log_odds(logits, targets, score, against), (p / (1 - p)).log())


def test_several_contrasts_for_an_image_are_each_on_its_own():
    model, images = ToyCNN().double(), random_images(5)
    targets = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]])
    against = torch.tensor([[1, 0], [3, 0], [1, 1], [2, 2], [0, 2]])
    gfi = GuidedFeatureInversion(model, recipe=SHORT, chunk_size=3)
    together = gfi.explain(images, targets, against=against)
    for column in range(2):
        alone = gfi.explain(images, targets[:, column], against=against[:, column])
        torch.testing.assert_close(together.heatmaps[:, column], alone.heatmaps, rtol=0, atol=1e-8)
        torch.testing.assert_close(together.score[:, column], alone.score)
    assert torch.equal(together.select(torch.tensor([1, 0, 0, 0, 1]).bool()).against, against[[0, 4]])
    one_for_all = gfi.explain(images, torch.tensor([0, 1, 2, 4, 4]), against=3)
    assert one_for_all.against.tolist() == [3] * 5


def test_of_a_callable_score_it_is_the_difference():
    def logit(output, targets):
        return output.gather(1, targets[:, None]).squeeze(1)

    model, images = ToyCNN().double(), random_images(4)
    targets, against = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]]), torch.tensor([[1, 0], [3, 0], [1, 1], [2, 2]])
    gfi = GuidedFeatureInversion(model, recipe=SHORT, score=logit, chunk_size=3)
    explanation = gfi.explain(images, targets, against=against)
    logits = model(images)
    torch.testing.assert_close(explanation.score, logits.gather(1, targets) - logits.gather(1, against))
    # The log-odds of one class against another are that very difference.
    softmax = GuidedFeatureInversion(model, recipe=SHORT, chunk_size=3).explain(images, targets, against=against)
    torch.testing.assert_close(explanation.heatmaps, softmax.heatmaps, rtol=0, atol=1e-8)


def test_it_costs_what_a_target_costs():
    model, images = ToyCNN(), random_images(4, dtype=torch.float32)
    calls = count_calls(model)
    GuidedFeatureInversion(model, "coarse", recipe=SHORT).explain(images, 0, against=1)
    assert calls[model] == 1 + STAGE_1 + STAGE_2


def test_the_runner_up_is_another_class_whatever_the_logits():
    model = ToyCNN().double()
    gfi, images = GuidedFeatureInversion(model, recipe=SHORT), random_images(4)
    expected = model(images).sort(1, descending=True).indices[:, 1]
    assert torch.equal(gfi.invert(images).runner_up(), expected)
    last = model.head[3]
    last.weight.data.zero_()
    for bias in ([0.0] * 5, [0.0, -torch.inf, -torch.inf, -torch.inf, -torch.inf], [torch.nan] * 5, [torch.inf] * 5):
        last.bias.data.copy_(torch.tensor(bias))
        inversion = gfi.invert(images)
        assert (inversion.runner_up() != inversion.predicted).all(), bias
        explanation = gfi.refine(inversion, inversion.predicted, inversion.runner_up())
        assert torch.isfinite(explanation.heatmaps).all()


@pytest.mark.parametrize(
    ("targets", "against", "message"),
    [
        ([0, 1], [1, 1], "contrasted with itself: class 1 is in targets and, there, in against"),
        ([0, 1], [1, 5], "^against reach from 1 to 5, but the model has 5 classes: use against from 0 to 4"),
        ([0, 1], [1, 2, 3], r"against has shape \(3,\), and the targets have shape \(2,\): give one class to contrast"),
        ([0, 1], [1.0, 2.0], r"against are Tensor\(2,\) of float32; expected are class indices \(integers\)"),
        ([[0, 1], [1, 2]], [1, 2], r"against has shape \(2,\), and the targets have shape \(2, 2\)"),
    ],
)
def test_misuse(targets, against, message):
    gfi, images = GuidedFeatureInversion(ToyCNN(), recipe=SHORT), random_images(2, dtype=torch.float32)
    with pytest.raises(UsageError, match=message):
        gfi.explain(images, torch.tensor(targets), against=torch.tensor(against))
