"""The animation: all samples at once, a frame per step."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from gfi_lightning.errors import check_count
from gfi_lightning.recording.encoding import EncodedPicture
from gfi_lightning.recording.frames import NOTHING, checked_samples, is_there, small_image, some_runs, verdicts
from gfi_lightning.recording.gif import Indices, gif, greys, heats, letters
from gfi_lightning.recording.history import History
from gfi_lightning.recording.lettering import FAINT, INK, LINE, PAPER, fitted, font
from gfi_lightning.recording.pictures import resized

_WIDTH, _NARROWEST = 380, 160  # px: of an animation, about as wide as TensorBoard's cards
_SMALLEST, _LARGEST = 40, 256  # px: of the longer side of its maps
_ROOM_FOR_NAMES = 64  # px
_LINE, _FONT, _GAP, _BAR = 16, 12, 8, 5  # px, the bar is that of the progress
_TOGETHER, _SHORTEST, _LONGEST, _LAST = 8000, 100, 800, 2500  # ms: of all frames, of each, and of the last


def animation(history: History, samples: Sequence[int] | None = None, frames: int = 60) -> EncodedPicture:
    """An animated GIF of all samples: a frame per step, with the step and a progress bar, over and over.

    Above each map stand the sample's number and what the model predicted.

    Args:
        history: of a training.
        samples: which, in this order; None: all.
        frames: steps at most; the first and the last are always among them.

    Raises:
        UsageError: there are no such samples, or no run, or fewer than two frames.
    """
    check_count("frames", frames, smallest=2)
    shown = some_runs(history, frames)
    stage = _Stage(shown, checked_samples(history, samples))
    each = min(max(_TOGETHER // len(shown), _SHORTEST), _LONGEST)
    return gif([stage.frame(run) for run in range(len(shown))], [each] * (len(shown) - 1) + [_LAST])


class _Stage:
    """Where an animation takes place: what is the same in all its frames.

    Args:
        history: of which all runs are shown.
        samples: their numbers.
    """

    def __init__(self, history: History, samples: Sequence[int]) -> None:
        self._steps, self._samples = history.steps, samples
        self._verdicts = [verdicts(history, sample) for sample in samples]
        self._columns = math.ceil(math.sqrt(len(samples)))
        side = min(max((_WIDTH - _GAP) // self._columns - _GAP, _SMALLEST), _LARGEST)
        self._images = [greys(np.asarray(small_image(history, sample, side).convert("L"))) for sample in samples]
        self._maps = [history.heatmaps(sample)[:, 0] for sample in samples]
        self._top = _GAP + LINE + _BAR + _GAP
        self._height, self._width = self._images[0].shape
        rows = math.ceil(len(samples) / self._columns)
        below = rows * (_LINE + self._height + _GAP)
        self._size = (max(_GAP + self._columns * (self._width + _GAP), _NARROWEST), self._top + below)

    def frame(self, run: int) -> Indices:
        """What is seen at a run."""
        paper = Image.new("L", self._size, PAPER[0])
        draw = ImageDraw.Draw(paper)
        self._draw_progress(draw, run)
        for place in range(len(self._samples)):
            self._draw_cell(draw, place, run)
        canvas = letters(paper)
        for place, (image, maps) in enumerate(zip(self._images, self._maps, strict=True)):
            left, top = self._corner(place)
            if is_there(maps[run]):
                heat = heats(resized(maps[run], (self._width, self._height)))
                canvas[top : top + self._height, left : left + self._width] = image + heat
        return canvas

    def _corner(self, place: int) -> tuple[int, int]:
        """Of a map, left and top."""
        row, column = divmod(place, self._columns)
        left = _GAP + column * (self._width + _GAP)
        return left, self._top + row * (_LINE + self._height + _GAP) + _LINE

    def _draw_cell(self, draw: ImageDraw.ImageDraw, place: int, run: int) -> None:
        """What stands above a map, and the ground on which there may be none."""
        left, top = self._corner(place)
        verdict = self._verdicts[place][run]
        title = f"{self._samples[place]} {verdict if self._width >= _ROOM_FOR_NAMES else verdict[:1]}"
        draw.text((left, top - _LINE), fitted(title, self._width, size=_FONT), fill=INK[0], font=font(size=_FONT))
        draw.rectangle((left, top, left + self._width - 1, top + self._height - 1), fill=NOTHING[0])

    def _draw_progress(self, draw: ImageDraw.ImageDraw, run: int) -> None:
        """The step, and a bar of how much of all steps that is."""
        steps = self._steps
        draw.text((_GAP, _GAP - 4), f"step {steps[run]}", fill=INK[0], font=font(bold=True))
        left, top, right = _GAP, _GAP + LINE, self._size[0] - _GAP - 1
        share = (steps[run] - steps[0]) / max(steps[-1] - steps[0], 1)
        draw.rectangle((left, top, right, top + _BAR - 1), fill=NOTHING[0])
        draw.rectangle((left, top, left + round(share * (right - left)), top + _BAR - 1), fill=FAINT[0])
