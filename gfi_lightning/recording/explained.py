"""An explanation as a picture: a row for each image, drawn like the callback's samples."""

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from gfi_lightning.errors import UsageError, check_count
from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.results import Explanation
from gfi_lightning.recording.images import displayable, normalization
from gfi_lightning.recording.pictures import ROOM_FOR_WORDS, Panel, Pixels, compose, depth_panels, sample_panels
from gfi_lightning.recording.record import DepthRecord, SampleRecord, target_records

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF"}
_PANEL = 200  # px of a panel's longer side, about
_TARGETS_IN_A_ROW = 4
_DPI = 100
_QUALITY = 92  # of JPEG, in percent


class _Picture(Figure):
    """Shows itself in a notebook also where pyplot, which tells notebooks how to show figures, was never imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def figure(
    explanation: Explanation,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int | None = None,
) -> Figure:
    """What :meth:`Explanation.plot` returns; the same arguments."""
    pixels = draw_explanation(explanation, class_names, mean, std, limit)
    height, width, _ = pixels.shape
    made = _Picture(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = made.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    return made


def save(
    explanation: Explanation,
    path: str | PathLike[str],
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int | None = None,
) -> None:
    """What :meth:`Explanation.save` does; the same arguments."""
    file = Path(path)
    if file.suffix.lower() not in _FORMATS:
        raise UsageError(f"save({str(path)!r}) cannot write that kind of file: end it with {', '.join(_FORMATS)}.")
    if not file.parent.is_dir():
        raise UsageError(f"save({str(path)!r}): there is no folder {str(file.parent)!r}. Create it first.")
    pixels = draw_explanation(explanation, class_names, mean, std, limit)
    Image.fromarray(pixels).save(file, _FORMATS[file.suffix.lower()], **_options(file))


def _options(file: Path) -> dict[str, Any]:
    return {"quality": _QUALITY} if _FORMATS[file.suffix.lower()] != "PNG" else {}


def png(explanation: Explanation, limit: int | None = None) -> bytes:
    """The picture as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(draw_explanation(explanation, limit=limit)).save(file, "PNG")
    return file.getvalue()


def draw_explanation(
    explanation: Explanation,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int | None = None,
) -> Pixels:
    """For each image a row of the image, stage 1 and the targets' maps, and below it what depths preserve.

    Args:
        explanation: of any number of images, of which the first ones are drawn.
        class_names: by class index; None: the index is shown.
        mean: of the images' normalisation, per channel; None: they are shown as they are, or by their own range.
        std: likewise.
        limit: how many images are drawn; None: all.

    Returns:
        Pixels (height, width, 3), uint8.

    Raises:
        UsageError: mean, std or limit cannot be used.
    """
    if limit is not None:
        check_count("limit", limit)
    count = len(explanation.foreground)
    if count == 0:
        raise UsageError("The explanation is of no images: there is nothing to draw.")
    if class_names is not None and (isinstance(class_names, str) or not hasattr(class_names, "__getitem__")):
        raise UsageError(f"class_names={class_names!r} must be the names of the classes, in their order, or None.")
    shown = explanation.select(torch.arange(count, device=explanation.foreground.device) < (limit or count))
    rows: list[Sequence[Panel | None]] = []
    for number, sample in enumerate(_samples(shown, mean, std)):
        title = f"image {number}" if count > 1 else "image"
        rows += _rows(sample, sample_panels(sample, class_names, title, _PANEL))
    return compose(rows, _header(len(shown.foreground), count), room_for_words=ROOM_FOR_WORDS)


def _rows(sample: SampleRecord, panels: list[Panel]) -> list[Sequence[Panel | None]]:
    """A sample's panels; of many targets the next ones below the first."""
    image, foreground, *targets = panels
    rows: list[Sequence[Panel | None]] = []
    for start in range(0, len(targets), _TARGETS_IN_A_ROW):
        left = [None, None] if start else [image, foreground]
        rows.append([*left, *targets[start : start + _TARGETS_IN_A_ROW]])
    depths, columns = depth_panels(sample, image.picture.width, "depth: "), 2 + _TARGETS_IN_A_ROW
    return rows + [depths[start : start + columns] for start in range(0, len(depths), columns)]


def _header(shown: int, count: int) -> str:
    images = f"{count} image{'s' * (count != 1)}"
    return images if shown == count else f"the first {shown} of {images}"


def _samples(explanation: Explanation, mean: Sequence[float] | None, std: Sequence[float] | None) -> list[SampleRecord]:
    """What there is to draw of each image; an image that is not known is grey."""
    size = explanation.foreground.shape
    known = explanation.images
    given = normalization(mean, std)
    if known is not None and given is not None and len(given[0]) not in (1, known.shape[1]):
        raise UsageError(
            f"mean={list(given[0])} has {len(given[0])} numbers, but the images have {known.shape[1]} channels: "
            "give one number per channel, or one for all."
        )
    images = torch.full((size[0], 1, *size[1:]), 0.5) if known is None else displayable(known, given)
    predicted, scores = explanation.predicted, explanation.predicted_score
    return [
        SampleRecord(
            image=images[number],
            label=None,
            predicted=None if predicted is None else int(predicted[number]),
            predicted_score=None if scores is None else float(scores[number]),
            foreground=explanation.foreground[number].cpu(),
            targets=targets,
            depths=_depths(explanation, number),
        )
        for number, targets in enumerate(target_records(explanation))
    ]


def _depths(explanation: Explanation, number: int) -> list[DepthRecord]:
    if explanation.depths is None:
        return []
    maps = explanation.depths[number].cpu()
    names = explanation.layers or [f"depth {place}" for place in range(len(maps))]
    grids = explanation.grids or [image_size(maps)] * len(maps)
    return [DepthRecord(*one) for one in zip(names, grids, maps, strict=True)]
