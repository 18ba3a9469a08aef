"""The film strip: every sample's map at every step, in one picture."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gfi_lightning.recording.history import History
from gfi_lightning.recording.pictures import Panel, Pixels, compose, enlarged, overlay

_FRAME = 96  # px of a frame's longer side


def film_strip(history: History, samples: Sequence[int] | None = None, columns: int = 10) -> Pixels:
    """Samples in rows, steps in columns, and the image in front.

    Args:
        history: of a run.
        samples: which, in this order; None: all.
        columns: steps at most; the first and the last are always among them.

    Returns:
        Pixels (height, width, 3), uint8.
    """
    chosen = spread(len(history), columns)
    rows = []
    for sample in range(len(history.images)) if samples is None else samples:
        image = torch.from_numpy(history.images[sample]).permute(2, 0, 1) / 255
        maps = torch.from_numpy(history.heatmaps(sample)[:, 0])
        label = int(history.labels[sample])
        name = history.class_names[label] if 0 <= label < len(history.class_names) else f"class {label}"
        frames = [
            Panel(overlay(image, at_size_of(image, maps[run]), _FRAME), f"{history.steps[run]}") for run in chosen
        ]
        rows.append([Panel(enlarged(image, _FRAME), "" if label < 0 else name), *frames])
    return compose(rows, "heatmaps of the first target, by training step")


def at_size_of(image: Tensor, heatmap: Tensor) -> Tensor:
    """A map (h, w) of the history, enlarged to the image (C, H, W) again: (H, W)."""
    return F.interpolate(heatmap[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below count, first and last among them; early ones lie closer.

    Most of the change comes early in a training, so the distances grow.
    """
    if count <= most:
        return list(range(count))
    chosen = {round((count - 1) * (place / (most - 1)) ** 2) for place in range(most)}
    # Rounding may have merged early ones: fill up from the front.
    return sorted(chosen | set([number for number in range(count) if number not in chosen][: most - len(chosen)]))
