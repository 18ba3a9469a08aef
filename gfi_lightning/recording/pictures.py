"""Pictures to look at: a row of panels per sample, and an overview of all samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gfi_lightning.recording.record import Record, SampleRecord, TargetRecord

Pixels = NDArray[np.uint8]

COLOR_MAP = "inferno"  # perceptually uniform, and dark, that is out of the way, where there is nothing to see
_OPACITY = 0.6
_PANEL, _SMALL_PANEL, _LARGEST_PANEL = 256, 144, 512  # px of a panel's longer side
_OVERVIEW_COLUMNS = 8
_MARGIN, _LINE, _FONT_SIZE = 14, 21, 15
_BAR, _BAR_WIDTH = 14, 48  # px of the colour bar, alone and with its numbers
_INK, _FAINT, _PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)


def overlay(image: Tensor, heatmap: Tensor, longer_side: int = _PANEL) -> Image.Image:
    """The colour map over the grey image; enlarged, so that small images can be read.

    Args:
        image: (C, H, W), in [0, 1]; see :func:`rgb` for channels.
        heatmap: (H, W), in [0, 1].
        longer_side: px; see :func:`enlarged`.
    """
    base = enlarged(image, longer_side)
    gray = np.asarray(base.convert("L").convert("RGB"), dtype=np.float32)
    heat = Image.fromarray(heatmap.numpy()).resize(base.size, Image.Resampling.BILINEAR)
    colors = matplotlib.colormaps[COLOR_MAP](np.clip(np.asarray(heat), 0, 1))[..., :3] * 255
    return Image.fromarray(((1 - _OPACITY) * gray + _OPACITY * colors).round().astype(np.uint8))


def rgb(image: Tensor) -> Pixels:
    """An image (C, H, W), in [0, 1], as pixels (H, W, 3), uint8.

    3 channels are red, green and blue; of more the first three are shown, of fewer the first, in grey.
    """
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray((channels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def enlarged(image: Tensor, longer_side: int = _PANEL) -> Image.Image:
    """An image, enlarged by a whole factor to at least the given longer side, shrunk only beyond 512 px.

    Args:
        image: (C, H, W), in [0, 1]; see :func:`rgb` for channels.
        longer_side: px.
    """
    picture = Image.fromarray(rgb(image))
    side = max(picture.size)
    largest = max(_LARGEST_PANEL * longer_side // _PANEL, 1)
    factor = -(-longer_side // side) if side < largest else largest / side
    if factor == 1:
        return picture
    width, height = (max(1, round(edge * factor)) for edge in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Panel:
    """A picture with one line above and any number below."""

    picture: Image.Image
    title: str
    captions: Sequence[str] = ()


def draw_sample(sample: SampleRecord, number: int, step: int, class_names: Sequence[str] | None = None) -> Pixels:
    """One sample's picture: the image, stage 1, and each target's overlay, with captions and a colour bar.

    Args:
        sample: what was seen.
        number: of the sample, for the caption.
        step: of the x axis.
        class_names: by class index; None: the index is shown.

    Returns:
        Pixels (height, width, 3), uint8.
    """
    panels = [
        Panel(enlarged(sample.image), "image", _label_and_prediction(sample, class_names)),
        Panel(overlay(sample.image, sample.foreground), "stage 1: any class", ["what the features preserve"]),
    ]
    for target in sample.targets:
        title = f"stage 2: {_name(target.target, class_names)}"
        captions = [_role(target, sample), *_scores(target)]
        panels.append(Panel(overlay(sample.image, target.heatmap), title, captions))
    # Two beside each other: TensorBoard's cards are narrow, and shrink what is wide until nobody can read it.
    rows = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    return compose(rows, f"sample {number}  ·  step {step}")


def draw_overview(record: Record, class_names: Sequence[str] | None = None) -> Pixels:
    """All samples, a column each, eight beside each other: the image, stage 1, and each target's overlay, small.

    Returns:
        Pixels (height, width, 3), uint8.
    """
    columns = [
        [
            Panel(enlarged(sample.image, _SMALL_PANEL), f"sample {number}", _label_and_prediction(sample, class_names)),
            Panel(overlay(sample.image, sample.foreground, _SMALL_PANEL), "any class"),
            *(_small_target(target, sample, class_names) for target in sample.targets),
        ]
        for number, sample in enumerate(record.samples)
    ]
    rows: list[list[Panel | None]] = []
    for start in range(0, len(columns), _OVERVIEW_COLUMNS):
        rows += map(list, zip_longest(*columns[start : start + _OVERVIEW_COLUMNS]))
    return compose(rows, f"{len(columns)} samples  ·  step {record.step}")


def _small_target(target: TargetRecord, sample: SampleRecord, class_names: Sequence[str] | None) -> Panel:
    picture = overlay(sample.image, target.heatmap, _SMALL_PANEL)
    if target.degenerate:
        return Panel(picture, _name(target.target, class_names), ["no evidence found"])
    captions = [f"kept {target.preserved:.2f}", f"removed {target.removed:.2f}"]
    return Panel(picture, _name(target.target, class_names), captions)


def _name(index: int, class_names: Sequence[str] | None) -> str:
    return str(class_names[index]) if class_names and 0 <= index < len(class_names) else f"class {index}"


def _label_and_prediction(sample: SampleRecord, class_names: Sequence[str] | None) -> list[str]:
    lines = []
    if sample.label is not None:
        lines.append(f"label: {_name(sample.label, class_names)}")
    if sample.predicted is not None and sample.predicted_score is not None:
        verdict = "" if sample.label is None else " ✓" if sample.label == sample.predicted else " ✗"
        lines.append(f"predicted{verdict}: {_name(sample.predicted, class_names)}")
        lines.append(f"p {sample.predicted_score:.2f}")
    return lines


def _role(target: TargetRecord, sample: SampleRecord) -> str:
    roles = [
        name for name, index in (("label", sample.label), ("prediction", sample.predicted)) if index == target.target
    ]
    return "the " + " and the ".join(roles) if roles else "as asked for"


def _scores(target: TargetRecord) -> list[str]:
    if target.degenerate:
        return ["no evidence found", f"p {target.score:.2f}"]
    return [f"p {target.score:.2f}", f"kept {target.preserved:.2f} · removed {target.removed:.2f}"]


def compose(rows: Sequence[Sequence[Panel | None]], header: str) -> Pixels:
    """Panels in rows below a header, and a colour bar at the right: pixels (height, width, 3), uint8.

    None leaves a place empty.
    """
    columns = [[panel for panel in column if panel] for column in zip_longest(*rows)]
    widths = [max(panel.picture.width for panel in column) for column in columns]
    heights = [max(_height(panel) for panel in row if panel) for row in rows]
    bar_left = _MARGIN + sum(width + _MARGIN for width in widths)
    top = _MARGIN + _LINE
    size = (bar_left + _BAR_WIDTH + _MARGIN, top + sum(height + _MARGIN for height in heights))
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 4), header, fill=_INK, font=_font(bold=True))
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for panel, width in zip(row, widths, strict=False):
            if panel:
                _draw_panel(canvas, draw, panel, (left, top), width)
            left += width + _MARGIN
        top += height + _MARGIN
    first = next(panel for panel in rows[0] if panel)
    _draw_color_bar(canvas, draw, (bar_left, _MARGIN + 2 * _LINE), first.picture.height)
    return np.asarray(canvas)


def _height(panel: Panel) -> int:
    return panel.picture.height + _LINE * (1 + len(panel.captions))


def _draw_panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, corner: tuple[int, int], width: int
) -> None:
    left, top = corner
    draw.text((left, top), _fitted(panel.title, width, bold=True), fill=_INK, font=_font(bold=True))
    canvas.paste(panel.picture, (left, top + _LINE))
    for number, caption in enumerate(panel.captions):
        line = top + _LINE * (1 + number) + panel.picture.height + 2
        draw.text((left, line), _fitted(caption, width), fill=_FAINT if number else _INK, font=_font())


def _draw_color_bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], height: int) -> None:
    left, top = corner
    colors = matplotlib.colormaps[COLOR_MAP](np.linspace(1, 0, height))[:, None, :3].repeat(_BAR, axis=1)
    # Blended with the same opacity as an overlay, over mid grey: the colours that are seen are the ones explained.
    blended = ((1 - _OPACITY) * 128 + _OPACITY * 255 * colors).round().astype(np.uint8)
    canvas.paste(Image.fromarray(blended), (left, top))
    for value, middle in (("1", top), ("0.5", top + height // 2), ("0", top + height)):
        draw.text((left + _BAR + 4, middle), value, fill=_INK, font=_font(), anchor="lm")


def _fitted(text: str, width: int, bold: bool = False) -> str:
    """The text, shortened with an ellipsis to at most the given width in px."""
    font = _font(bold)
    if font.getlength(text) <= width:
        return text
    shorter = next((end for end in range(len(text), 0, -1) if font.getlength(text[:end] + "…") <= width), 0)
    return text[:shorter] + "…"


@cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib ships the font, so that it is there on every machine, with Greek, Cyrillic and signs.
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), _FONT_SIZE)
