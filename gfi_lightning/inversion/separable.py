"""Linear maps of images that act on rows and columns one after the other, as matrix products.

On a CPU they are faster than the convolutions and interpolations that do the same, and their way back is deterministic
on a GPU.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_AT_ONCE = 2**20  # numbers that are blurred together, as that is done in float64
_ROWS = 64  # of a band; at 224 px half of each is not zero

Bands = list[tuple[slice, Tensor]]
"""A matrix in bands of rows: each one's columns that are not all zero, and what stands there."""


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear upsampling as by ``F.interpolate``.

    Args:
        maps: shape (N, 1, h, w).
        size: (H, W).
        align_corners: see ``F.interpolate``.

    Returns:
        Shape (N, 1, H, W).
    """
    height, width = _to_size(maps, maps.shape[2:], size, align_corners)
    return (height @ _wide(maps) @ width.T).to(maps.dtype)


def upsample_backward(gradient: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The gradient by maps, from that by what :func:`upsample` made of them.

    Args:
        gradient: shape (N, 1, H, W).
        size: (h, w).
        align_corners: as there.

    Returns:
        Shape (N, 1, h, w).
    """
    height, width = _to_size(gradient, size, gradient.shape[2:], align_corners)
    return (height.T @ _wide(gradient) @ width).to(gradient.dtype)


def _to_size(like: Tensor, short: Sequence[int], long: Sequence[int], align_corners: bool) -> tuple[Tensor, Tensor]:
    """The matrices that act on columns and on rows."""
    kind = (align_corners, like.device, _wide_type(like))
    return _interpolation(short[0], long[0], *kind), _interpolation(short[1], long[1], *kind)


def gaussian_blur(images: Tensor, sigma: float, reach: float) -> Tensor:
    """Convolution with a Gaussian; the borders are mirrored.

    Args:
        images: shape (N, C, H, W).
        sigma: standard deviation in px.
        reach: standard deviations at which the kernel ends.

    Returns:
        The same shape and dtype.
    """
    kind = (sigma, reach, images.device, _wide_type(images))
    height, width = (_gaussian(length, *kind) for length in images.shape[2:])
    return torch.cat([_blurred(part, height, width) for part in images.split(max(_AT_ONCE // images[0].numel(), 1))])


def _blurred(images: Tensor, height: Bands, width: Bands) -> Tensor:
    rows = _wide(images)
    rows = torch.cat([band @ rows[:, :, some] for some, band in height], 2)
    return torch.cat([rows[..., some] @ band.T for some, band in width], 3).to(images.dtype)


def _wide(images: Tensor) -> Tensor:
    """In float64, whose products no setting or autocast rounds to half precision."""
    return images.to(_wide_type(images))


def _wide_type(images: Tensor) -> torch.dtype:
    return images.dtype if images.device.type == "mps" else torch.float64  # which that does not have


# Matrices stay on their device, as what comes from the CPU makes it wait: this a GPU is told once.
@lru_cache(maxsize=64)
def _interpolation(short: int, long: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix (long, short) of linear interpolation."""
    with torch.inference_mode(False):
        unit = torch.eye(short, dtype=torch.float64, device="cpu")[None]
        matrix = F.interpolate(unit, size=long, mode="linear", align_corners=align_corners)[0].T
        return matrix.to(device, dtype)


@lru_cache(maxsize=4)
def _gaussian(length: int, sigma: float, reach: float, device: torch.device, dtype: torch.dtype) -> Bands:
    """The matrix (length, length) of a convolution with a Gaussian."""
    with torch.inference_mode(False):
        radius = min(math.ceil(reach * sigma), length - 1)  # mirroring cannot reach beyond the image
        steps = torch.arange(-radius, radius + 1, device="cpu")
        kernel = torch.softmax(-0.5 * (steps.double() / sigma) ** 2, 0)
        last = length - 1
        columns = last - (last - (torch.arange(length, device="cpu")[:, None] + steps).abs()).abs()
        matrix = torch.zeros(length, length, dtype=torch.float64, device="cpu")
        matrix.scatter_add_(1, columns, kernel.expand(length, -1))
        return [_band(rows, device, dtype) for rows in matrix.split(_ROWS)]


def _band(rows: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[slice, Tensor]:
    used = rows.any(0).nonzero()
    some = slice(int(used[0]), int(used[-1]) + 1)
    return some, rows[:, some].to(device, dtype).contiguous()
