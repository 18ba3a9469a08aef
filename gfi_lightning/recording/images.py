"""From images as the model sees them to images as people see them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def denormalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo (x − mean) / std per channel: images (N, C, H, W) → the same shape, clamped to [0, 1].

    Means and deviations that were meant for 0…255 are brought to 0…1.
    """
    scale = 255.0 if max(mean) > 1 or max(std) > 1 else 1.0
    center, spread = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) / scale for values in (mean, std))
    return (images.float().cpu() * spread + center).clamp(0, 1)


def in_unit_range(images: Tensor) -> bool:
    """Whether all values lie in [0, 1], as those of images that were not normalised do."""
    return bool(images.amin() >= 0) and bool(images.amax() <= 1)


def stretched(images: Tensor) -> Tensor:
    """Each image's own range, stretched to [0, 1]; the same shape. A constant image becomes mid grey."""
    images = images.float().cpu().nan_to_num()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-12), 0.5)
