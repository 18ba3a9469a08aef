"""What the page is made of, as plain values: its scripts, in ``assets``, read exactly this."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from gfi_lightning.recording.history import History

Array = NDArray[Any]
Values = dict[str, Any]

COLOR_MAPS = ("inferno", "magma", "viridis", "cividis", "turbo", "gray")  # the first is the one to begin with
MISSING = 255  # the level of a map that is not there; those that are reach from 0 to 254

_LARGEST_IMAGE = 512  # px of the longer side, twice what the page shows
_LARGEST_MASK = 256  # px of the longer side
_SMALL_IMAGE = 96  # px of the longer side, up to which images are kept without loss
_JPEG_QUALITY = 85


def contents(histories: Mapping[str, History]) -> Values:
    """Everything that the page shows of runs, by their names."""
    images: dict[str, int] = {}  # each once, however many runs show it: their data, and their place in the list
    runs = [_run(name, history, images) for name, history in histories.items()]
    return {"missing": MISSING, "colorMaps": _color_maps(), "images": list(images), "runs": runs}


def packed(array: Array) -> Values:
    """An array as base64, little-endian: whole numbers as int32 or uint8, others as float32."""
    kind = {"f": "f4", "i": "i4", "u": "u1"}[array.dtype.kind]
    data = np.ascontiguousarray(array, dtype=f"<{kind}").tobytes()
    return {"type": kind, "shape": list(array.shape), "data": _base64(data)}


def levels(maps: Array) -> Array:
    """Maps (..., h, w) in [0, 1] as levels from 0 to 254, uint8; one with a value that is not finite as MISSING."""
    there = np.isfinite(maps).all(axis=(-2, -1), keepdims=True)
    scaled = np.clip(np.nan_to_num(maps), 0, 1) * (MISSING - 1)
    return np.where(there, scaled.round(), MISSING).astype(np.uint8)


def _run(name: str, history: History, images: dict[str, int]) -> Values:
    samples = range(len(history.labels))

    def per_sample(read: Callable[[int], Array]) -> Array:
        """(steps, N, ...) from what a sample has, (steps, ...)."""
        return np.stack([read(sample) for sample in samples], axis=1)

    targets, against = per_sample(history.targets), per_sample(history.against)
    return {
        "name": name,
        "steps": history.steps,
        "epochs": history.epochs,
        "classes": [history.classes(sample) for sample in samples],
        "scoreName": "p" if _are_probabilities(history) else "score",
        "images": [images.setdefault(data_uri(image), len(images)) for image in history.images],
        "classNames": _names_of(history, targets, against),
        "targets": packed(targets),
        "against": packed(against),
        "heatmaps": packed(per_sample(lambda sample: levels(history.heatmaps(sample)))),
        "foregrounds": packed(per_sample(lambda sample: levels(history.foregrounds(sample)))),
        "scores": {
            of: packed(per_sample(partial(history.scores, name=of))) for of in ("score", "preserved", "removed")
        },
        "predicted": packed(history.predicted),
        "predictedScores": packed(history.predicted_scores),
        "curves": [{"name": curve, **packed(history.curve(curve))} for curve in history.curves],
        "settled": history.settled() if "drift" in history.curves else None,
        "regions": [{"name": region, **_mask(masks)} for region, masks in history.regions.items()],
    }


def _are_probabilities(history: History) -> bool:
    """Whether scores are, and not what a user's own function gives."""
    scores = np.concatenate([history.scores(sample).ravel() for sample in range(len(history.labels))])
    return bool(((scores >= 0) & (scores <= 1) | ~np.isfinite(scores)).all())


def _names_of(history: History, *classes: Array) -> dict[str, str]:
    """The names of those classes that occur: there may be thousands, and samples are few."""
    known = [index for sample in range(len(history.labels)) for index in history.classes(sample) or []]
    parts = [np.array(known, dtype=np.int64), history.predicted.ravel(), *(part.ravel() for part in classes)]
    occurring = np.unique(np.concatenate(parts))
    named = (int(index) for index in occurring if 0 <= index < len(history.class_names))
    return {str(index): history.class_names[index] for index in named}


def data_uri(image: Array) -> str:
    """An image (H, W, 3), uint8, to be embedded: small ones, and those that are no larger for it, without loss."""
    picture = Image.fromarray(image)
    picture.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE), Image.Resampling.LANCZOS)
    png = _encoded(picture, "PNG", optimize=True)
    if max(picture.size) <= _SMALL_IMAGE:
        return f"data:image/png;base64,{_base64(png)}"
    jpeg = _encoded(picture, "JPEG", quality=_JPEG_QUALITY)
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{_base64(data)}"


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _mask(masks: Array) -> Values:
    """Where something lies, (N, H, W), bool: eight positions in a byte, the highest bit first."""
    height, width = masks.shape[1:]
    factor = min(_LARGEST_MASK / max(height, width, 1), 1)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    # By maxima: what is small and there must not get lost.
    shrunk = F.adaptive_max_pool2d(torch.from_numpy(masks.astype(np.float32)), size).bool().numpy()
    bits = [_base64(np.packbits(mask).tobytes()) if mask.any() else None for mask in shrunk]
    return {"size": list(size), "masks": bits}


def _color_maps() -> Sequence[Values]:
    """Of each colour map 256 colours (red, green, blue), one byte each."""
    tables = {name: matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3] for name in COLOR_MAPS}
    return [{"name": name, "colors": _base64(table.tobytes())} for name, table in tables.items()]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
