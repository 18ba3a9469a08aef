"""How concentrated a map is."""

import math
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.metrics.checks import checked_heatmaps
from gfi_lightning.metrics.means import ImageMeans


def gini(heatmaps: Tensor) -> Tensor:
    """The Gini index of each map's absolute values (Hurley and Rickard 2009, "Comparing measures of sparsity").

    G = Σ_i (2 i − n − 1) x_(i) / (n Σ_i x_(i)) over the n values in rising order, i = 1..n; Chalasani et al.
    (2020, "Concise explanations of neural networks using adversarial training") use it for explanations.

    Args:
        heatmaps: shape (N, H, W), floating point.

    Returns:
        Shape (N,), in [0, 1): 0 where all pixels are equal (also an empty map), 1 − 1/n where one has it all.

    Raises:
        UsageError: another shape or type, or NaN.

    Example:
        >>> gini(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[0.3, 0.3], [0.3, 0.3]]]))
        tensor([0.7500, 0.0000])
    """
    values = checked_heatmaps(heatmaps).flatten(1).abs().sort(1).values
    count = values.shape[1]
    ranks = 2 * torch.arange(1, count + 1, device=values.device) - count - 1
    total = values.sum(1)
    return torch.where(total > 0, (values * ranks).sum(1) / (count * total), 0.0).clamp(min=0)


def entropy(heatmaps: Tensor) -> Tensor:
    """How evenly a map is spread: −Σ p_i log p_i / log n with p_i = m_i / Σ m, over its n pixels (Shannon 1948).

    Negative values count as 0.

    Args:
        heatmaps: shape (N, H, W), floating point.

    Returns:
        Shape (N,), in [0, 1]: 0 for a single pixel, 1 for a constant map. A map without positive values has none: 0.

    Raises:
        UsageError: another shape or type, or NaN.

    Example:
        >>> entropy(torch.tensor([[[0.0, 0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    positive = checked_heatmaps(heatmaps).clamp(min=0).flatten(1).double()
    shares = positive / positive.sum(1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    nats: Tensor = torch.special.entr(shares).sum(1)
    return (nats / math.log(max(shares.shape[1], 2))).to(heatmaps)


def half_area(heatmaps: Tensor) -> Tensor:
    """The share of a map's pixels that reach half of its maximum, |{p: m_p ≥ max m / 2}| / |{p}|; a measure of our own.

    Args:
        heatmaps: shape (N, H, W), floating point.

    Returns:
        Shape (N,), in [0, 1]. A map without positive values has none: 0.

    Raises:
        UsageError: another shape or type, or NaN.

    Example:
        >>> half_area(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]))
        tensor([0.5000])
    """
    flat = checked_heatmaps(heatmaps).flatten(1)
    largest = flat.amax(1, keepdim=True)
    return torch.logical_and(flat >= largest / 2, largest > 0).to(flat).mean(1)


class Sparsity(ImageMeans):
    """The mean Gini index, see :func:`gini`: how few pixels hold how much of a map.

    Args:
        options: see ``torchmetrics.Metric``.

    Example:
        >>> metric = Sparsity()
        >>> metric.update(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[0.3, 0.3], [0.3, 0.3]]]))
        >>> metric.compute()
        tensor(0.3750)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(1, **options)

    def update(self, heatmaps: Tensor) -> None:
        """Take in one batch.

        Args:
            heatmaps: shape (N, H, W), floating point.

        Raises:
            UsageError: another shape or type, or NaN.
        """
        self.add(gini(heatmaps))

    def compute(self) -> Tensor:
        """The mean, in [0, 1)."""
        return self.means()[0]
