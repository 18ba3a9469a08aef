"""Linear maps of images that act on rows and columns one after the other, as matrix products.

On a CPU they are faster than the convolutions and interpolations that do the same, and their way back is deterministic
on a GPU.
"""

import math
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
    height, width = (_interpolation(*lengths, align_corners) for lengths in zip(maps.shape[2:], size, strict=True))
    return (_wide(height, maps) @ _wide(maps, maps) @ _wide(width, maps).T).to(maps.dtype)


def gaussian_blur(images: Tensor, sigma: float, reach: float) -> Tensor:
    """Convolution with a Gaussian; the borders are mirrored.

    Args:
        images: shape (N, C, H, W).
        sigma: standard deviation in px.
        reach: standard deviations at which the kernel ends.

    Returns:
        The same shape and dtype.
    """
    height, width = (_gaussian(length, sigma, reach) for length in images.shape[2:])
    return torch.cat([_blurred(part, height, width) for part in images.split(max(_AT_ONCE // images[0].numel(), 1))])


def _blurred(images: Tensor, height: Bands, width: Bands) -> Tensor:
    rows = _wide(images, images)
    rows = torch.cat([_wide(band, images) @ rows[:, :, some] for some, band in height], 2)
    return torch.cat([rows[..., some] @ _wide(band, images).T for some, band in width], 3).to(images.dtype)


def _wide(one: Tensor, images: Tensor) -> Tensor:
    """In float64, whose products no setting or autocast rounds to half precision, on the images' device."""
    has_float64 = images.device.type != "mps"
    return one.to(images.device, torch.float64 if has_float64 else images.dtype)


@lru_cache(maxsize=64)
def _interpolation(short: int, long: int, align_corners: bool) -> Tensor:
    """The matrix (long, short) of linear interpolation."""
    with torch.inference_mode(False):
        unit = torch.eye(short, dtype=torch.float64, device="cpu")[None]
        return F.interpolate(unit, size=long, mode="linear", align_corners=align_corners)[0].T


@lru_cache(maxsize=2)
def _gaussian(length: int, sigma: float, reach: float) -> Bands:
    """The matrix (length, length) of a convolution with a Gaussian."""
    with torch.inference_mode(False):
        radius = min(math.ceil(reach * sigma), length - 1)  # mirroring cannot reach beyond the image
        steps = torch.arange(-radius, radius + 1, device="cpu")
        kernel = torch.softmax(-0.5 * (steps.double() / sigma) ** 2, 0)
        last = length - 1
        columns = last - (last - (torch.arange(length, device="cpu")[:, None] + steps).abs()).abs()
        matrix = torch.zeros(length, length, dtype=torch.float64, device="cpu")
        matrix.scatter_add_(1, columns, kernel.expand(length, -1))
        return [_band(rows) for rows in matrix.split(_ROWS)]


def _band(rows: Tensor) -> tuple[slice, Tensor]:
    used = rows.any(0).nonzero()
    some = slice(int(used[0]), int(used[-1]) + 1)
    return some, rows[:, some].contiguous()
