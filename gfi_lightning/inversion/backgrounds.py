"""Backgrounds, the image with its information taken away (Du et al. 2018, section 3.2), and noise."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.separable import gaussian_blur

Background = Callable[[Tensor], Tensor]

_BLUR_SIGMA_AT_224 = 11.0
_BLUR_TRUNCATE = 3.0  # the kernel ends at three standard deviations, where 0.3 % of a Gaussian are left


def blur(images: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of 11 px at 224 px, scaled with the image's shorter side.

    At 224 px the standard deviation is 11 px, at 32 px it is 1.6 px, so that small images keep some of
    their colours. Borders are mirrored.

    The paper writes "radius 11" and its authors call PIL's ``GaussianBlur(radius=11)`` on the image as it
    was on disk. PIL's *radius* is the standard deviation as well, not the reach of the kernel; but PIL
    approximates the Gaussian by three box filters, rounds to 8 bits, repeats the border pixels, and, before
    resizing, works at another scale: a 500 px photograph blurred by 11 px and then shrunk to 224 px is
    blurred by only 4.9 px as the network sees it.

    Args:
        images: shape (N, C, H, W), floating point. Normalised or not: blurring commutes with normalising.

    Returns:
        The blurred images, same shape and dtype.
    """
    height, width = images.shape[-2:]
    return gaussian_blur(images, _BLUR_SIGMA_AT_224 * min(height, width) / 224, _BLUR_TRUNCATE)


def mean(images: Tensor) -> Tensor:
    """Each image's own mean colour, everywhere.

    The paper takes the data set's mean colour; the image's own needs no knowledge of the data set, is right
    for normalised and raw images alike, and leaves the images of a batch independent of each other.

    Args:
        images: shape (N, C, H, W), floating point.

    Returns:
        One colour per image, same shape and dtype.
    """
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images).contiguous()


def noise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian white noise with each image's own mean and standard deviation per channel.

    All images of a batch get the same pattern, so that a map does not depend on an image's place in the
    batch; and the generator is copied, not advanced, so that the same generator gives the same map again.

    Args:
        images: shape (N, C, H, W), floating point.
        generator: a CPU generator; None: one that is seeded with 0.

    Returns:
        Noise, same shape and dtype.
    """
    source = torch.Generator()
    if generator is None:
        source.manual_seed(0)
    else:
        source.set_state(generator.get_state())
    pattern = _pattern(images.shape[1:], source).to(images)
    spread = images.std(dim=(2, 3), keepdim=True, correction=0)
    return images.mean(dim=(2, 3), keepdim=True) + spread * pattern


def with_noise(images: Tensor, count: int, size: float) -> Iterator[Tensor]:
    """The images under Gaussian white noise, each pattern once added and once subtracted.

    As in :func:`noise`, all images of a batch get the same patterns, and get them again in the next call.

    Args:
        images: shape (N, C, H, W), floating point.
        count: how often.
        size: the noise's standard deviation as a share of each image's range.

    Yields:
        Images of the same shape and dtype, count times.
    """
    scale = size * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    patterns = _patterns(images.shape[1:], (count + 1) // 2, images.device, images.dtype)
    for number in range(count):
        pattern = scale * patterns[number // 2]
        yield images - pattern if number % 2 else images + pattern


@lru_cache(maxsize=2)
def _patterns(shape: torch.Size, count: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """So many patterns of white noise, (C, H, W): drawing them takes longer than a small network's pass."""
    source = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        return tuple(_pattern(shape, source).to(device, dtype) for _ in range(count))


def _pattern(shape: torch.Size, source: torch.Generator) -> Tensor:
    """White noise of one image's shape, (C, H, W)."""
    # Drawn on the CPU in one precision, so that every device and precision sees the same pattern.
    return torch.randn(shape, generator=source, dtype=torch.float32, device="cpu")


_BACKGROUNDS = ("blur", "mean", "noise")


def background_function(background: str | Background, generator: torch.Generator | None = None) -> Background:
    """The function behind a background's name.

    Args:
        background: "blur", "mean", "noise", or a callable from images (N, C, H, W) to the same shape.
        generator: for "noise"; see :func:`noise`.

    Raises:
        UsageError: the name is unknown, or the generator is not on the CPU.
    """
    if generator is not None and generator.device.type != "cpu":
        raise UsageError(f"generator is on {generator.device}; the noise background needs a CPU generator.")
    if callable(background):
        return background
    if background == "blur":
        return blur
    if background == "mean":
        return mean
    if background == "noise":
        return lambda images: noise(images, generator)
    raise UsageError(
        f"background={background!r} is unknown: use one of {', '.join(_BACKGROUNDS)}, "
        "or a callable from images (N, C, H, W) to images of the same shape."
    )
