"""Linear maps of images that act on rows and columns one after the other, as matrix products.

On a CPU they are faster than the convolutions and interpolations that do the same, and their way back is deterministic
on a GPU.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


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
    return _mapped(maps, height, width)


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
    return _mapped(images, height, width)


def _mapped(images: Tensor, height: Tensor, width: Tensor) -> Tensor:
    # Products of float64, which no setting or autocast rounds to half precision; MPS has none.
    dtype = torch.float64 if images.device.type != "mps" else images.dtype
    height, width = (one.to(images.device, dtype) for one in (height, width))
    return (height @ images.to(dtype) @ width.T).to(images.dtype)


@lru_cache(maxsize=64)
def _interpolation(short: int, long: int, align_corners: bool) -> Tensor:
    """The matrix (long, short) of linear interpolation."""
    with torch.inference_mode(False):
        unit = torch.eye(short, dtype=torch.float64)[None]
        return F.interpolate(unit, size=long, mode="linear", align_corners=align_corners)[0].T


@lru_cache(maxsize=8)
def _gaussian(length: int, sigma: float, reach: float) -> Tensor:
    """The matrix (length, length) of a convolution with a Gaussian."""
    with torch.inference_mode(False):
        radius = min(math.ceil(reach * sigma), length - 1)  # mirroring cannot reach beyond the image
        positions = torch.arange(-radius, radius + 1, dtype=torch.float64)
        kernel = torch.softmax(-0.5 * (positions / sigma) ** 2, 0)
        unit = torch.eye(length, dtype=torch.float64)[:, None]
        return F.conv1d(F.pad(unit, (radius, radius), mode="reflect"), kernel[None, None])[:, 0].T
