"""How far maps have moved."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from gfi_lightning.errors import UsageError
from gfi_lightning.metrics.checks import checked_pair
from gfi_lightning.metrics.means import ImageMeans

SETTLED = 0.1  # less drift than this is little: by default a map has settled when its drift stays below


def heatmap_drift(heatmaps: Tensor, previous: Tensor) -> Tensor:
    """1 − ρ, Spearman's rank correlation (1904) between each map and the one before.

    ρ is Pearson's correlation of the pixels' ranks, where equal values share their mean rank. Adebayo et al. (2018),
    "Sanity Checks for Saliency Maps", compare maps by it.

    Args:
        heatmaps: shape (N, H, W).
        previous: the same samples' maps of the run before, same shape.

    Returns:
        Shape (N,): 0 where nothing moved, 1 where the maps are unrelated, 2 where they are reversed. A map
        that is constant (degenerate) has no ranks: 0 against another such, 1 against any other.
    """
    now, before = heatmaps.flatten(1).double(), previous.flatten(1).double()
    flat_now, flat_before = _is_constant(now), _is_constant(before)
    comparable = ~flat_now & ~flat_before
    drift = (flat_now != flat_before).to(now.dtype)
    if comparable.any():
        # One column per sample; a single sample must be a vector.
        correlation = spearman_corrcoef(now[comparable].T.squeeze(1), before[comparable].T.squeeze(1))
        drift[comparable] = (1 - correlation).to(drift)
    return drift.where((now != before).any(1), 0)  # of which the correlation is 1 but for its rounding


def _is_constant(rows: Tensor) -> Tensor:
    return torch.eq(rows.amax(1), rows.amin(1))


def top_fifth_iou(heatmaps: Tensor, others: Tensor, share: float = 0.2) -> Tensor:
    """Intersection over union, |A ∩ B| / |A ∪ B| (Jaccard 1912), of the most important pixels of two maps.

    These are the pixels that reach the value of the k-th largest, k being the share of all pixels, and that
    exceed the map's minimum: more than k where values tie, fewer where the rest of the map is empty.

    Args:
        heatmaps: shape (N, H, W), floating point.
        others: the maps to compare with, same shape.
        share: of the pixels, in (0, 1].

    Returns:
        Shape (N,), in [0, 1]. A constant map has no important pixels: 1 against another such, 0 against any
        other.

    Raises:
        UsageError: shapes or types that do not fit, NaN, or a share out of range.

    Example:
        >>> one = torch.tensor([[[0.9, 0.8, 0.1, 0.0, 0.2]]])
        >>> other = torch.tensor([[[0.9, 0.1, 0.8, 0.0, 0.2]]])
        >>> top_fifth_iou(one, other), top_fifth_iou(one, other, share=0.4)
        (tensor([1.]), tensor([0.3333]))
    """
    heatmaps, others = checked_pair(heatmaps, others, "others")
    if not 0 < share <= 1:
        raise UsageError(f"share={share} must be above 0 and at most 1.")
    tops, other_tops = _top(heatmaps, share), _top(others, share)
    union = (tops | other_tops).sum(1)
    return torch.where(union > 0, (tops & other_tops).sum(1) / union, 1.0)


def _top(heatmaps: Tensor, share: float) -> Tensor:
    """Which pixels are the most important, shape (N, H · W), bool."""
    flat = heatmaps.flatten(1)
    count = max(round(share * flat.shape[1]), 1)
    lowest = flat.topk(count).values[:, -1:]
    return (flat >= lowest) & (flat > flat.amin(1, keepdim=True))


def settled_at(
    steps: Sequence[int], drift: Sequence[float] | NDArray[np.floating[Any]], threshold: float
) -> int | None:
    """The first step after which drift stays at or below a threshold: when a map has settled.

    Args:
        steps: of the runs, ascending.
        drift: since the run before, as long as steps; NaN, where there is no run before to compare with, is
            no movement at the first run, and later on, after a change of method, the start of another.
        threshold: the largest drift that is no movement; at least the noise floor.

    Returns:
        The step of the last run that moved, or cannot be compared; the first step if none did; None if that is the
        very last run, or if there are fewer than two.

    Example:
        >>> settled_at([0, 10, 20, 30], [float("nan"), 0.8, 0.3, 0.05], threshold=0.1)
        20
    """
    moved = [index for index, value in enumerate(drift) if value > threshold or (index > 0 and value != value)]
    if len(steps) < 2 or (moved and moved[-1] == len(steps) - 1):
        return None
    return steps[moved[-1]] if moved else steps[0]


class HeatmapDrift(ImageMeans):
    """How far maps have moved between two runs: 1 − ρ and |A ∩ B| / |A ∪ B|.

    See :func:`heatmap_drift` (Spearman 1904) and :func:`top_fifth_iou` (Jaccard 1912) for the formulas.

    Args:
        options: see ``torchmetrics.Metric``.

    Example:
        >>> metric = HeatmapDrift()
        >>> metric.update(torch.tensor([[[0.9, 0.8, 0.1, 0.0, 0.2]]]), torch.tensor([[[0.9, 0.1, 0.8, 0.0, 0.2]]]))
        >>> metric.compute()
        {'drift': tensor(0.4000), 'rank_correlation': tensor(0.6000), 'top_fifth_iou': tensor(1.)}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(2, **options)

    def update(self, heatmaps: Tensor, previous: Tensor) -> None:
        """Take in one batch.

        Args:
            heatmaps: shape (N, H, W), floating point.
            previous: the same samples' maps of the run before, same shape.

        Raises:
            UsageError: shapes or types that do not fit, or NaN.
        """
        heatmaps, previous = checked_pair(heatmaps, previous, "previous")
        self.add(heatmap_drift(heatmaps, previous), top_fifth_iou(heatmaps, previous))

    def compute(self) -> dict[str, Tensor]:
        """The means over images of "drift" (0 to 2), "rank_correlation" (1 − drift) and "top_fifth_iou"."""
        drift, iou = self.means()
        return {"drift": drift, "rank_correlation": 1 - drift, "top_fifth_iou": iou}
