"""What pictures of time are made of: some of the runs, and what each of a sample's frames shows."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gfi_lightning.errors import UsageError, is_whole
from gfi_lightning.recording.history import History
from gfi_lightning.recording.pictures import Pixels, overlaid
from gfi_lightning.recording.record import class_name

NOTHING = (225, 225, 225)  # where there is no map


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below count, first and last among them; early ones lie closer.

    Most of the change comes early in a training, so the distances grow: with the square of the place, and faster where
    else the second number would not be 1.

    Args:
        count: of all.
        most: at least 2.
    """
    if count <= most:
        return list(range(count))
    power = max(2.0, math.log(count - 1) / math.log(max(most - 1, 2)))
    chosen = {round((count - 1) * (place / (most - 1)) ** power) for place in range(most)}
    # Rounding may have merged early ones: fill up from the front.
    return sorted(chosen | set([number for number in range(count) if number not in chosen][: most - len(chosen)]))


def checked_samples(history: History, samples: Iterable[int] | None) -> list[int]:
    """The samples' numbers, once it is sure that there are such samples, and runs."""
    count = len(history.images)
    if not len(history):
        raise UsageError("The history holds no runs yet: there is nothing to show before the first one.")
    numbers = list(range(count) if samples is None else samples)
    for number in numbers:
        if not is_whole(number) or not 0 <= number < count:
            raise UsageError(f"There is no sample {number!r}: the history's are numbered from 0 to {count - 1}.")
    if not numbers:
        raise UsageError(f"samples={samples!r} names no sample: give numbers from 0 to {count - 1}, or None for all.")
    return numbers


def some_runs(history: History, most: int) -> History:
    """The same history with some of its runs, see :func:`spread`."""
    return history.at(spread(len(history), most))


def small_image(history: History, sample: int, longer_side: int) -> Image.Image:
    """A sample's image, enlarged or shrunk to the given longer side in px."""
    picture = Image.fromarray(history.images[sample])
    factor = longer_side / max(picture.size)
    width, height = (max(1, round(edge * factor)) for edge in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS)


def frame_of(grey: Pixels, heatmap: NDArray[np.float32]) -> Image.Image:
    """The overlay of a grey image (H, W), uint8, and a map (h, w); plain where there is no map."""
    height, width = grey.shape
    if not is_there(heatmap):
        return Image.new("RGB", (width, height), NOTHING)
    return overlaid(Image.fromarray(grey), heatmap)


def is_there(heatmap: NDArray[np.float32]) -> bool:
    """Whether it is a map: a missing one is NaN."""
    return bool(np.isfinite(heatmap).all())


def label_of(history: History, sample: int) -> str:
    """The names of its classes; empty where they are not known."""
    return ", ".join(class_name(index, history.class_names) for index in history.classes(sample) or [])


def verdicts(history: History, sample: int) -> list[str]:
    """What was predicted at each run, and whether that is right; empty where it is not known."""
    classes = history.classes(sample)

    def verdict(predicted: int) -> str:
        sign = "→" if not classes else "✓" if predicted in classes else "✗"
        return "" if predicted < 0 else f"{sign} {class_name(predicted, history.class_names)}"

    return [verdict(predicted) for predicted in history.predicted[:, sample].tolist()]
