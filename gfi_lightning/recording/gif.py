"""Animations of overlays, as GIFs.

A GIF has one palette of 256 colours. An overlay mixes a grey image with the colours of a map, so the palette is every
grey with every heat, and a few shades for letters. It is the same for all animations, and neither the photographs nor
the colour map lose hues to the others. What lies between two levels is made of both, in a fixed pattern: it does not
flicker, and what has not changed from one frame to the next takes no space.
"""

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gfi_lightning.recording.encoding import EncodedPicture
from gfi_lightning.recording.lettering import INK, PAPER
from gfi_lightning.recording.pictures import Pixels, overlays

Indices = NDArray[np.uint8]  # (height, width), of colours

# 255 colours together: with the one that is left Pillow marks what stays as it was.
_GREYS, _HEATS, _SHADES = 12, 20, 15


def greys(image: Pixels) -> Indices:
    """A grey image (height, width), uint8, where there is no heat."""
    return _HEATS * _levels(image / 255, _GREYS, _pattern(image.shape))


def heats(heatmap: NDArray[np.float32]) -> Indices:
    """What a map (height, width), in [0, 1], adds to the greys."""
    height, width = heatmap.shape
    return _levels(heatmap, _HEATS, _pattern((width, height)).T[::-1])  # another one than that of the greys


def letters(canvas: Image.Image) -> Indices:
    """Dark letters on white paper, mode L."""
    darkness = np.asarray(canvas) / -255 + 1
    return (_GREYS * _HEATS + (darkness * (_SHADES - 1)).round()).astype(np.uint8)


def gif(frames: Sequence[Indices], milliseconds: Sequence[int]) -> EncodedPicture:
    """An animation that plays for ever.

    Args:
        frames: of the same size.
        milliseconds: for which each is shown.
    """
    height, width = frames[0].shape
    images = []
    for frame in frames:
        image = Image.frombytes("P", (width, height), frame.tobytes())
        image.putpalette(_palette())
        images.append(image)
    data = io.BytesIO()
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=list(milliseconds), loop=0)
    return EncodedPicture(data.getvalue(), height, width, "gif", "all samples, step by step", of_all_runs=True)


def _levels(values: NDArray[np.floating], count: int, thresholds: NDArray[np.float64]) -> Indices:
    """Each value in [0, 1] as one of the two levels beside it, the nearer one more often in its neighbourhood."""
    return np.minimum(values * (count - 1) + thresholds, count - 1).astype(np.uint8)


@cache
def _pattern(shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers in [0, 1), evenly spread in each neighbourhood, without the mesh of an ordered matrix.

    It is the interleaved gradient noise of Jimenez ("Next generation post processing in Call of Duty", 2014).
    """
    rows, columns = np.indices(shape)
    return (52.9829189 * ((0.06711056 * columns + 0.00583715 * rows) % 1)) % 1


@cache
def _palette() -> bytes:
    grey, heat = np.linspace(0, 255, _GREYS).round().astype(int), np.linspace(0, 256, _HEATS).astype(int).clip(max=255)
    mixed: Pixels = overlays()[grey[:, None], heat]
    shades: Pixels = np.linspace(PAPER, INK, _SHADES).round().astype(np.uint8)
    return mixed.tobytes() + shades.tobytes()
