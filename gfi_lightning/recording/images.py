"""From images as the model sees them to images as people see them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError

Normalization = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation, per channel


_BLACK = 16 / 255  # of images in 0…255: what has nothing brighter is black for people


def undone(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo (x − mean) / std per channel: images (N, C, H, W) → the same shape, on the CPU.

    What comes out in 0…255 is brought to 0…1.
    """
    center, spread = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    before = images.detach().float().cpu() * spread + center
    return before / 255 if before.amax() > 255 * _BLACK else before


def denormalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo (x − mean) / std per channel, see :func:`undone`, clamped to [0, 1]."""
    return undone(images, mean, std).clamp(0, 1)


def in_unit_range(images: Tensor) -> bool:
    """Whether all values lie in [0, 1], as those of images that were not normalised do."""
    return bool(images.amin() >= 0) and bool(images.amax() <= 1)


def stretched(images: Tensor) -> Tensor:
    """Each image's own range, stretched to [0, 1]; the same shape. A constant image becomes mid grey."""
    images = images.float().cpu().nan_to_num()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-12), 0.5)


def displayable(images: Tensor, normalization: Normalization | None) -> Tensor:
    """Images (N, C, H, W) in [0, 1]: as they were before normalising, or as they are, or each by its own range."""
    if normalization is not None:
        return denormalized(images, *normalization)
    return images.float().cpu() if in_unit_range(images) else stretched(images)


def normalization(mean: Any, std: Any) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation per channel, or None where neither was given.

    Raises:
        UsageError: only one of them was, or they are no numbers, or not as many.
    """
    if mean is None and std is None:
        return None
    means, deviations = _numbers(mean), _numbers(std)
    if not means or len(means) != len(deviations):
        raise UsageError(f"mean={mean} and std={std} must be given together, one number per channel each.")
    return means, deviations


def _numbers(values: Any) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):  # a single number, text
        return []
