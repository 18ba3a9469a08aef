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
    parts = images.split(max(_AT_ONCE // images[0].numel(), 1))
    return torch.cat([_mapped(part, height, width) for part in parts])


def _mapped(images: Tensor, height: Tensor, width: Tensor) -> Tensor:
    # Products of float64, which no setting or autocast rounds to half precision; MPS has none.
    dtype = torch.float64 if images.device.type != "mps" else images.dtype
    height, width = (one.to(images.device, dtype) for one in (height, width))
    return (height @ images.to(dtype) @ width.T).to(images.dtype)


@lru_cache(maxsize=64)
def _interpolation(short: int, long: int, align_corners: bool) -> Tensor:
    """The matrix (long, short) of linear interpolation."""
    with torch.inference_mode(False):
        unit = torch.eye(short, dtype=torch.float64, device="cpu")[None]
        return F.interpolate(unit, size=long, mode="linear", align_corners=align_corners)[0].T


@lru_cache(maxsize=2)
def _gaussian(length: int, sigma: float, reach: float) -> Tensor:
    """The matrix (length, length) of a convolution with a Gaussian."""
    with torch.inference_mode(False):
        radius = min(math.ceil(reach * sigma), length - 1)  # mirroring cannot reach beyond the image
        steps = torch.arange(-radius, radius + 1, device="cpu")
        kernel = torch.softmax(-0.5 * (steps.double() / sigma) ** 2, 0)
        last = length - 1
        columns = last - (last - (torch.arange(length, device="cpu")[:, None] + steps).abs()).abs()
        matrix = torch.zeros(length, length, dtype=torch.float64, device="cpu")
        return matrix.scatter_add_(1, columns, kernel.expand(length, -1))
