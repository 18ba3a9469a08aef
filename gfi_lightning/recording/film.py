"""The film of a training: how each sample's map changes from step to step.

As a strip of frames for each sample, as a table of all samples, and as an animation. All show the first target's maps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gfi_lightning.errors import check_count
from gfi_lightning.recording.animation import animation
from gfi_lightning.recording.encoding import EncodedPicture
from gfi_lightning.recording.frames import (
    checked_samples,
    frame_of,
    is_there,
    label_of,
    small_image,
    some_runs,
    spread,
    verdicts,
)
from gfi_lightning.recording.history import History
from gfi_lightning.recording.lettering import FAINT, INK, LINE, PAPER, fitted, font
from gfi_lightning.recording.pictures import Panel, Pixels, compose, overlays
from gfi_lightning.recording.record import class_name

__all__ = ["Film", "animation", "film_strip", "sample_strip", "spread"]

_FRAME = 100  # px of a frame's longer side
_FRAMES_IN_A_ROW = 4  # TensorBoard's cards are 350 px wide: of more nobody could read the letters
_GAP, _BAR = 14, 10  # px between frames, and of the colour bar's height


class Film:
    """The film of a training that goes on: what was drawn for one strip is not drawn again for the next.

    A tile is known by all that it shows, not by its number: what a resumed training runs through again is drawn again.
    No more tiles are kept than the samples' last strips have.

    Args:
        history: of the training; runs may be added to it at any time.
        columns: steps in a strip at most; the first and the last are always among them.

    Attributes:
        history: as given.

    Raises:
        UsageError: fewer than two columns.
    """

    def __init__(self, history: History, columns: int = 12) -> None:
        check_count("columns", columns, smallest=2)
        self.history = history
        self._columns = columns
        self._tiles: dict[int, dict[_Shot, Image.Image]] = {}  # by sample

    def strip(self, sample: int) -> Pixels:
        """One sample's strip, see :func:`sample_strip`."""
        (sample,) = checked_samples(self.history, [sample])
        shown = some_runs(self.history, self._columns)
        image = small_image(shown, sample, _FRAME)
        grey, before = np.asarray(image.convert("L")), self._tiles.get(sample, {})
        shots = _shots(shown, sample)
        self._tiles[sample] = {shot: before.get(shot) or shot.drawn(grey) for shot in dict.fromkeys(shots)}
        return _sheet(image, _facts(self.history, shown, sample), [self._tiles[sample][shot] for shot in shots])

    def animation(self, frames: int = 60) -> EncodedPicture:
        """All samples, moving, see :func:`animation`."""
        return animation(self.history, frames=frames)


def sample_strip(history: History, sample: int, columns: int = 12) -> Pixels:
    """One sample's film strip: the image, and its map at some of the steps, in rows like words of a text.

    Each frame has its step as a title, and says below what the model predicted there and what score the map keeps.

    Args:
        history: of a training.
        sample: its number.
        columns: steps at most; the first and the last are always among them.

    Returns:
        Pixels (height, width, 3), uint8.

    Raises:
        UsageError: there is no such sample, or no run, or fewer than two columns.
    """
    return Film(history, columns).strip(sample)


def film_strip(history: History, samples: Sequence[int] | None = None, columns: int = 10) -> Pixels:
    """Samples in rows, steps in columns, and the image in front.

    Args:
        history: of a training.
        samples: which, in this order; None: all.
        columns: steps at most; the first and the last are always among them.

    Returns:
        Pixels (height, width, 3), uint8.

    Raises:
        UsageError: there are no such samples, or no run, or fewer than two columns.
    """
    check_count("columns", columns, smallest=2)
    shown, rows = some_runs(history, columns), []
    for sample in checked_samples(history, samples):
        image = small_image(shown, sample, _FRAME)
        grey = np.asarray(image.convert("L"))
        frames = [frame_of(grey, heatmap) for heatmap in shown.heatmaps(sample)[:, 0]]
        titled = [Panel(frame, str(step)) for step, frame in zip(shown.steps, frames, strict=True)]
        rows.append([Panel(image, label_of(shown, sample)), *titled])
    return compose(rows, "heatmaps by training step")


@dataclass(frozen=True)
class _Shot:
    """All that a tile of a strip shows; the map (h, w) as bytes, so that shots can be told apart."""

    title: str
    heatmap: bytes
    grid: tuple[int, int]
    captions: tuple[str, ...]

    def drawn(self, grey: Pixels) -> Image.Image:
        frame = frame_of(grey, np.frombuffer(self.heatmap, np.float32).reshape(self.grid))
        return _tile(frame, self.title, self.captions)


def _shots(history: History, sample: int) -> list[_Shot]:
    """Of all runs."""
    questions, predicted = _questions(history, sample), verdicts(history, sample)
    targets, others = _classes(questions)
    kept, shots = history.scores(sample, "preserved")[:, 0], []
    for run, heatmap in enumerate(history.heatmaps(sample)[:, 0]):
        target, other = questions[run]
        lines = [
            f"for {target}" if target and len(targets) > 1 else "",
            f"not {other}" if other and len(others) > 1 else "",
            predicted[run],
            _found(heatmap, kept[run]),
        ]
        title, captions = str(history.steps[run]), tuple(line for line in lines if line)
        shots.append(_Shot(title, heatmap.tobytes(), heatmap.shape, captions))
    return shots


def _facts(history: History, shown: History, sample: int) -> list[str]:
    """What stands beside the image, of which some runs are shown."""
    label, (targets, others) = label_of(history, sample), _classes(_questions(shown, sample))
    facts = [
        f"sample {sample}",
        f"label: {label}" if label else "",
        f"what makes for {_common(targets)}" if targets else "",
        f"rather than {_common(others)}" if others - {""} else "",
        "by training step" + ("" if len(shown) == len(history) else f", {len(shown)} of {len(history)}"),
    ]
    return [fact for fact in facts if fact]


def _questions(history: History, sample: int) -> list[tuple[str, str]]:
    """The class that each run's map explains, and the one that it is contrasted with; empty where there is none."""

    def names(classes: NDArray[np.int64]) -> list[str]:
        return ["" if index < 0 else class_name(index, history.class_names) for index in classes[:, 0].tolist()]

    return list(zip(names(history.targets(sample)), names(history.against(sample)), strict=True))


def _classes(questions: Sequence[tuple[str, str]]) -> tuple[set[str], set[str]]:
    """All that maps explain, and all that those are contrasted with."""
    return {target for target, _ in questions if target}, {other for target, other in questions if target}


def _common(names: set[str]) -> str:
    return "the class below each frame" if len(names) > 1 else "".join(names)


def _found(heatmap: NDArray[np.float32], kept: float) -> str:
    """What the map keeps of the score; empty where that is not known."""
    if not is_there(heatmap):
        return "no map"
    if not heatmap.any():
        return "no evidence"
    return f"kept {kept:.2f}" if math.isfinite(kept) else ""


def _tile(picture: Image.Image, title: str, captions: Sequence[str]) -> Image.Image:
    """A picture with a line above and any number below, as wide as all tiles are."""
    tile = Image.new("RGB", (_FRAME, picture.height + LINE * (1 + len(captions))), PAPER)
    draw = ImageDraw.Draw(tile)
    draw.text((0, 0), fitted(title, _FRAME, bold=True), fill=INK, font=font(bold=True))
    tile.paste(picture, (0, LINE))
    for number, caption in enumerate(captions):
        top = LINE * (1 + number) + picture.height + 2
        draw.text((0, top), fitted(caption, _FRAME), fill=FAINT if number else INK, font=font())
    return tile


def _sheet(image: Image.Image, facts: Sequence[str], tiles: Sequence[Image.Image]) -> Pixels:
    """The image with what is to be said beside it, and the tiles below."""
    rows = [tiles[start : start + _FRAMES_IN_A_ROW] for start in range(0, len(tiles), _FRAMES_IN_A_ROW)]
    heights = [max(tile.height for tile in row) + _GAP for row in rows]
    beside, room = _GAP + _FRAME + _GAP, (_FRAMES_IN_A_ROW - 1) * (_FRAME + _GAP) - _GAP
    top = 2 * _GAP + max(image.height, LINE * (len(facts) + 1))
    sheet = Image.new("RGB", (beside + room + _GAP, top + sum(heights)), PAPER)
    sheet.paste(image, (_GAP, _GAP))
    draw = ImageDraw.Draw(sheet)
    for number, fact in enumerate(facts):
        bold = number == 0
        draw.text((beside, _GAP + number * LINE - 4), fitted(fact, room, bold), fill=INK, font=font(bold))
    _draw_color_bar(sheet, draw, (beside, _GAP + len(facts) * LINE))
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (_FRAME + _GAP), top))
        top += height
    return np.asarray(sheet)


def _draw_color_bar(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    left, top = corner
    middle = top + _BAR // 2
    draw.text((left, middle), "0", fill=INK, font=font(), anchor="lm")
    # Over mid grey: the colours that are seen are the ones explained.
    bar = np.broadcast_to(overlays()[128, ::2], (_BAR, 128, 3))
    sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (left + _GAP, top))
    draw.text((left + _GAP + 128 + 5, middle), "1", fill=INK, font=font(), anchor="lm")
