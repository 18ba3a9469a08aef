"""Does a map point at the object? Boxes and masks tell."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from gfi_lightning.errors import UsageError, check_count
from gfi_lightning.inversion.scores import describe
from gfi_lightning.metrics.checks import (
    check_nonempty,
    check_unit_range,
    checked_boxes,
    checked_heatmaps,
    checked_indices,
    checked_regions,
)
from gfi_lightning.metrics.means import ImageMeans

ALPHAS = tuple(0.5 * step for step in range(21))
"""The thresholds from which Du et al. (2018, section 4.2) choose: 0, 0.5, …, 10 times the map's mean."""

_NEEDED_IOU = 0.5


def regions_of_boxes(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The pixels whose centres lie in one of an image's boxes.

    Args:
        boxes: for each of the N images a tensor (B, 4) of x0, y0, x1, y1 in pixels of the heatmap, x1 and y1
            exclusive; B may differ, and be 0. What lies outside of the image is cut off.
        size: (H, W).

    Returns:
        Shape (N, H, W), bool.

    Raises:
        UsageError: boxes of another form, with corners in another order, or wholly outside of the image.

    Example:
        >>> regions_of_boxes([torch.tensor([[1, 0, 3, 2]])], (2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 1, 1, 0]]], dtype=torch.int32)
    """
    regions = [_region_of_boxes(one, size) for one in checked_boxes(boxes, size)]
    return torch.stack(regions) if regions else torch.zeros(0, *size, dtype=torch.bool)


def _region_of_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    in_rows, in_columns = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
    return (in_rows[:, :, None] & in_columns[:, None, :]).any(0)


def pointing_hits(heatmaps: Tensor, regions: Tensor, tolerance: float = 0) -> Tensor:
    """The pointing game (Zhang et al. 2016, "Top-down neural attention by excitation backprop"; Du et al. 4.3).

    Args:
        heatmaps: shape (N, H, W), floating point.
        regions: where the object is, shape (N, H, W), bool.
        tolerance: in pixels; how far from the region the maximum may lie (distance between pixel centres).
            Zhang et al. allow 15 px, Du et al. none.

    Returns:
        Shape (N,), bool: True where the map's maximum lies in the region or within the tolerance. Of several
        equal maxima the first in row order counts, as in ``argmax``. A constant map has no maximum and an
        empty region cannot be hit: False.

    Raises:
        UsageError: shapes or types that do not fit, NaN, or a negative tolerance.

    Example:
        >>> heatmaps = torch.tensor([[[0.1, 0.9], [0.2, 0.3]]])
        >>> pointing_hits(heatmaps, torch.tensor([[[False, True], [False, False]]]))
        tensor([True])
    """
    heatmaps = checked_heatmaps(heatmaps)
    regions = checked_regions(regions, heatmaps)
    _check_tolerance(tolerance)
    flat = heatmaps.flatten(1)
    width = heatmaps.shape[2]
    peaks = flat.argmax(1)[:, None, None]
    rows = torch.arange(heatmaps.shape[1], device=heatmaps.device)[:, None] - peaks // width
    columns = torch.arange(width, device=heatmaps.device) - peaks % width
    near = rows**2 + columns**2 <= tolerance**2
    return (near & regions).flatten(1).any(1) & (flat.amax(1) > flat.amin(1))


def _check_tolerance(tolerance: float) -> None:
    if not tolerance >= 0:
        raise UsageError(f"tolerance={tolerance} must be at least 0 pixels.")


def energy_in_region(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """The energy-based pointing game (Wang et al. 2020, "Score-CAM"): Σ_{i in region} m_i / Σ_i m_i.

    Negative values, which speak against the class, count as 0.

    Args:
        heatmaps: shape (N, H, W), floating point.
        regions: where the object is, shape (N, H, W), bool.

    Returns:
        Shape (N,), in [0, 1]; 0 for a map without positive values.

    Raises:
        UsageError: shapes or types that do not fit, or NaN.

    Example:
        >>> heatmaps = torch.tensor([[[0.5, 1.5], [1.0, 1.0]]])
        >>> energy_in_region(heatmaps, torch.tensor([[[False, True], [False, True]]]))
        tensor([0.6250])
    """
    heatmaps = checked_heatmaps(heatmaps)
    regions = checked_regions(regions, heatmaps)
    positive = _positive(heatmaps)
    return _share((positive * regions).sum((1, 2)), positive.sum((1, 2)))


def _positive(heatmaps: Tensor) -> Tensor:
    return heatmaps.clamp(min=0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Part / whole in [0, 1]; 0 where the whole is 0."""
    return torch.where(whole > 0, part / whole, 0.0).clamp(max=1)


def localization_boxes(heatmaps: Tensor, alpha: float) -> Tensor:
    """The tightest box around what exceeds α · mean(map) (Du et al. 2018, section 4.2).

    Negative values, which speak against the class, count as 0.

    Args:
        heatmaps: shape (N, H, W), floating point.
        alpha: at least 0; at 0 the box is the whole image.

    Returns:
        Shape (N, 4), int64: x0, y0, x1, y1 in pixels, x1 and y1 exclusive; 0, 0, 0, 0 where nothing remains.

    Raises:
        UsageError: maps of another shape or type, NaN, or a negative α.

    Example:
        >>> localization_boxes(torch.tensor([[[0.0, 0.9, 0.8, 0.0], [0.0, 0.1, 0.7, 0.0]]]), alpha=1.5)
        tensor([[1, 0, 3, 2]])
    """
    positive = _positive(checked_heatmaps(heatmaps))
    check_alpha(alpha)
    kept = positive > alpha * positive.mean((1, 2), keepdim=True)
    if alpha == 0:
        kept = torch.ones_like(kept)
    x0, x1 = _extent(kept.any(1))
    y0, y1 = _extent(kept.any(2))
    return torch.stack([x0, y0, x1, y1], 1)


def check_alpha(alpha: float) -> None:
    """Raise UsageError for a threshold that is none."""
    if not alpha >= 0:
        raise UsageError(f"alpha={alpha} must be at least 0; tune_alpha finds one on other images.")


def _extent(flags: Tensor) -> tuple[Tensor, Tensor]:
    """The first True of each row and the place after its last; 0, 0 where there is none."""
    places = torch.arange(1, flags.shape[1] + 1, device=flags.device)
    end = (flags * places).amax(1)
    start = torch.where(flags, places - 1, flags.shape[1]).amin(1)
    return torch.where(end > 0, start, 0), end


def localization_hits(heatmaps: Tensor, boxes: Sequence[Tensor], alpha: float) -> Tensor:
    """Whether the box of each map finds an object: intersection over union with one of its boxes above 0.5.

    Args:
        heatmaps: shape (N, H, W), floating point.
        boxes: the objects' boxes, see :func:`regions_of_boxes`.
        alpha: the threshold, in units of the map's mean; see :func:`localization_boxes` and :func:`tune_alpha`.

    Returns:
        Shape (N,), bool; False where an image has no box.

    Raises:
        UsageError: maps or boxes of another form, NaN, or a negative α.

    Example:
        >>> heatmaps = torch.tensor([[[0.0, 0.9, 0.8, 0.0], [0.0, 0.1, 0.7, 0.0]]])
        >>> localization_hits(heatmaps, [torch.tensor([[1, 0, 4, 2]])], alpha=1.5)
        tensor([True])
    """
    found = localization_boxes(heatmaps, alpha)
    height, width = heatmaps.shape[1:]
    objects = checked_boxes(boxes, (height, width), len(heatmaps))
    hits = [_ious(box, one.to(box.device)).gt(_NEEDED_IOU).any() for box, one in zip(found, objects, strict=True)]
    return torch.stack(hits)


def _ious(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with others (B, 4)."""
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    overlap = sides.clamp(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return overlap / (areas - overlap)


def tune_alpha(heatmaps: Tensor, boxes: Sequence[Tensor], alphas: Sequence[float] = ALPHAS) -> float:
    """The α with the smallest localisation error (Du et al. 2018, section 4.2); of equal ones the first.

    Tune it on OTHER images than those on which the error is then reported: on the same it flatters.

    Args:
        heatmaps: shape (N, H, W), floating point.
        boxes: the objects' boxes, see :func:`regions_of_boxes`.
        alphas: from which to choose; 0, 0.5, …, 10 as in the paper.

    Raises:
        UsageError: maps or boxes of another form, NaN, or no or a negative α.

    Example:
        >>> heatmaps = torch.tensor([[[0.0, 0.9, 0.8, 0.0], [0.0, 0.1, 0.7, 0.0]]])
        >>> tune_alpha(heatmaps, [torch.tensor([[1, 0, 3, 2]])], alphas=[0, 1, 2, 3])
        1.0
    """
    if len(alphas) == 0:
        raise UsageError("alphas are empty: give at least one threshold.")
    found = [int(localization_hits(heatmaps, boxes, alpha).sum()) for alpha in alphas]
    return float(alphas[found.index(max(found))])


class SalientObjectScores(NamedTuple):
    """What :func:`salient_object_scores` returns, each of shape (N,), in [0, 1]."""

    precision: Tensor
    recall: Tensor
    f_beta: Tensor
    mae: Tensor


def salient_object_scores(
    heatmaps: Tensor, regions: Tensor, beta_squared: float = 0.3, threshold: float = 2.0
) -> SalientObjectScores:
    """Salient object detection (Achanta et al. 2009, "Frequency-tuned salient region detection"; Du et al. 4.4).

    What exceeds threshold · mean(map) is taken for the object: precision P is the share of it that lies in the
    region, recall R the share of the region that it covers, F_β = (1 + β²) P R / (β² P + R), all image by image;
    and MAE is the mean of |map − region| before the threshold.

    Args:
        heatmaps: shape (N, H, W), floating point in [0, 1].
        regions: the object's mask, shape (N, H, W), bool.
        beta_squared: β², below 1 to weigh precision more than recall.
        threshold: in units of the map's mean.

    Returns:
        Precision, recall, F_β and MAE. What has nothing to be a share of (no pixel above the threshold, an empty
        region) is 0.

    Raises:
        UsageError: shapes or types that do not fit, NaN, values outside [0, 1], or a negative β² or threshold.

    Example:
        >>> heatmaps = torch.tensor([[[0.9, 0.8, 0.0, 0.0, 0.1, 0.0]]])
        >>> scores = salient_object_scores(heatmaps, heatmaps > 0.85)
        >>> scores.precision, scores.recall
        (tensor([0.5000]), tensor([1.]))
    """
    heatmaps = checked_heatmaps(heatmaps)
    regions = checked_regions(regions, heatmaps)
    check_unit_range(heatmaps)
    _check_salience(beta_squared, threshold)
    found = heatmaps > threshold * heatmaps.mean((1, 2), keepdim=True)
    right = (found & regions).sum((1, 2)).to(heatmaps)
    precision, recall = _share(right, found.sum((1, 2))), _share(right, regions.sum((1, 2)))
    f_beta = _share((1 + beta_squared) * precision * recall, beta_squared * precision + recall)
    return SalientObjectScores(precision, recall, f_beta, (heatmaps - regions.to(heatmaps)).abs().mean((1, 2)))


def _check_salience(beta_squared: float, threshold: float) -> None:
    if not beta_squared >= 0 or not threshold >= 0:
        raise UsageError(f"beta_squared={beta_squared} and threshold={threshold} must be at least 0.")


class PointingGame(Metric):
    """The share of maps whose maximum lies on the object, see :func:`pointing_hits`.

    Args:
        num_classes: how many classes there are, for the accuracy of each and their mean, in which rare classes
            count as much as common ones (Zhang et al. 2016, Du et al. 2018); None: over all images.
        tolerance: in pixels; how far from the region the maximum may lie.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: an argument is out of range.

    Example:
        >>> metric = PointingGame(num_classes=2)
        >>> heatmaps = torch.tensor([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.9], [0.2, 0.3]]])
        >>> metric.update(heatmaps, torch.stack([heatmaps[0] > 0.5, heatmaps[1] < 0.5]), torch.tensor([0, 1]))
        >>> metric.compute()
        {'mean': tensor(0.5000), 'per_class': tensor([1., 0.])}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    counts: Tensor

    def __init__(self, num_classes: int | None = None, tolerance: float = 0, **options: Any) -> None:
        super().__init__(**options)
        _check_tolerance(tolerance)
        if num_classes is not None:
            check_count("num_classes", num_classes)
        self.num_classes = num_classes
        self.tolerance = tolerance
        self.add_state("hits", torch.zeros(num_classes or 1, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes or 1, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, heatmaps: Tensor, regions: Tensor, classes: Tensor | None = None) -> None:
        """Take in one batch.

        Args:
            heatmaps: shape (N, H, W), floating point.
            regions: where the object of the map's class is, shape (N, H, W), bool; none of them empty.
            classes: each map's class, shape (N,), integers; needed where ``num_classes`` is given, and only there.

        Raises:
            UsageError: shapes or types that do not fit, NaN, an empty region, or a class out of range.
        """
        hits = pointing_hits(heatmaps, regions, self.tolerance)
        check_nonempty(regions)
        classes = self._checked_classes(classes, len(hits)).to(self.hits.device)
        self.hits.index_add_(0, classes, hits.to(self.hits))
        self.counts.index_add_(0, classes, torch.ones_like(classes))

    def compute(self) -> dict[str, Tensor]:
        """The accuracy.

        Returns:
            "mean": over the classes that were seen, or over all images; NaN where there was no image.
            "per_class" (only with ``num_classes``): shape (num_classes,), NaN for a class that was not seen.
        """
        accuracies = self.hits / self.counts
        if self.num_classes is None:
            return {"mean": accuracies[0]}
        return {"mean": accuracies.nanmean(), "per_class": accuracies}

    def _checked_classes(self, classes: Tensor | None, count: int) -> Tensor:
        if (classes is None) != (self.num_classes is None):
            raise UsageError(
                f"classes are {describe(classes)}, but num_classes={self.num_classes}: give both or neither."
            )
        if classes is None or self.num_classes is None:
            return torch.zeros(count, dtype=torch.long)
        classes = checked_indices(classes, count, "classes")
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= self.num_classes:
            raise UsageError(
                f"classes reach from {low} to {high}, but num_classes={self.num_classes}: "
                f"use classes from 0 to {self.num_classes - 1}."
            )
        return classes


class EnergyPointingGame(ImageMeans):
    """The mean share of a map's energy that lies on the object, see :func:`energy_in_region`.

    Args:
        options: see ``torchmetrics.Metric``.

    Example:
        >>> metric = EnergyPointingGame()
        >>> heatmaps = torch.tensor([[[0.5, 1.5], [1.0, 1.0]]])
        >>> metric.update(heatmaps, torch.tensor([[[False, True], [False, True]]]))
        >>> metric.compute()
        tensor(0.6250)
    """

    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__(1, **options)

    def update(self, heatmaps: Tensor, regions: Tensor) -> None:
        """Take in one batch.

        Args:
            heatmaps: shape (N, H, W), floating point.
            regions: where the object is, shape (N, H, W), bool; none of them empty.

        Raises:
            UsageError: shapes or types that do not fit, NaN, or an empty region.
        """
        energies = energy_in_region(heatmaps, regions)
        check_nonempty(regions)
        self.add(energies)

    def compute(self) -> Tensor:
        """The mean share, in [0, 1]."""
        return self.means()[0]


class LocalizationError(ImageMeans):
    """The share of maps whose box does not find the object, see :func:`localization_hits`.

    Args:
        alpha: the threshold in units of the map's mean; :func:`tune_alpha` finds it, on other images.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: a negative α.

    Example:
        >>> metric = LocalizationError(alpha=1.5)
        >>> heatmaps = torch.tensor([[[0.0, 0.9, 0.8, 0.0], [0.0, 0.1, 0.7, 0.0]]])
        >>> metric.update(heatmaps, [torch.tensor([[1, 0, 4, 2]])])
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False

    def __init__(self, alpha: float, **options: Any) -> None:
        super().__init__(1, **options)
        check_alpha(alpha)
        self.alpha = alpha

    def update(self, heatmaps: Tensor, boxes: Sequence[Tensor]) -> None:
        """Take in one batch.

        Args:
            heatmaps: shape (N, H, W), floating point.
            boxes: the objects' boxes, at least one for each image, see :func:`regions_of_boxes`.

        Raises:
            UsageError: maps or boxes of another form, NaN, or an image without boxes.
        """
        hits = localization_hits(heatmaps, boxes, self.alpha)
        without = [number for number, one in enumerate(boxes) if len(one) == 0]
        if without:
            raise UsageError(f"boxes[{without[0]}] is empty: nothing can be found there; leave such images out.")
        self.add(~hits)

    def compute(self) -> Tensor:
        """The error, in [0, 1]."""
        return self.means()[0]


class SalientObject(ImageMeans):
    """Salient object detection: mean precision, recall, F_β and MAE, see :func:`salient_object_scores`.

    Args:
        beta_squared: β², below 1 to weigh precision more than recall.
        threshold: in units of the map's mean.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: a negative β² or threshold.

    Example:
        >>> metric = SalientObject()
        >>> heatmaps = torch.tensor([[[0.9, 0.8, 0.0, 0.0, 0.1, 0.0]]])
        >>> metric.update(heatmaps, heatmaps > 0.85)
        >>> metric.compute()["f_beta"]
        tensor(0.5652)
    """

    def __init__(self, beta_squared: float = 0.3, threshold: float = 2.0, **options: Any) -> None:
        super().__init__(len(SalientObjectScores._fields), **options)
        _check_salience(beta_squared, threshold)
        self.beta_squared = beta_squared
        self.threshold = threshold

    def update(self, heatmaps: Tensor, regions: Tensor) -> None:
        """Take in one batch.

        Args:
            heatmaps: shape (N, H, W), floating point in [0, 1].
            regions: the objects' masks, shape (N, H, W), bool; none of them empty.

        Raises:
            UsageError: shapes or types that do not fit, NaN, values outside [0, 1], or an empty region.
        """
        scores = salient_object_scores(heatmaps, regions, self.beta_squared, self.threshold)
        check_nonempty(regions)
        self.add(*scores)

    def compute(self) -> dict[str, Tensor]:
        """The means over images of "precision", "recall", "f_beta" and "mae"."""
        return dict(zip(SalientObjectScores._fields, self.means(), strict=True))
