"""Pictures to look at: a row of panels per sample, and an overview of all samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from gfi_lightning.recording.lettering import FAINT, INK, LINE, PAPER, fitted, font
from gfi_lightning.recording.record import Record, SampleRecord, TargetRecord, class_name

Pixels = NDArray[np.uint8]

COLOR_MAP = "inferno"  # perceptually uniform, and dark, that is out of the way, where there is nothing to see
_OPACITY = 0.6
_PANEL, _SMALL_PANEL = 256, 144  # px of a panel's longer side, about
_NEARLY = 0.75  # of it: images that large are not enlarged, nor shrunk up to its inverse
_OVERVIEW_COLUMNS = 8
_DEPTHS_IN_A_ROW = 4
_MARGIN = 14  # px
ROOM_FOR_WORDS = 250  # px that a narrow panel's column is widened to at most, where its words need them
_BAR, _BAR_WIDTH = 14, 48  # px of the colour bar, alone and with its numbers


def overlay(image: Tensor, heatmap: Tensor, longer_side: int = _PANEL) -> Image.Image:
    """The colour map over the grey image; enlarged, so that small images can be read.

    Args:
        image: (C, H, W), in [0, 1]; see :func:`rgb` for channels.
        heatmap: (H, W), in [0, 1].
        longer_side: px; see :func:`enlarged`.
    """
    return overlaid(enlarged(image, longer_side), heatmap.numpy())


def overlaid(picture: Image.Image, heatmap: NDArray[np.float32]) -> Image.Image:
    """The colour map over a picture, in grey.

    Args:
        picture: of any size.
        heatmap: (h, w), in [0, 1], enlarged to it.
    """
    heat = np.minimum(resized(heatmap, picture.size) * 256, 255).astype(np.uint16)
    grey = np.asarray(picture.convert("L"))
    # A single index finds a pixel in less than half the time that two take.
    return Image.fromarray(overlays().reshape(-1, 3).take(grey * np.uint16(256) + heat, axis=0))


def resized(heatmap: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (h, w) at a size in px, (width, height), in [0, 1]."""
    return np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


@cache
def overlays() -> Pixels:
    """The overlay of each grey (256) with each of the colour map's colours (256), (256, 256, 3).

    To look them up takes less time than to blend each pixel.
    """
    grey = np.arange(256, dtype=np.float32)[:, None, None]
    colors = matplotlib.colormaps[COLOR_MAP](np.arange(256))[:, :3] * 255
    return ((1 - _OPACITY) * grey + _OPACITY * colors).round().astype(np.uint8)


def rgb(image: Tensor) -> Pixels:
    """An image (C, H, W), in [0, 1], as pixels (H, W, 3), uint8.

    3 channels are red, green and blue; of more the first three are shown, of fewer the first, in grey.
    """
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray((channels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def enlarged(image: Tensor, longer_side: int = _PANEL) -> Image.Image:
    """An image at about the given longer side.

    One from three quarters to four thirds of that side stays as it is, a smaller one is enlarged by the least whole
    factor that reaches it, a larger one shrunk to four thirds. Larger pictures would take longer to draw, and a
    TensorBoard card would shrink their letters with them.

    Args:
        image: (C, H, W), in [0, 1]; see :func:`rgb` for channels.
        longer_side: px.
    """
    picture = Image.fromarray(rgb(image))
    side = max(picture.size)
    if _NEARLY <= side / longer_side <= 1 / _NEARLY:
        return picture
    factor = -(-longer_side // side) if side < longer_side else longer_side / _NEARLY / side
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

    Where another method has made the maps there is no stage 1, and the method's name is in their titles. Below them,
    where there are any, what each depth still sees.

    Args:
        sample: what was seen.
        number: of the sample, for the caption.
        step: of the x axis.
        class_names: by class index; None: the index is shown.

    Returns:
        Pixels (height, width, 3), uint8.
    """
    panels = sample_panels(sample, class_names)
    # Two beside each other: TensorBoard's cards are narrow, and shrink what is wide until nobody can read it.
    rows = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    pixels = compose(rows, f"sample {number}  ·  step {step}", room_for_words=ROOM_FOR_WORDS)
    return _below(pixels, draw_depths(sample, pixels.shape[1])) if sample.depths else pixels


def caption_of_sample(sample: SampleRecord, number: int, class_names: Sequence[str] | None = None) -> str:
    """What a sample's picture shows, in one line, for loggers that show a line of text with it."""
    maps = [", ".join([*_named(target, class_names), *_scores(target)]) for target in sample.targets]
    facts = ", ".join([f"sample {number}", *_label_and_prediction(sample, class_names)])
    return "; ".join([facts, *maps])


def _named(target: TargetRecord, class_names: Sequence[str] | None) -> list[str]:
    name = f"map of {class_name(target.target, class_names)}"
    return [name] if target.against is None else [name, f"rather than {class_name(target.against, class_names)}"]


def sample_panels(
    sample: SampleRecord, class_names: Sequence[str] | None, title: str = "image", longer_side: int = _PANEL
) -> list[Panel]:
    """The image, with a title, stage 1, and each target's overlay, with captions.

    Args:
        sample: what was seen.
        class_names: by class index; None: the index is shown.
        title: of the image.
        longer_side: of each, px; see :func:`enlarged`.
    """
    image = enlarged(sample.image, longer_side)
    panels = [Panel(image, title, _label_and_prediction(sample, class_names))]
    if sample.foreground.numel():
        picture = overlaid(image, sample.foreground.numpy())
        panels.append(Panel(picture, "stage 1: any class", ["what the features preserve"]))
    for target in sample.targets:
        picture = overlaid(image, target.heatmap.numpy())
        if sample.method:
            title, rest = _by_method(sample.method, class_name(target.target, class_names), picture.width)
        else:
            title, rest = _question(target, class_names, "stage 2: ", picture.width)
        panels.append(Panel(picture, title, [*rest, _role(target, sample), *_scores(target)]))
    return panels


def draw_depths(sample: SampleRecord, width: int) -> Pixels:
    """What each depth still sees, from the first to the last, four beside each other.

    Args:
        sample: with depths.
        width: that they share, px.

    Returns:
        Pixels (height, about the width, 3), uint8.
    """
    count = len(sample.depths)
    columns = max(-(-count // -(-count // _DEPTHS_IN_A_ROW)), 2)
    each = (width - (columns + 1) * _MARGIN) // columns
    panels = depth_panels(sample, each)
    rows = [panels[start : start + columns] for start in range(0, count, columns)]
    return compose(rows, "what each depth still sees", color_bar=False)


def depth_panels(sample: SampleRecord, width: int, what: str = "") -> list[Panel]:
    """What each depth still sees, each as wide as said, px; and what it is called, in front of its layer's name."""
    image = enlarged(sample.image)
    return [
        Panel(
            _of_width(overlaid(image, depth.heatmap.numpy()), width),
            what + fitted(depth.layer, width, bold=True, keep_end=True),
            [" × ".join(map(str, depth.grid))],
        )
        for depth in sample.depths
    ]


def _of_width(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)


def _below(upper: Pixels, lower: Pixels) -> Pixels:
    """Two pictures, one below the other, on paper as wide as the wider one."""
    width = max(upper.shape[1], lower.shape[1])
    paper = np.full((len(upper) + len(lower), width, 3), PAPER, dtype=np.uint8)
    paper[: len(upper), : upper.shape[1]] = upper
    paper[len(upper) :, : lower.shape[1]] = lower
    return paper


def draw_overview(record: Record, class_names: Sequence[str] | None = None) -> Pixels:
    """All samples, a column each, eight beside each other: the image, stage 1, and each target's overlay, small.

    Returns:
        Pixels (height, width, 3), uint8.
    """
    columns = [_small_panels(sample, number, class_names) for number, sample in enumerate(record.samples)]
    rows: list[list[Panel | None]] = []
    for start in range(0, len(columns), _OVERVIEW_COLUMNS):
        rows += map(list, zip_longest(*columns[start : start + _OVERVIEW_COLUMNS]))
    header = [f"{len(columns)} samples", f"step {record.step}", record.samples[0].method]
    return compose(rows, "  ·  ".join(filter(None, header)))


def _small_panels(sample: SampleRecord, number: int, class_names: Sequence[str] | None) -> list[Panel]:
    image = enlarged(sample.image, _SMALL_PANEL)
    panels = [Panel(image, f"sample {number}", _label_and_prediction(sample, class_names))]
    if sample.foreground.numel():
        panels.append(Panel(overlaid(image, sample.foreground.numpy()), "any class"))
    return panels + [_small_target(target, image, class_names) for target in sample.targets]


def _small_target(target: TargetRecord, image: Image.Image, class_names: Sequence[str] | None) -> Panel:
    title, rest = _question(target, class_names, "", image.width)
    found = [f"kept {target.preserved:.2f}", f"removed {target.removed:.2f}"]
    lines = [*rest, *(["no evidence found"] if target.degenerate else found)]
    return Panel(overlaid(image, target.heatmap.numpy()), title, lines)


def _question(
    target: TargetRecord, class_names: Sequence[str] | None, prefix: str, width: int
) -> tuple[str, list[str]]:
    """What a map explains, as a title, and as lines below the map where one line does not hold it."""
    name = class_name(target.target, class_names)
    if target.against is None:
        return prefix + name, []
    contrast = f"rather than {class_name(target.against, class_names)}"
    in_one = (f"{prefix}{name} {contrast}", f"{name} {contrast}")
    fitting = next((line for line in in_one if fitted(line, width, bold=True) == line), None)
    return (fitting, []) if fitting else (prefix + name, [contrast])


def _by_method(method: str, name: str, width: int) -> tuple[str, list[str]]:
    """Who explains which class, as a title, and as a line below the map where one line does not hold both."""
    title = f"{method}: {name}"
    return (title, []) if fitted(title, width, bold=True) == title else (name, [f"by {method}"])


def _label_and_prediction(sample: SampleRecord, class_names: Sequence[str] | None) -> list[str]:
    known = () if sample.label is None else (sample.label,)
    lines, right = [], known if sample.present is None else sample.present
    if sample.label is not None:
        lines.append(f"label: {class_name(sample.label, class_names)}")
    elif sample.present is not None:
        lines.append(f"labels: {', '.join(class_name(index, class_names) for index in sample.present) or 'none'}")
    if sample.predicted is not None and sample.predicted_score is not None:
        verdict = "" if not right else " ✓" if sample.predicted in right else " ✗"
        lines.append(f"predicted{verdict}: {class_name(sample.predicted, class_names)}")
        lines.append(_score(sample.predicted_score))
    return lines


def _role(target: TargetRecord, sample: SampleRecord) -> str:
    is_predicted, is_label = target.target == sample.predicted, target.target == sample.label
    if target.against is not None and target.against == sample.predicted:
        return f"{'the label' if is_label else 'as asked for'}, not the prediction"
    if target.against is not None and is_predicted and is_label:
        return "the prediction, not the runner-up"
    if sample.present == () and is_predicted:
        return "no label present: the prediction"
    roles = ["the label"] if is_label else []
    roles += ["a label"] if target.target in (sample.present or ()) else []
    roles += ["the prediction"] if is_predicted else []
    return " and ".join(roles) or "as asked for"


def _score(value: float) -> str:
    return f"p {value:.2f}" if 0 <= value <= 1 else f"score {value:.2f}"  # by a score= of the user's own


def _scores(target: TargetRecord) -> list[str]:
    score = _score(target.score) + ("" if target.against is None else " of the two")
    if target.degenerate:
        return ["no evidence found", score]
    return [score, f"kept {target.preserved:.2f} · removed {target.removed:.2f}"]


def compose(
    rows: Sequence[Sequence[Panel | None]], header: str, color_bar: bool = True, room_for_words: int = 0
) -> Pixels:
    """Panels in rows below a header, and a colour bar at the right: pixels (height, width, 3), uint8.

    Args:
        rows: None leaves a place empty.
        header: above all.
        color_bar: whether there is one.
        room_for_words: px that columns are widened to at most, where lines are longer than pictures are wide.
    """
    columns = [[panel for panel in column if panel] for column in zip_longest(*rows)]
    widths = [
        max(max(panel.picture.width, min(_width_of_words(panel), room_for_words)) for panel in column)
        for column in columns
    ]
    heights = [max(_height(panel) for panel in row if panel) for row in rows]
    bar_left = _MARGIN + sum(width + _MARGIN for width in widths)
    top = _MARGIN + LINE
    bar_width = _BAR_WIDTH + _MARGIN if color_bar else 0
    size = (bar_left + bar_width, top + sum(height + _MARGIN for height in heights))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 4), header, fill=INK, font=font(bold=True))
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for panel, width in zip(row, widths, strict=False):
            if panel:
                _draw_panel(canvas, draw, panel, (left, top), width)
            left += width + _MARGIN
        top += height + _MARGIN
    if color_bar:
        first = next(panel for panel in rows[0] if panel)
        _draw_color_bar(canvas, draw, (bar_left, _MARGIN + 2 * LINE), first.picture.height)
    return np.asarray(canvas)


def _width_of_words(panel: Panel) -> int:
    """What its longest line takes, px."""
    lines = [font().getlength(caption) for caption in panel.captions]
    return math.ceil(max([font(bold=True).getlength(panel.title), *lines]))


def _height(panel: Panel) -> int:
    return panel.picture.height + LINE * (1 + len(panel.captions))


def _draw_panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, corner: tuple[int, int], width: int
) -> None:
    left, top = corner
    draw.text((left, top), fitted(panel.title, width, bold=True), fill=INK, font=font(bold=True))
    canvas.paste(panel.picture, (left, top + LINE))
    for number, caption in enumerate(panel.captions):
        line = top + LINE * (1 + number) + panel.picture.height + 2
        draw.text((left, line), fitted(caption, width), fill=FAINT if number else INK, font=font())


def _draw_color_bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], height: int) -> None:
    left, top = corner
    # Over mid grey: the colours that are seen are the ones explained.
    bar = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(_BAR, axis=1)
    canvas.paste(overlaid(Image.new("L", (_BAR, height), 128), bar), (left, top))
    for value, middle in (("1", top), ("0.5", top + height // 2), ("0", top + height)):
        draw.text((left + _BAR + 4, middle), value, fill=INK, font=font(), anchor="lm")
