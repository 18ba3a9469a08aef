"""Maps on disk: one file per run, as plain arrays.

Below ``<log dir>/gfi/``, or ``<log dir>/gfi/<name>/`` for a callback that is not the only one, lie

- ``samples_<id>.npz``: ``images`` (N, H, W, 3) uint8 as shown, ``labels`` (N,) int64 (−1: unknown) and
  ``class_names`` (C,) text (may be empty); the id is a digest of the images and labels, so that other samples
  in the same folder do not mix with these;
- ``run_<step>_<id>.npz``, one per run of these samples: ``heatmaps`` (N, T, h, w) float16 in [0, 1] at the base
  layer's resolution, ``foregrounds`` (N, h, w) float16, and (N, T) each ``targets`` int64, ``score``,
  ``preserved`` and ``removed`` float32. T is the largest number of targets that a sample has; for samples with
  fewer, ``targets`` is −1 and the rest NaN. There may be more: ``against`` (N, T) int64, the classes that the targets
  are contrasted with, −1 where with none; and of D depths of the network ``depth_layers`` (D,) text, ``depth_grids``
  (D, 2) int64, the (h, w) of their feature maps, and ``depths`` (N, D, h, w) float16 in [0, 1] at the resolution of
  the finest of them, but no finer than 56 × 56.

Files are written under another name and then renamed, so that a reader never sees half of one.
"""

import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gfi_lightning.recording.pictures import rgb
from gfi_lightning.recording.record import Record

Array = NDArray[Any]

_FOLDER = "gfi"
_FINEST = 56  # positions on each side of the maps of depths, which else would take most of the room


def save_run(folder: str | Path, record: Record, class_names: Sequence[str] | None) -> None:
    """Add a run to the history in a folder, which is made if it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    samples = _sample_arrays(record, class_names)
    digest = hashlib.blake2b(samples["images"].tobytes() + samples["labels"].tobytes(), digest_size=4).hexdigest()
    if not (folder / f"samples_{digest}.npz").exists():
        _save(folder / f"samples_{digest}.npz", samples)
    _save(folder / f"run_{record.step:010d}_{digest}.npz", _run_arrays(record))


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    unfinished = path.with_suffix(".tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sample_arrays(record: Record, class_names: Sequence[str] | None) -> dict[str, Array]:
    images = [rgb(sample.image) for sample in record.samples]
    labels = [-1 if sample.label is None else sample.label for sample in record.samples]
    return {
        "images": np.stack(images),
        "labels": np.array(labels),
        "class_names": np.array([str(name) for name in class_names or ()], dtype=np.str_),
    }


def _run_arrays(record: Record) -> dict[str, Array]:
    most = max(len(sample.targets) for sample in record.samples)
    missing = np.full(record.grid, np.nan, dtype=np.float16)

    def table(values: Any, filler: Any, dtype: Any) -> Array:
        rows = [
            [values(target) for target in sample.targets] + [filler] * (most - len(sample.targets))
            for sample in record.samples
        ]
        return np.array(rows, dtype=dtype)

    return {
        "heatmaps": table(lambda target: record.coarse(target.heatmap).numpy(), missing, np.float16),
        "foregrounds": np.array(
            [record.coarse(sample.foreground).numpy() for sample in record.samples], dtype=np.float16
        ),
        "targets": table(lambda target: target.target, -1, np.int64),
        "score": table(lambda target: target.score, np.nan, np.float32),
        "preserved": table(lambda target: target.preserved, np.nan, np.float32),
        "removed": table(lambda target: target.removed, np.nan, np.float32),
        "against": table(lambda target: -1 if target.against is None else target.against, -1, np.int64),
        **_depth_arrays(record),
    }


def _depth_arrays(record: Record) -> dict[str, Array]:
    """What is kept of the depths; nothing where there are none."""
    depths = record.samples[0].depths
    if not depths:
        return {}
    finest = max((depth.grid for depth in depths), key=math.prod)
    grid = min(finest[0], _FINEST), min(finest[1], _FINEST)
    maps = [torch.stack([depth.heatmap for depth in sample.depths]) for sample in record.samples]
    return {
        "depth_layers": np.array([depth.layer for depth in depths], dtype=np.str_),
        "depth_grids": np.array([depth.grid for depth in depths], dtype=np.int64),
        "depths": F.adaptive_avg_pool2d(torch.stack(maps), grid).half().numpy(),
    }


class History:
    """The runs of one training, read back from its log directory; needs no Lightning.

    Attributes:
        steps: of the x axis, ascending.
        images: (N, H, W, 3), uint8, as shown.
        labels: (N,), int64; −1 where unknown.
        class_names: by class index; may be empty.
        depth_layers: the layers of :meth:`depths`, in the last run; may be empty.
    """

    def __init__(self, samples: Mapping[str, Array], runs: Mapping[int, Mapping[str, Array]]) -> None:
        self.steps = sorted(runs)
        self.images: Array = samples["images"]
        self.labels: Array = samples["labels"]
        self.class_names = [str(name) for name in samples["class_names"]]
        self._runs = [runs[step] for step in self.steps]
        self.depth_layers = _depth_layers(self._runs[-1]) if self._runs else []

    @classmethod
    def load(cls, log_dir: str | Path, name: str | None = None) -> "History":
        """Read what is there, also while the run is still writing. A damaged run is skipped with a warning.

        Where the folder holds several sets of samples, those that were explained last are read.

        Args:
            log_dir: of the run.
            name: of the callback, where there are several; without names "2" is the second one's, and so on.

        Raises:
            FileNotFoundError: the directory holds no history.
        """
        folder = Path(log_dir, _FOLDER, name or "")
        paths = sorted(folder.glob("run_*_*.npz"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no runs: give the log directory of a run with GFICallback.")
        latest = max(paths, key=lambda path: path.stat().st_mtime_ns)
        digest = latest.stem.split("_")[2]
        runs = {}
        for path in folder.glob(f"run_*_{digest}.npz"):
            try:
                runs[int(path.stem.split("_")[1])] = _load(path)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(f"{path} is damaged and skipped: {error}", stacklevel=2)
        return cls(_load(folder / f"samples_{digest}.npz"), runs)

    def __len__(self) -> int:
        return len(self.steps)

    def heatmaps(self, sample: int) -> Array:
        """One sample's maps: (steps, targets, h, w), float32 in [0, 1], NaN where a target is missing."""
        return self._per_step("heatmaps", sample).astype(np.float32)

    def targets(self, sample: int) -> Array:
        """The classes that they explain: (steps, targets), int64, −1 where a target is missing."""
        return self._per_step("targets", sample)

    def against(self, sample: int) -> Array:
        """The classes that each target is contrasted with: (steps, targets), int64, −1 where with none."""
        return self._per_step("against", sample)

    def depths(self, sample: int) -> Array:
        """What each of ``depth_layers`` preserves: (steps, layers, h, w), float32 in [0, 1], NaN in runs without."""
        if not self.depth_layers:
            return np.empty((len(self), 0, 0, 0), dtype=np.float32)
        last = self._runs[-1]["depths"][sample]
        per_step = [
            run["depths"][sample] if _same_depths(run, self._runs[-1]) else np.full_like(last, np.nan)
            for run in self._runs
        ]
        return np.stack(per_step).astype(np.float32)

    def scores(self, sample: int, name: str = "score") -> Array:
        """The targets' "score", or what is "preserved" or "removed" of it: (steps, targets), float32."""
        return self._per_step(name, sample)

    def _per_step(self, name: str, sample: int) -> Array:
        # Files of the first version know no contrasts.
        per_step = [
            run[name][sample] if name in run else np.full_like(run["targets"][sample], -1) for run in self._runs
        ]
        most = max((len(values) for values in per_step), default=0)
        filler = -1 if name in ("targets", "against") else np.nan
        padded = [
            np.concatenate([values, np.full((most - len(values), *values.shape[1:]), filler, values.dtype)])
            for values in per_step
        ]
        return np.stack(padded)


def _depth_layers(run: Mapping[str, Array]) -> list[str]:
    return [str(layer) for layer in run.get("depth_layers", ())]


def _same_depths(run: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(np.array_equal(run.get(name, ()), other[name]) for name in ("depth_layers", "depth_grids"))


def _load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
