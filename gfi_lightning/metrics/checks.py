"""What the metrics are given, checked: a wrong shape that broadcasts makes a number that looks right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.scores import at_least_float32, describe

_ROUNDING = 1e-3  # by which interpolation may leave the range


def checked_heatmaps(heatmaps: Tensor, name: str = "heatmaps") -> Tensor:
    """Heatmaps (N, H, W), at least float32, without their graph.

    Raises:
        UsageError: it is no floating point tensor of that shape, it is empty, or a value is not finite.
    """
    if not isinstance(heatmaps, Tensor) or heatmaps.ndim != 3 or not heatmaps.is_floating_point():
        raise UsageError(f"{name} are {describe(heatmaps)}; expected is a floating point tensor (N, H, W).")
    if heatmaps.numel() == 0:
        raise UsageError(f"{name} have shape {tuple(heatmaps.shape)}: give at least one map of at least one pixel.")
    heatmaps = heatmaps.detach()
    unusable = (~heatmaps.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if unusable:
        raise UsageError(f"{name}[{unusable[0]}] holds NaN or infinity: leave such maps out, or repair them.")
    return at_least_float32(heatmaps)


def checked_pair(heatmaps: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Two sets of heatmaps of the same shape, on the first's device.

    Raises:
        UsageError: see :func:`checked_heatmaps`; or their shapes differ.
    """
    heatmaps, others = checked_heatmaps(heatmaps), checked_heatmaps(others, name)
    if heatmaps.shape != others.shape:
        raise UsageError(
            f"{name} have shape {tuple(others.shape)} and heatmaps {tuple(heatmaps.shape)}: give one for each, "
            "of the same size."
        )
    return heatmaps, others.to(heatmaps.device)


def check_unit_range(heatmaps: Tensor) -> None:
    """Raise UsageError where a value lies outside [0, 1]."""
    low, high = float(heatmaps.min()), float(heatmaps.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise UsageError(f"heatmaps reach from {low:.4g} to {high:.4g}; scale each to [0, 1] for this metric.")


def checked_regions(regions: Tensor, heatmaps: Tensor) -> Tensor:
    """Regions (N, H, W), bool, on the heatmaps' device.

    Raises:
        UsageError: they are of another type or shape.
    """
    if not isinstance(regions, Tensor) or regions.dtype != torch.bool:
        raise UsageError(
            f"regions are {describe(regions)}; expected is a bool tensor (N, H, W): masks > 0, "
            "or regions_of_boxes(boxes, (H, W))."
        )
    if regions.shape != heatmaps.shape:
        raise UsageError(
            f"regions have shape {tuple(regions.shape)} and heatmaps {tuple(heatmaps.shape)}: "
            "give one for each heatmap, of its size."
        )
    return regions.to(heatmaps.device)


def check_nonempty(regions: Tensor) -> None:
    """Raise UsageError where an image has nothing to be found."""
    empty = (~regions.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise UsageError(f"regions[{empty[0]}] is empty: nothing can be found there; leave such images out.")


def checked_boxes(boxes: Sequence[Tensor], size: tuple[int, int], count: int | None = None) -> list[Tensor]:
    """The boxes of each image, (B, 4), at least float32.

    Args:
        boxes: one tensor for each image, x0, y0, x1, y1 in pixels of the heatmap, x1 and y1 exclusive.
        size: (H, W) of the heatmaps.
        count: of the images; None: any.

    Raises:
        UsageError: another form or number, corners in another order, or a box outside of the map.
    """
    if count is not None and len(boxes) != count:
        raise UsageError(f"boxes are given for {len(boxes)} images, and there are {count} heatmaps: one tensor each.")
    return [_checked_boxes_of_image(one, size, f"boxes[{number}]") for number, one in enumerate(boxes)]


def _checked_boxes_of_image(boxes: Tensor, size: tuple[int, int], name: str) -> Tensor:
    if not isinstance(boxes, Tensor) or boxes.is_complex() or boxes.dtype == torch.bool:
        raise UsageError(f"{name} is {describe(boxes)}; expected is a tensor (B, 4) of x0, y0, x1, y1.")
    if boxes.numel() == 0:
        return torch.zeros(0, 4, device=boxes.device)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UsageError(f"{name} has shape {tuple(boxes.shape)}; expected is (B, 4): x0, y0, x1, y1.")
    boxes = at_least_float32(boxes.detach())
    x0, y0, x1, y1 = boxes.unbind(1)
    if not bool(((x0 < x1) & (y0 < y1)).all()):  # nor where one is NaN
        raise UsageError(
            f"{name} is {boxes.tolist()}; expected is x0 < x1 and y0 < y1, in the order x0, y0, x1, y1 "
            "(not x, y, width, height)."
        )
    if not bool(((x0 < size[1]) & (y0 < size[0]) & (x1 > 0) & (y1 > 0)).all()):
        raise UsageError(
            f"{name} is {boxes.tolist()}, and one lies outside of its heatmap of {size[0]} × {size[1]} pixels: "
            "scale boxes as the images were."
        )
    return boxes


def checked_images(images: Tensor, count: int | None = None) -> Tensor:
    """Images (N, C, H, W), without their graph.

    Args:
        images: as the model sees them.
        count: of the heatmaps; None: any.

    Raises:
        UsageError: another type, shape or number, or a value is not finite.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise UsageError(
            f"images are {describe(images)}; expected is a floating point tensor (N, C, H, W), as the model sees it."
        )
    if count is not None and len(images) != count:
        raise UsageError(f"images are {len(images)}, and there are {count} heatmaps: give one heatmap for each.")
    if not bool(images.isfinite().all()):
        raise UsageError("images hold NaN or infinity: repair them, or leave such images out.")
    return images.detach()


def checked_maps_of_images(heatmaps: Tensor, images: Tensor) -> Tensor:
    """Heatmaps of the images' size, on their device.

    Raises:
        UsageError: see :func:`checked_heatmaps`; or they are of another size.
    """
    heatmaps = checked_heatmaps(heatmaps)
    expected = (len(images), *images.shape[2:])
    if heatmaps.shape != expected:
        raise UsageError(
            f"heatmaps have shape {tuple(heatmaps.shape)}; expected is {expected}, one for each image, of its size: "
            "interpolate them."
        )
    return heatmaps.to(images.device)


def checked_indices(indices: Tensor, count: int, name: str) -> Tensor:
    """Class indices (N,), int64.

    Args:
        indices: what was given.
        count: N.
        name: what they are called, in the plural.

    Raises:
        UsageError: they are no integers, or of another shape.
    """
    integers = isinstance(indices, Tensor) and not (indices.is_floating_point() or indices.is_complex())
    if not integers or indices.dtype == torch.bool:
        raise UsageError(f"{name} are {describe(indices)}; expected is an integer tensor (N,).")
    if indices.shape != (count,):
        raise UsageError(f"{name} have shape {tuple(indices.shape)}; expected is ({count},), one for each image.")
    return indices.detach().long()
