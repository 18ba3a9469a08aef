"""Insertion, deletion, average drop and increase in confidence against obvious loops and pytorch-grad-cam."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics import cam_mult_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from sklearn.metrics import auc
from torch import nn

from gfi_lightning import UsageError
from gfi_lightning.inversion.backgrounds import blur, mean
from gfi_lightning.metrics import (
    AverageDrop,
    IncreaseInConfidence,
    InsertionDeletion,
    average_drop,
    increase_in_confidence,
    insertion_deletion,
    scores_on_map,
)
from tests.networks import ToyCNN, random_images

SIZE = 16
TARGETS = torch.tensor([0, 3, 1, 4, 2])
IMAGES = random_images(5)
MAPS = torch.rand(5, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
# Constant parts, and values that tie across them.
MAPS[1, :5], MAPS[2] = 0.25, (4 * MAPS[2]).round() / 4


def toy():
    return ToyCNN().double()


class Counting(nn.Module):
    """Counts its passes, and refuses to be run otherwise than without gradients and in eval mode."""

    def __init__(self):
        super().__init__()
        self.model = toy()
        self.batches = []

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        return self.model(images)


def curve_by_hand(model, image, heatmap, target, steps, background, inserts):
    """One image, one step, one pixel at a time."""
    places = sorted(range(heatmap.numel()), key=lambda place: -float(heatmap.flatten()[place]))  # ties in row order
    scores = []
    for step in range(steps + 1):
        shown = (background if inserts else image).clone()
        for place in places[: round(step * len(places) / steps)]:
            row, column = divmod(place, heatmap.shape[1])
            shown[:, row, column] = (image if inserts else background)[:, row, column]
        scores.append(model(shown[None]).softmax(1)[0, target].item())
    return scores


@pytest.mark.parametrize(("name", "background"), [("blur", blur), ("mean", mean)])
@pytest.mark.parametrize("steps", [1, 5, 14])
def test_curves_against_a_loop(name, background, steps):
    model = toy()
    curves = insertion_deletion(model, IMAGES, MAPS, TARGETS, steps=steps, baseline=name, batch_size=7)
    shares = [round(step * SIZE**2 / steps) / SIZE**2 for step in range(steps + 1)]
    assert curves.shares.tolist() == pytest.approx(shares)
    with torch.no_grad():
        for number in range(5):
            arguments = model, IMAGES[number], MAPS[number], TARGETS[number], steps, background(IMAGES)[number]
            insertion, deletion = curve_by_hand(*arguments, True), curve_by_hand(*arguments, False)
            assert curves.insertion[number].tolist() == pytest.approx(insertion, abs=1e-9)
            assert curves.deletion[number].tolist() == pytest.approx(deletion, abs=1e-9)
            assert curves.insertion_area[number].item() == pytest.approx(auc(shares, insertion), abs=1e-9)
            assert curves.deletion_area[number].item() == pytest.approx(auc(shares, deletion), abs=1e-9)
    assert torch.equal(curves.difference, curves.insertion_area - curves.deletion_area)
    assert curves.insertion.std() > 0.05


def test_the_right_map_wins():
    class Patch(nn.Module):
        """The class is written in one quarter of the image."""

        def forward(self, images):
            bright = images[:, 0, :8, :8].mean((1, 2))
            return torch.stack([bright, -bright], 1) * 5

    images, right = torch.ones(1, 3, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
    right[:, :8, :8] = 1
    options = {"targets": torch.tensor([0]), "steps": 4, "baseline": torch.zeros_like}
    of_right, of_wrong = (insertion_deletion(Patch(), images, one, **options) for one in (right, 1 - right))
    top, bottom = torch.tensor([5.0, -5.0]).softmax(0)[0].item(), 0.5
    assert of_right.insertion[0].tolist() == pytest.approx([bottom, top, top, top, top])
    assert of_right.deletion[0].tolist() == pytest.approx([top, bottom, bottom, bottom, bottom])
    assert of_wrong.insertion[0].tolist() == pytest.approx([bottom, bottom, bottom, bottom, top])
    assert of_right.difference.item() == pytest.approx(0.75 * (top - bottom), abs=1e-6)
    assert of_wrong.difference.item() == pytest.approx(-0.75 * (top - bottom), abs=1e-6)


def test_passes_are_batched_and_none_is_made_twice():
    model = Counting()
    insertion_deletion(model, IMAGES, MAPS, TARGETS, steps=4, batch_size=16)
    assert model.batches == [16, 16, 8]  # 5 images, 2 · 4 points
    model.batches.clear()
    scores_on_map(model, IMAGES, MAPS, TARGETS, batch_size=3)
    assert model.batches == [3, 2, 3, 2]


def test_without_a_batch_size_all_images_share_passes():
    model = Counting()
    insertion_deletion(model, IMAGES, MAPS, TARGETS, steps=4)
    assert model.batches == [32, 8]
    model.batches.clear()
    large = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    insertion_deletion(model, large, large[:, 0], TARGETS[:1], steps=4)
    assert model.batches == [7, 1]  # 400,000 pixels


def test_batches_do_not_matter():
    model = toy()
    expected = insertion_deletion(model, IMAGES, MAPS, TARGETS)
    for number in range(5):
        row = slice(number, number + 1)
        alone = insertion_deletion(model, IMAGES[row], MAPS[row], TARGETS[row], batch_size=3)
        torch.testing.assert_close(alone.insertion, expected.insertion[row])
        torch.testing.assert_close(alone.deletion, expected.deletion[row])


def test_only_the_order_of_the_map_matters():
    model = toy()
    expected = insertion_deletion(model, IMAGES, MAPS, TARGETS)
    torch.testing.assert_close(insertion_deletion(model, IMAGES, 7 * MAPS - 3, TARGETS), expected)


def test_the_model_is_left_as_it_was():
    model = toy().train()
    model.fine.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    insertion_deletion(model, IMAGES, MAPS, TARGETS)
    scores_on_map(model, IMAGES, MAPS, TARGETS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(one.requires_grad and one.grad is None for one in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_function_scores_as_its_model_does():
    model = toy()

    def probabilities(images, targets):
        return model(images).softmax(1).gather(1, targets[:, None])[:, 0]

    torch.testing.assert_close(
        insertion_deletion(probabilities, IMAGES, MAPS, TARGETS), insertion_deletion(model, IMAGES, MAPS, TARGETS)
    )


@pytest.mark.parametrize("score", ["sigmoid", lambda output, targets: output.sum(1).sigmoid()])
def test_other_scores(score):
    model = toy()
    with torch.no_grad():
        output = model(IMAGES)
    expected = output.sum(1).sigmoid() if callable(score) else output.sigmoid().gather(1, TARGETS[:, None])[:, 0]
    curves = insertion_deletion(model, IMAGES, MAPS, TARGETS, score=score)
    torch.testing.assert_close(curves.insertion[:, -1], expected)
    torch.testing.assert_close(curves.deletion[:, 0], expected)
    torch.testing.assert_close(scores_on_map(model, IMAGES, MAPS, TARGETS, score=score).score, expected)


def test_drop_and_increase_against_pytorch_grad_cam():
    model = toy()
    targets = [ClassifierOutputSoftmaxTarget(int(target)) for target in TARGETS]
    maps = MAPS.numpy()
    with torch.no_grad():
        whole = model(IMAGES).softmax(1).gather(1, TARGETS[:, None])[:, 0]
        drops = cam_mult_image.DropInConfidence()(IMAGES, maps, targets, model)
        increases = cam_mult_image.IncreaseInConfidence()(IMAGES, maps, targets, model)
    scores = scores_on_map(model, IMAGES, MAPS, TARGETS, batch_size=2)
    torch.testing.assert_close(scores.score, whole)
    # Theirs is the absolute drop.
    np.testing.assert_allclose(average_drop(*scores).numpy(), drops / whole.numpy(), atol=1e-7)
    assert increase_in_confidence(*scores).tolist() == increases.astype(bool).tolist()
    assert 0 < increases.sum() < 5


def test_what_is_hidden_can_show_a_baseline():
    model = toy()
    expected = IMAGES * MAPS[:, None] + blur(IMAGES) * (1 - MAPS[:, None])
    with torch.no_grad():
        shown = model(expected).softmax(1).gather(1, TARGETS[:, None])[:, 0]
    scores = scores_on_map(model, IMAGES, MAPS, TARGETS, baseline="blur")
    torch.testing.assert_close(scores.score_on_map, shown)


def test_known_drops():
    score, score_on_map = torch.tensor([0.8, 0.5, 0.0, 0.4]), torch.tensor([0.2, 0.9, 0.0, 0.4])
    assert average_drop(score, score_on_map).tolist() == pytest.approx([0.75, 0, 0, 0])
    assert increase_in_confidence(score, score_on_map).tolist() == [False, True, False, False]


def test_the_classes_average_over_images():
    model = toy()
    curves, scores = (function(model, IMAGES, MAPS, TARGETS) for function in (insertion_deletion, scores_on_map))
    metrics = InsertionDeletion(), AverageDrop(), IncreaseInConfidence()
    for part in torch.arange(5).split(3):
        for metric in metrics:
            metric.update(model, IMAGES[part], MAPS[part], TARGETS[part])
    expected = {
        "insertion": curves.insertion_area.mean(),
        "deletion": curves.deletion_area.mean(),
        "difference": curves.difference.mean(),
        "insertion_curve": curves.insertion.mean(0),
        "deletion_curve": curves.deletion.mean(0),
    }
    torch.testing.assert_close(metrics[0].compute(), expected, check_dtype=False)
    torch.testing.assert_close(metrics[1].compute(), average_drop(*scores).mean(), check_dtype=False)
    torch.testing.assert_close(metrics[2].compute(), increase_in_confidence(*scores).float().mean())


def test_under_inference_mode():
    with torch.inference_mode():
        curves = insertion_deletion(toy(), IMAGES.clone(), MAPS.clone(), TARGETS)
    torch.testing.assert_close(curves, insertion_deletion(toy(), IMAGES, MAPS, TARGETS))


MODEL = toy()


@pytest.mark.parametrize("metric", [InsertionDeletion, AverageDrop, IncreaseInConfidence])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MODEL, IMAGES[0], MAPS, TARGETS), r"images are Tensor\(3, 16, 16\)"),
        ((MODEL, (255 * IMAGES).byte(), MAPS, TARGETS), "images are .* of uint8"),
        ((MODEL, IMAGES * torch.nan, MAPS, TARGETS), "images hold NaN"),
        ((MODEL, IMAGES, MAPS[:, :8], TARGETS), r"heatmaps have shape \(5, 8, 16\); expected is \(5, 16, 16\)"),
        ((MODEL, IMAGES, MAPS[:4], TARGETS), r"heatmaps have shape \(4, 16, 16\)"),
        ((MODEL, IMAGES, MAPS * torch.nan, TARGETS), r"heatmaps\[0\] holds NaN"),
        ((MODEL, IMAGES, MAPS, TARGETS[:4]), r"targets have shape \(4,\); expected is \(5,\)"),
        ((MODEL, IMAGES, MAPS, TARGETS.float()), "targets are .*integer tensor"),
        ((MODEL, IMAGES, MAPS, TARGETS + 1), "targets reach from .* to 5, but the model has 5 classes"),
        ((lambda images, targets: images, IMAGES, MAPS, TARGETS), "scoring function returned .*one number for each"),
    ],
)
def test_misuse_of_every_class(metric, arguments, message):
    with pytest.raises(UsageError, match=message):
        metric().update(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InsertionDeletion(steps=0), "steps=0"),
        (lambda: InsertionDeletion(steps=2.5), "steps=2.5 must be a whole number"),
        (lambda: InsertionDeletion(baseline="black"), "baseline='black' is unknown"),
        (lambda: InsertionDeletion(score="logit"), "score='logit' is unknown"),
        (lambda: InsertionDeletion(batch_size=0), "batch_size=0"),
        (lambda: AverageDrop(baseline="black"), "baseline='black' is unknown"),
        (lambda: IncreaseInConfidence(score="logit"), "score='logit' is unknown"),
        (lambda: AverageDrop().update(MODEL, IMAGES, 2 * MAPS, TARGETS), r"scale each to \[0, 1\]"),
        (
            lambda: insertion_deletion(MODEL, IMAGES, MAPS, TARGETS, baseline=torch.sum),
            r"baseline= returned Tensor\(\)",
        ),
        (lambda: average_drop(torch.tensor([0.5]), torch.tensor([0.5, 0.1])), "expected are two floating point"),
        (lambda: average_drop(torch.tensor([-0.5]), torch.tensor([0.5])), "down to -0.5; expected are probabilities"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(UsageError, match=message):
        call()
