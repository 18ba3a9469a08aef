"""Does the model depend on what a map points at? Take it away, or put it back, and look at the score."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError, check_count
from gfi_lightning.guard import undisturbed
from gfi_lightning.inversion.backgrounds import Background, background_function
from gfi_lightning.inversion.network import Network
from gfi_lightning.inversion.scores import (
    ScoreFunction,
    at_least_float32,
    check_score,
    check_targets,
    describe,
    target_scores,
)
from gfi_lightning.metrics.checks import (
    check_unit_range,
    checked_images,
    checked_indices,
    checked_maps_of_images,
)
from gfi_lightning.metrics.means import ImageMeans

Scorer = Callable[[Tensor, Tensor], Tensor]
"""From images (n, C, H, W) and targets (n,) to one score each, shape (n,)."""

_LARGEST_BATCH = 32
_LARGEST_BATCH_ON_CPU = 400_000  # pixels: larger ones leave the caches, and take longer per image


class Curves(NamedTuple):
    """What :func:`insertion_deletion` returns.

    Attributes:
        shares: of the pixels that were put back or taken away, shape (steps + 1,), from 0 to 1.
        insertion: the score with so many of the most important pixels put back, shape (N, steps + 1).
        deletion: the score with so many of the most important pixels taken away, shape (N, steps + 1).
        insertion_area: the area under the insertion curve, shape (N,): the mean score over all shares.
        deletion_area: the area under the deletion curve, shape (N,).
    """

    shares: Tensor
    insertion: Tensor
    deletion: Tensor
    insertion_area: Tensor
    deletion_area: Tensor

    @property
    def difference(self) -> Tensor:
        """Insertion − deletion, shape (N,): the more, the better is the map; 0 is expected of a random one."""
        return self.insertion_area - self.deletion_area


def insertion_deletion(
    model: nn.Module | Scorer,
    images: Tensor,
    heatmaps: Tensor,
    targets: Tensor,
    *,
    steps: int = 14,
    baseline: str | Background = "blur",
    score: str | ScoreFunction = "softmax",
    batch_size: int | None = None,
) -> Curves:
    """Insertion and deletion (Petsiuk et al. 2018, "RISE").

    Pixels are ranked by the map, equal ones in row order. Deletion replaces the most important k / steps of them by
    the baseline, k = 0..steps; insertion starts from the baseline and puts the most important k / steps back. The
    area under a curve is that of trapezoids over the share of pixels. Its ends are the same for both curves and
    measured once: 2 · steps forward passes per image, which are batched over images and steps.

    Args:
        model: a model, which is run in eval mode and left as it was found; or a function from images
            (n, C, H, W) and targets (n,) to one score each.
        images: shape (N, C, H, W), floating point, as the model sees them.
        heatmaps: shape (N, H, W), floating point; only the order of their values matters.
        targets: shape (N,), class indices.
        steps: in how many steps all pixels go.
        baseline: "blur" (as the method's background), "mean" (the image's own mean colour), "noise", or a callable
            on images; see :mod:`gfi_lightning.inversion.backgrounds`.
        score: "softmax", "sigmoid" or a callable from the model's output and the targets to one number each; not
            used where ``model`` is a function.
        batch_size: images in one forward pass; None: 32, and on a CPU no more than 400,000 pixels.

    Returns:
        The curves and the areas under them. The areas are in [0, 1] where the scores are.

    Raises:
        UsageError: shapes or types that do not fit, NaN, targets that the model does not have, or an unknown
            baseline or score.

    Example:
        >>> brightness = lambda images, targets: images.mean((1, 2, 3))
        >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
        >>> curves = insertion_deletion(brightness, images, images[:, 0], torch.tensor([0]), steps=4,
        ...                             baseline=torch.zeros_like)
        >>> curves.insertion, curves.deletion
        (tensor([[0.0000, 0.2500, 0.2500, 0.2500, 0.2500]]), tensor([[0.2500, 0.0000, 0.0000, 0.0000, 0.0000]]))
    """
    images = checked_images(images)
    ranks = _importance_ranks(checked_maps_of_images(heatmaps, images))
    targets = checked_indices(targets, len(images), "targets").to(images.device)
    _check_options(steps, baseline, score, batch_size)
    pixels = ranks[0].numel()
    counts = torch.tensor([round(step * pixels / steps) for step in range(steps + 1)], device=images.device)
    background = _background_of(images, baseline)
    # Of each image the whole deletion curve, and insertion without its ends, which are deletion's.
    shown = torch.cat([counts, counts[1:-1]])
    inserts = torch.arange(len(shown), device=images.device) > steps

    def perturbed(points: Tensor) -> tuple[Tensor, Tensor]:
        rows, turns = points // len(shown), points % len(shown)
        important = ranks[rows] < shown[turns, None, None]
        from_image = important == inserts[turns, None, None]
        return torch.where(from_image[:, None], images[rows], background[rows]), targets[rows]

    points = torch.arange(len(images) * len(shown), device=images.device)
    with scorer_of(model, score) as scorer:
        scores = [scorer(*perturbed(some)) for some in points.split(batch_size_for(images, batch_size))]
    deletion, inside = torch.cat(scores).view(len(images), -1).split([steps + 1, steps - 1], 1)
    insertion = torch.cat([deletion[:, -1:], inside, deletion[:, :1]], 1)
    shares = counts.to(deletion) / pixels
    areas = (torch.trapezoid(curve, shares, dim=1) for curve in (insertion, deletion))
    return Curves(shares, insertion, deletion, *areas)


def _importance_ranks(heatmaps: Tensor) -> Tensor:
    """Each pixel's place in the order of importance, from 0, shape (N, H, W)."""
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(heatmaps.shape)


def _check_options(steps: int, baseline: str | Background, score: str | ScoreFunction, batch_size: int | None) -> None:
    check_count("steps", steps)
    _baseline_function(baseline)
    check_scoring(score, batch_size)


def check_scoring(score: str | ScoreFunction, batch_size: int | None) -> None:
    """Raise UsageError for an unknown score or a batch size that is none."""
    check_score(score)
    if batch_size is not None:
        check_count("batch_size", batch_size)


def _baseline_function(baseline: str | Background) -> Background:
    try:
        return background_function(baseline)
    except UsageError as error:
        raise UsageError(str(error).replace("background=", "baseline=", 1)) from None


def _background_of(images: Tensor, baseline: str | Background) -> Tensor:
    # Autocast would blur in half precision.
    with torch.autocast(images.device.type, enabled=False), torch.no_grad():
        background = _baseline_function(baseline)(images)
    if not isinstance(background, Tensor) or background.shape != images.shape:
        raise UsageError(
            f"baseline= returned {describe(background)}; expected are images of shape {tuple(images.shape)}."
        )
    return background.to(images)


def batch_size_for(images: Tensor, batch_size: int | None) -> int:
    """How many images of this size, (N, C, H, W), go through the model at once."""
    if batch_size is not None:
        return batch_size
    fitting = _LARGEST_BATCH_ON_CPU // (images.shape[2] * images.shape[3])
    return min(max(fitting, 1), _LARGEST_BATCH) if images.device.type == "cpu" else _LARGEST_BATCH


@contextmanager
def scorer_of(model: nn.Module | Scorer, score: str | ScoreFunction) -> Iterator[Scorer]:
    """A function to score images with, without gradients; a module is in eval mode, and afterwards as it was found.

    Raises:
        UsageError: targets that the model does not have, or scores of another shape.
    """

    def of_module(images: Tensor, targets: Tensor) -> Tensor:
        output = network.understood(network.raw_output(images), images)
        check_targets(targets, output, score)
        return target_scores(output, targets, score)

    def of_function(images: Tensor, targets: Tensor) -> Tensor:
        scores = model(images, targets)
        if not isinstance(scores, Tensor) or scores.shape != targets.shape:
            raise UsageError(
                f"The scoring function returned {describe(scores)}; expected is one number for each of the "
                f"{len(targets)} targets. (A model that is no torch.nn.Module needs one around it: "
                "lambda images, targets: ….)"
            )
        return at_least_float32(scores)

    if isinstance(model, nn.Module):
        network = Network(model, None, None, None, needs_logits=not callable(score))
        with undisturbed(model), torch.no_grad():
            yield of_module
    else:
        with torch.no_grad():
            yield of_function


class MapScores(NamedTuple):
    """What :func:`scores_on_map` returns, each of shape (N,)."""

    score: Tensor
    score_on_map: Tensor


def scores_on_map(
    model: nn.Module | Scorer,
    images: Tensor,
    heatmaps: Tensor,
    targets: Tensor,
    *,
    baseline: str | Background | None = None,
    score: str | ScoreFunction = "softmax",
    batch_size: int | None = None,
) -> MapScores:
    """The scores of the images, and of what the maps show of them: images · heatmaps.

    This is what :func:`average_drop` and :func:`increase_in_confidence` compare. As published (Chattopadhay et al.
    2018, "Grad-CAM++"), it is the normalised image that is multiplied: what the map leaves out turns to the data
    set's mean colour.

    Args:
        model: a model or a scoring function, see :func:`insertion_deletion`.
        images: shape (N, C, H, W), floating point, as the model sees them.
        heatmaps: shape (N, H, W), floating point in [0, 1].
        targets: shape (N,), class indices.
        baseline: what shows where the map does not: None: zeros, as published; or images · heatmaps +
            baseline · (1 − heatmaps), with "blur", "mean", "noise" or a callable on images.
        score: see :func:`insertion_deletion`.
        batch_size: see :func:`insertion_deletion`.

    Returns:
        Both scores.

    Raises:
        UsageError: shapes or types that do not fit, NaN, values of the maps outside [0, 1], targets that the model
            does not have, or an unknown baseline or score.

    Example:
        >>> brightness = lambda images, targets: images.mean((1, 2, 3))
        >>> scores_on_map(brightness, torch.ones(1, 3, 2, 2), torch.full((1, 2, 2), 0.25), torch.tensor([0]))
        MapScores(score=tensor([1.]), score_on_map=tensor([0.2500]))
    """
    images = checked_images(images)
    heatmaps = checked_maps_of_images(heatmaps, images)
    check_unit_range(heatmaps)
    targets = checked_indices(targets, len(images), "targets").to(images.device)
    check_scoring(score, batch_size)
    size = batch_size_for(images, batch_size)
    shown = images * heatmaps[:, None]
    if baseline is not None:
        shown = shown + _background_of(images, baseline) * (1 - heatmaps[:, None])
    with scorer_of(model, score) as scorer:
        of_images, of_shown = (
            torch.cat([scorer(*part) for part in zip(batch.split(size), targets.split(size), strict=True)])
            for batch in (images, shown.to(images))
        )
    return MapScores(of_images, of_shown)


def average_drop(score: Tensor, score_on_map: Tensor) -> Tensor:
    """How much of the score is lost when only the map's part of the image is shown: max(0, y − o) / y.

    Chattopadhay et al. 2018 ("Grad-CAM++", section 4.1), for each image; they report the mean in percent.

    Args:
        score: y, of the whole image, shape (N,), a probability.
        score_on_map: o, of what the map shows, see :func:`scores_on_map`.

    Returns:
        Shape (N,), in [0, 1]: the less, the better. 0 where the whole image's score is 0.

    Raises:
        UsageError: shapes or types that do not fit, NaN, or negative scores.

    Example:
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        tensor([0.2500, 0.0000])
    """
    score, score_on_map = _checked_scores(score, score_on_map)
    return torch.where(score > 0, (score - score_on_map).clamp(min=0) / score, 0.0)


def increase_in_confidence(score: Tensor, score_on_map: Tensor) -> Tensor:
    """Whether the score is higher when only the map's part of the image is shown (Chattopadhay et al. 2018).

    Args:
        score: of the whole image, shape (N,), a probability.
        score_on_map: of what the map shows, see :func:`scores_on_map`.

    Returns:
        Shape (N,), bool. Their mean is the "increase in confidence", there in percent.

    Raises:
        UsageError: shapes or types that do not fit, NaN, or negative scores.

    Example:
        >>> increase_in_confidence(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        tensor([False,  True])
    """
    score, score_on_map = _checked_scores(score, score_on_map)
    return score_on_map > score


def _checked_scores(score: Tensor, score_on_map: Tensor) -> tuple[Tensor, Tensor]:
    for one in (score, score_on_map):
        if not isinstance(one, Tensor) or one.ndim != 1 or not one.is_floating_point() or one.shape != score.shape:
            raise UsageError(
                f"scores are {describe(score)} and {describe(score_on_map)}; expected are two floating point "
                "tensors (N,)."
            )
        if not bool((one >= 0).all()):  # nor where one is NaN
            raise UsageError(f"scores reach down to {float(one.min()):.4g}; expected are probabilities.")
    return score.detach(), score_on_map.detach().to(score.device)


class InsertionDeletion(ImageMeans):
    """Mean insertion and deletion curves and the areas under them, see :func:`insertion_deletion`.

    Args:
        steps: in how many steps all pixels go.
        baseline: "blur", "mean", "noise" or a callable on images.
        score: "softmax", "sigmoid" or a callable from the model's output and the targets to one number each.
        batch_size: images in one forward pass; None: 32, and on a CPU no more than 400,000 pixels.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: an argument is unknown or out of range.

    Example:
        >>> metric = InsertionDeletion(steps=2, baseline=torch.zeros_like)
        >>> brightness = lambda images, targets: images.mean((1, 2, 3))
        >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
        >>> metric.update(brightness, images, images[:, 0], torch.tensor([0]))
        >>> metric.compute()["difference"]
        tensor(0.1250)
    """

    def __init__(
        self,
        steps: int = 14,
        baseline: str | Background = "blur",
        score: str | ScoreFunction = "softmax",
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        _check_options(steps, baseline, score, batch_size)
        super().__init__(2 * (steps + 1) + 2, **options)
        self.steps = steps
        self.baseline = baseline
        self.score = score
        self.batch_size = batch_size

    def update(self, model: nn.Module | Scorer, images: Tensor, heatmaps: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            model: a model, left as it is found; or a function from images and targets to scores.
            images: shape (N, C, H, W), floating point, as the model sees them.
            heatmaps: shape (N, H, W), floating point.
            targets: shape (N,), class indices.

        Raises:
            UsageError: shapes or types that do not fit, NaN, or targets that the model does not have.
        """
        curves = insertion_deletion(
            model,
            images,
            heatmaps,
            targets,
            steps=self.steps,
            baseline=self.baseline,
            score=self.score,
            batch_size=self.batch_size,
        )
        self.add(curves.insertion, curves.deletion, curves.insertion_area, curves.deletion_area)

    def compute(self) -> dict[str, Tensor]:
        """The means over images.

        Returns:
            The areas "insertion" and "deletion" and their "difference", scalars; "insertion_curve" and
            "deletion_curve", shape (steps + 1,).
        """
        insertion_curve, deletion_curve, areas = self.means().split([self.steps + 1, self.steps + 1, 2])
        return {
            "insertion": areas[0],
            "deletion": areas[1],
            "difference": areas[0] - areas[1],
            "insertion_curve": insertion_curve,
            "deletion_curve": deletion_curve,
        }


class _OnMap(ImageMeans):
    """Compares the score of the image with that of what the map shows."""

    _compared: "ClassVar[staticmethod[[Tensor, Tensor], Tensor]]"

    def __init__(
        self,
        baseline: str | Background | None = None,
        score: str | ScoreFunction = "softmax",
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if baseline is not None:
            _baseline_function(baseline)
        check_scoring(score, batch_size)
        super().__init__(1, **options)
        self.baseline = baseline
        self.score = score
        self.batch_size = batch_size

    def update(self, model: nn.Module | Scorer, images: Tensor, heatmaps: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            model: a model, left as it is found; or a function from images and targets to probabilities.
            images: shape (N, C, H, W), floating point, as the model sees them.
            heatmaps: shape (N, H, W), floating point in [0, 1].
            targets: shape (N,), class indices.

        Raises:
            UsageError: shapes or types that do not fit, NaN, values of the maps outside [0, 1], or targets that the
                model does not have.
        """
        scores = scores_on_map(
            model,
            images,
            heatmaps,
            targets,
            baseline=self.baseline,
            score=self.score,
            batch_size=self.batch_size,
        )
        self.add(self._compared(*scores))

    def compute(self) -> Tensor:
        """The mean over images, in [0, 1]."""
        return self.means()[0]


class AverageDrop(_OnMap):
    """The mean share of the score that is lost when only the map's part is shown, see :func:`average_drop`.

    Args:
        baseline: what shows where the map does not; None: zeros, as published, see :func:`scores_on_map`.
        score: "softmax", "sigmoid" or a callable from the model's output and the targets to one number each.
        batch_size: images in one forward pass; None: 32, and on a CPU no more than 400,000 pixels.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: an argument is unknown or out of range.

    Example:
        >>> metric = AverageDrop()
        >>> brightness = lambda images, targets: images.mean((1, 2, 3))
        >>> metric.update(brightness, torch.ones(1, 3, 2, 2), torch.full((1, 2, 2), 0.25), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = False
    _compared = staticmethod(average_drop)


class IncreaseInConfidence(_OnMap):
    """The share of images whose score rises when only the map's part is shown, see :func:`increase_in_confidence`.

    Args:
        baseline: what shows where the map does not; None: zeros, as published, see :func:`scores_on_map`.
        score: "softmax", "sigmoid" or a callable from the model's output and the targets to one number each.
        batch_size: images in one forward pass; None: 32, and on a CPU no more than 400,000 pixels.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: an argument is unknown or out of range.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> darkness = lambda images, targets: 1 - images.mean((1, 2, 3))
        >>> metric.update(darkness, torch.ones(1, 3, 2, 2), torch.full((1, 2, 2), 0.25), torch.tensor([0]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True
    _compared = staticmethod(increase_in_confidence)
