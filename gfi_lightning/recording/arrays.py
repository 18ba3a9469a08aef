"""What was seen in a run, as plain arrays: see :mod:`gfi_lightning.recording.history` for their form."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gfi_lightning.recording.pictures import rgb
from gfi_lightning.recording.record import Record

Array = NDArray[Any]

_FINEST = 16  # positions on each side of a map: so a thousand runs of eight samples take less than 20 MB
_FINEST_DEPTH = 56


def sample_arrays(record: Record, class_names: Sequence[str] | None) -> dict[str, Array]:
    """What is the same in all runs, as the module describes it."""
    labels = [-1 if sample.label is None else sample.label for sample in record.samples]
    regions = [record.regions[name].numpy() for name in record.regions]
    images = np.stack([rgb(sample.image) for sample in record.samples])
    return {
        "images": images,
        "labels": np.array(labels, dtype=np.int64),
        "present": _present(record),
        "class_names": np.array([str(name) for name in class_names or ()], dtype=np.str_),
        "region_names": np.array(list(record.regions), dtype=np.str_),
        "regions": np.stack(regions) if regions else np.empty((0, *images.shape[:3]), dtype=np.bool_),
    }


def _present(record: Record) -> Array:
    if all(sample.present is None for sample in record.samples):
        return np.empty((len(record.samples), 0), dtype=np.int64)
    present = [sample.present or () for sample in record.samples]
    most = max([1, *map(len, present)])
    return np.array([[*classes, *[-1] * (most - len(classes))] for classes in present], dtype=np.int64)


def run_array(record: Record, curves: Mapping[str, Tensor], with_weights: bool = False) -> Array:
    """A run as one structured array, as the module describes it.

    Args:
        record: what was seen.
        curves: by name the samples' values, (N,).
        with_weights: whether ω is kept.
    """
    most = max(len(sample.targets) for sample in record.samples)
    grid = min(record.grid[0], _FINEST), min(record.grid[1], _FINEST)
    missing = torch.full(grid, math.nan)

    def coarse(heatmap: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(heatmap[None], grid)[0] if heatmap.numel() else heatmap

    def table(values: Callable[[Any], Any], filler: Any, dtype: Any) -> Array:
        rows = [
            [values(target) for target in sample.targets] + [filler] * (most - len(sample.targets))
            for sample in record.samples
        ]
        return np.array(rows, dtype=dtype)

    def column(values: list[Any], filler: Any, dtype: Any) -> Array:
        return np.array([filler if value is None else value for value in values], dtype=dtype)

    fields: dict[str, Array] = {
        "step": np.array(record.step, dtype=np.int64),
        "epoch": np.array(-1 if record.epoch is None else record.epoch, dtype=np.int64),
        "time": np.array(time.time()),
        "heatmaps": table(lambda target: coarse(target.heatmap).numpy(), missing.numpy(), np.float16),
        "foregrounds": np.array([coarse(sample.foreground).numpy() for sample in record.samples], dtype=np.float16),
        "targets": table(lambda target: target.target, -1, np.int64),
        "against": table(lambda target: -1 if target.against is None else target.against, -1, np.int64),
        "score": table(lambda target: target.score, math.nan, np.float32),
        "preserved": table(lambda target: target.preserved, math.nan, np.float32),
        "removed": table(lambda target: target.removed, math.nan, np.float32),
        "predicted": column([sample.predicted for sample in record.samples], -1, np.int64),
        "predicted_score": column([sample.predicted_score for sample in record.samples], math.nan, np.float32),
        "curves": _structured({name: values.float().numpy() for name, values in curves.items()}),
        **_depth_arrays(record),
    }
    if with_weights:
        none = np.full(len(record.samples[0].targets[0].weights), math.nan)
        fields["weights"] = table(lambda target: target.weights.numpy(), none, np.float32)
    return _structured(fields)


def without_extras(run: Array) -> Array:
    """The same run without ω and depths, which take most of the room, for those who keep many in memory."""
    names = [name for name in run.dtype.names or () if name != "weights" and not name.startswith("depth")]
    return _structured({name: run[name] for name in names})


def _structured(fields: Mapping[str, Array]) -> Array:
    array = np.zeros((), dtype=[(name, values.dtype, values.shape) for name, values in fields.items()])
    for name, values in fields.items():
        array[name] = values
    return array


def _depth_arrays(record: Record) -> dict[str, Array]:
    """What is kept of the depths; nothing where there are none."""
    depths = record.samples[0].depths
    if not depths:
        return {}
    finest = max((depth.grid for depth in depths), key=math.prod)
    grid = min(finest[0], _FINEST_DEPTH), min(finest[1], _FINEST_DEPTH)
    maps = [torch.stack([depth.heatmap for depth in sample.depths]) for sample in record.samples]
    return {
        "depth_layers": np.array([depth.layer for depth in depths], dtype=np.str_),
        "depth_grids": np.array([depth.grid for depth in depths], dtype=np.int64),
        "depths": F.adaptive_avg_pool2d(torch.stack(maps), grid).half().numpy(),
    }
