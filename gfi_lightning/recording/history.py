"""Maps on disk: one file per run, as plain arrays, which nobody writes to again.

Below ``<log dir>/gfi/``, or ``<log dir>/gfi/<name>/`` for a callback that is not the only one, lie

- ``samples_<id>.npz``: ``images`` (N, H, W, 3) uint8 as shown, ``labels`` (N,) int64 (−1: unknown), ``present`` (N, P)
  int64, where labels are multi-hot the classes that are present, filled up by −1 (P is 0 where labels are not),
  ``class_names`` (C,) text (may be empty), ``region_names`` (R,) text and ``regions`` (R, N, H, W) bool (R may be 0).
  The id stands for one training and what resumes it, or, with "-evaluation" at its end, for one run outside of any,
  so that several in one folder do not mix;
- ``run_<id>_<number>.npy``, one per run, counted from 0: a structured array of shape (), which ``numpy.load`` reads,
  and behind it 4 bytes, the little-endian CRC-32 of all before. With T, the largest number of targets that a sample
  has, its fields are

  - ``step`` and ``epoch`` int64 (epoch −1: outside of a training), ``time`` float64 (seconds since 1970);
  - ``heatmaps`` (N, T, h, w) float16 and ``foregrounds`` (N, h, w) float16 in [0, 1], at the base layer's resolution
    but no finer than 16 × 16 (``foregrounds`` (N, 0, 0) where a method without a stage 1 has made the maps);
  - (N, T) each ``targets`` and ``against`` int64 (the classes that targets are contrasted with, −1: with none), and
    ``score``, ``preserved`` and ``removed`` float32; for samples with fewer targets −1 and NaN;
  - (N,) each ``predicted`` int64 (−1: unknown) and ``predicted_score`` float32;
  - ``curves``: of each curve, by name, the samples' values (N,) float32, NaN where a sample has none;
  - where asked for, ``weights`` (N, T, K) float32, the channel weights ω; and of D depths of the network
    ``depth_layers`` (D,) text, ``depth_grids`` (D, 2) int64, the (h, w) of their feature maps, and ``depths``
    (N, D, h, w) float16 in [0, 1] at the resolution of the finest of them, but no finer than 56 × 56.

Files are written under another name and then renamed: a reader never sees half of one, and a crash loses at most the
run in progress. A training that is resumed from an earlier step writes on with higher numbers; of what it runs through
again the later file counts.
"""

import ast
import io
import os
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from gfi_lightning.errors import UsageError
from gfi_lightning.metrics.drift import SETTLED, settled_at
from gfi_lightning.recording.arrays import Array

_FOLDER = "gfi"
_EVALUATION = "-evaluation"  # ends the id of what is not from a training
_CHECKSUM = 4  # bytes
_OF_SAMPLES = ("images", "labels", "present", "class_names", "region_names", "regions")
_PREAMBLE = 12  # bytes of a .npy file of version 3.0 before its header, the last four telling the header's length


class History:
    """The runs of one training, read back from its log directory; needs no Lightning.

    Attributes:
        run_id: of the training.
        steps: of the x axis, ascending.
        epochs: at each step; −1 outside of a training.
        times: at each step, in seconds since 1970.
        images: (N, H, W, 3), uint8, as shown.
        labels: (N,), int64; −1 where unknown.
        class_names: by class index; may be empty.
        regions: by name where in each image something lies, (N, H, W), bool; may be empty.
        curves: the names of the curves.
        depth_layers: the layers of :meth:`depths`, in the last run; may be empty.
    """

    def __init__(self, run_id: str, samples: Mapping[str, Array], runs: Sequence[Array] = ()) -> None:
        self.run_id = run_id
        self.images: Array = samples["images"]
        self.labels: Array = samples["labels"]
        self._present: Array = samples["present"]
        self.class_names = [str(name) for name in samples["class_names"]]
        names = [str(name) for name in samples["region_names"]]
        self.regions: dict[str, Array] = dict(zip(names, samples["regions"], strict=True))
        self._runs: list[Array] = []
        for run in runs:
            self.add(run)

    @classmethod
    def load(cls, log_dir: str | Path, name: str | None = None, run_id: str | None = None) -> "History":
        """Read what is there, also while the training is still writing. A damaged file is skipped with a warning.

        Args:
            log_dir: of the training.
            name: of the callback, where there are several; without names "2" is the second one's, and so on.
            run_id: which training or evaluation, of those in the folder; None: the last one of :meth:`run_ids`.

        Raises:
            FileNotFoundError: the directory holds no history, or not this one.
        """
        found = cls.run_ids(log_dir, name)
        wanted = found[::-1] if run_id is None else [one for one in found if one == run_id]
        folder = _folder(log_dir, name)
        for one in wanted:
            samples = _read(folder / f"samples_{one}.npz", _load_samples)
            if samples is not None:
                return cls(one, samples, _read_runs(folder, one))
        if wanted:
            raise FileNotFoundError(
                f"{folder} holds runs, but the file samples_{wanted[0]}.npz, without which they say nothing, is "
                "damaged or gone: copy it from a backup."
            )
        if run_id is not None:
            raise FileNotFoundError(f"{folder} holds no run_id={run_id!r}, but {', '.join(found) or 'none'}.")
        raise FileNotFoundError(f"{folder} holds no runs: give the log directory of a run with GFICallback.")

    @staticmethod
    def run_ids(log_dir: str | Path, name: str | None = None) -> list[str]:
        """What wrote into a log directory: first the evaluations, then the trainings; who wrote last at the end.

        What ``trainer.validate`` or ``trainer.test`` wrote has an id that ends with "-evaluation".
        """
        written: dict[str, int] = {}
        for path in _folder(log_dir, name).glob("run_*_*.npy"):
            one = path.stem.split("_")[1]
            written[one] = max(written.get(one, 0), path.stat().st_mtime_ns)
        return sorted(written, key=lambda one: (not one.endswith(_EVALUATION), written[one], one))

    def add(self, run: Array) -> None:
        """Append a run, without those that it does not come after: a resumed training runs through them again."""
        while self._runs and self._runs[-1]["step"] >= run["step"]:
            self._runs.pop()
        self._runs.append(run)

    def at(self, places: Sequence[int]) -> "History":
        """The same history with some of its runs: places are their numbers, ascending."""
        some = copy(self)
        some._runs = [self._runs[place] for place in places]
        return some

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def steps(self) -> list[int]:  # noqa: D102  # an attribute to its users, and described there
        return [int(run["step"]) for run in self._runs]

    @property
    def epochs(self) -> list[int]:  # noqa: D102
        return [int(run["epoch"]) for run in self._runs]

    @property
    def times(self) -> list[float]:  # noqa: D102
        return [float(run["time"]) for run in self._runs]

    @property
    def curves(self) -> list[str]:  # noqa: D102
        names = [name for run in self._runs for name in run["curves"].dtype.names or ()]
        return list(dict.fromkeys(names))

    @property
    def depth_layers(self) -> list[str]:  # noqa: D102
        return _depth_layers(self._runs[-1]) if self._runs else []

    def classes(self, sample: int) -> list[int] | None:
        """The label, or where labels are multi-hot all classes that are present; None where nothing is known."""
        if self._present.shape[1]:
            return [int(index) for index in self._present[sample] if index >= 0]
        label = int(self.labels[sample])
        return None if label < 0 else [label]

    @property
    def predicted(self) -> Array:
        """The predicted classes, (steps, N), int64; −1 where unknown."""
        return self._stacked([run["predicted"] for run in self._runs], -1)

    @property
    def predicted_scores(self) -> Array:
        """Their scores, (steps, N), float32; NaN where unknown."""
        return self._stacked([run["predicted_score"] for run in self._runs], np.nan)

    def curve(self, name: str) -> Array:
        """A curve's values for each sample, (steps, N), float32; NaN where there is none.

        Raises:
            UsageError: there is no such curve.
        """
        if name not in self.curves:
            raise UsageError(f"There is no curve {name!r}, but {', '.join(self.curves) or 'none'}.")
        missing = np.full(len(self.labels), np.nan, dtype=np.float32)
        return np.stack([run["curves"][name] if _has(run["curves"], name) else missing for run in self._runs])

    def settled(self, threshold: float = SETTLED) -> list[int | None]:
        """For each sample the step at which its map settled, see :func:`~gfi_lightning.metrics.settled_at`.

        Drift at or below the noise floor is no movement, whatever the threshold.
        """
        if "drift" not in self.curves:
            return [None] * len(self.labels)
        drift = self.curve("drift")
        floor = self.curve("drift_floor")[-1] if "drift_floor" in self.curves else np.zeros(len(self.labels))
        limits = np.fmax(floor, threshold)
        return [settled_at(self.steps, drift[:, sample], limit) for sample, limit in enumerate(limits)]

    def heatmaps(self, sample: int) -> Array:
        """One sample's maps: (steps, targets, h, w), float32 in [0, 1], NaN where a target is missing.

        At the resolution of the last run, should an earlier one have had another base layer.
        """
        return self._stacked(self._maps("heatmaps", sample), np.nan)

    def foregrounds(self, sample: int) -> Array:
        """What is preserved of one sample whatever the class (stage 1): (steps, h, w), float32 in [0, 1]; likewise.

        Of a method that has no stage 1 (steps, 0, 0).
        """
        return np.stack(self._maps("foregrounds", sample))

    def _maps(self, name: str, sample: int) -> list[Array]:
        maps = [run[name][sample].astype(np.float32) for run in self._runs]
        return [_at_size(one, maps[-1].shape[-2:]) for one in maps]

    def targets(self, sample: int) -> Array:
        """The classes that its maps explain: (steps, targets), int64, −1 where a target is missing."""
        return self._per_target("targets", sample, -1)

    def against(self, sample: int) -> Array:
        """The classes that each target is contrasted with: (steps, targets), int64, −1 where with none."""
        return self._per_target("against", sample, -1)

    def scores(self, sample: int, name: str = "score") -> Array:
        """The targets' "score", or what is "preserved" or "removed" of it: (steps, targets), float32."""
        return self._per_target(name, sample, np.nan)

    def weights(self, sample: int) -> Array:
        """The channel weights ω: (steps, targets, K), float32, NaN in runs without; K is 0 if none were kept.

        K is that of the last run with any; of runs by other layers, with another K, they are NaN as well.
        """
        kept = [run["weights"][sample] if _has(run, "weights") else None for run in self._runs]
        last = next((one for one in reversed(kept) if one is not None), np.empty((1, 0), dtype=np.float32))
        missing, size = np.full_like(last[:1], np.nan), last.shape[1]
        per_step = [missing if one is None or one.shape[1] != size else one for one in kept]
        return self._stacked(per_step, np.nan)

    def depths(self, sample: int) -> Array:
        """What each of ``depth_layers`` preserves: (steps, layers, h, w), float32 in [0, 1], NaN in runs without."""
        if not self.depth_layers:
            return np.empty((len(self), 0, 0, 0), dtype=np.float32)
        last = self._runs[-1]
        missing = np.full_like(last["depths"][sample], np.nan)
        per_step = [run["depths"][sample] if _same_depths(run, last) else missing for run in self._runs]
        return np.stack(per_step).astype(np.float32)

    def _per_target(self, name: str, sample: int, filler: float) -> Array:
        return self._stacked([run[name][sample] for run in self._runs], filler)

    @staticmethod
    def _stacked(per_step: list[Array], filler: float) -> Array:
        """Arrays of the same shape but for their first axis, filled up to the longest, as one array."""
        longest = max((len(values) for values in per_step), default=0)
        padded = [
            np.concatenate([values, np.full((longest - len(values), *values.shape[1:]), filler, values.dtype)])
            for values in per_step
        ]
        return np.stack(padded)


class Earlier(NamedTuple):
    """Where a training that is resumed has written before, and the last step that it is resumed from."""

    folder: Path
    last_step: int


class HistoryWriter:
    """Appends the runs of one training to a history.

    Args:
        folder: for the files; it is made if it is missing.
        samples: what is the same in all runs, see :func:`~gfi_lightning.recording.arrays.sample_arrays`.
        run_id: of the training that is resumed; None: a new one.
        earlier: what that has written elsewhere is taken over; None: it has not.

    Attributes:
        run_id: of the training.
    """

    def __init__(
        self,
        folder: str | Path,
        samples: Mapping[str, Array],
        run_id: str | None = None,
        earlier: "Earlier | None" = None,
    ) -> None:
        self.folder = Path(folder)
        self.run_id = run_id or _new_id()
        self._earlier = earlier
        self._samples = samples
        self._next: int | None = None  # the number of the next run; None: not known yet

    def open(self) -> History:
        """What the training that is resumed has written here; a training that is new, or shows other samples, nothing.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"samples_{self.run_id}.npz"
        if self._earlier is not None and not path.exists():
            self._take_over(self._earlier)
        before = _read(path, _load_samples) if path.exists() else None
        if path.exists() and not (before is not None and _same_samples(before, self._samples)):
            self.run_id = _new_id()
            before = None
        if before is None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self._samples)
            _write(self.folder / f"samples_{self.run_id}.npz", buffer.getvalue())
        self._next = 1 + max((int(path.stem.split("_")[2]) for path in _runs_of(self.folder, self.run_id)), default=-1)
        return History(self.run_id, self._samples, _read_runs(self.folder, self.run_id))

    def _take_over(self, earlier: "Earlier") -> None:
        path = earlier.folder / f"samples_{self.run_id}.npz"
        if not path.exists():
            warnings.warn(
                f"GFICallback: what was kept before the training was resumed is not in {earlier.folder} any more: the "
                "history and the films begin anew.",
                stacklevel=2,
            )
            return
        samples = _read(path, _load_samples)
        if samples is None or not _same_samples(samples, self._samples):
            return
        runs = {one: _read(one, load_run) for one in _runs_of(earlier.folder, self.run_id)}
        before = [one for one, run in runs.items() if run is not None and run["step"] <= earlier.last_step]
        for one in [*before, path]:  # the samples at the end: without them all is tried again
            with suppress(FileExistsError):
                _write(self.folder / one.name, one.read_bytes())

    def append(self, run: Array) -> None:
        """Write a run, see :func:`~gfi_lightning.recording.arrays.run_array`.

        Where somebody else goes on with the same training, in the same folder, this one goes on under another id.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        if self._next is None:
            self.open()
        content = _with_checksum(run)
        try:
            _write(self.folder / f"run_{self.run_id}_{self._next:06d}.npy", content)
        except FileExistsError:
            self.run_id = _new_id()
            self.open()
            _write(self.folder / f"run_{self.run_id}_{self._next:06d}.npy", content)
        self._next = (self._next or 0) + 1


def _at_size(maps: Array, size: tuple[int, ...]) -> Array:
    """Maps (..., h, w) at another size (h, w)."""
    if maps.shape[-2:] == size:
        return maps
    if 0 in (*maps.shape, *size):  # of a training that is resumed with another method
        return np.full((*maps.shape[:-2], *size), np.nan, dtype=np.float32)
    flat = torch.from_numpy(maps).reshape(1, -1, *maps.shape[-2:])
    resized: Array = F.interpolate(flat, size=size, mode="bilinear", align_corners=False).numpy()
    return resized.reshape(*maps.shape[:-2], *size)


def _has(array: Array, name: str) -> bool:
    return name in (array.dtype.names or ())


def _depth_layers(run: Array) -> list[str]:
    return [str(layer) for layer in run["depth_layers"]] if _has(run, "depth_layers") else []


def _same_depths(run: Array, other: Array) -> bool:
    names = ("depth_layers", "depth_grids")
    return _has(run, "depths") and all(np.array_equal(run[name], other[name]) for name in names)


def _folder(log_dir: str | Path, name: str | None) -> Path:
    return Path(log_dir, _FOLDER, name or "")


def _runs_of(folder: Path, run_id: str) -> list[Path]:
    return sorted(folder.glob(f"run_{run_id}_*.npy"))


def _read_runs(folder: Path, run_id: str) -> list[Array]:
    runs = [_read(path, load_run) for path in _runs_of(folder, run_id)]
    return [run for run in runs if run is not None]


def evaluation_id() -> str:
    """For an evaluation, which is no training that a history is first of all asked for."""
    return _new_id() + _EVALUATION


def _new_id() -> str:
    # Read by people, and told apart by the operating system's random numbers: those of the training are not ours.
    return time.strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()


def _same_samples(some: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return all(np.array_equal(some[name], others[name]) for name in ("images", "labels"))


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    """What is in a file; None, and a warning, if it is damaged."""
    try:
        return load(path)
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"{path} is damaged and skipped: {error}", stacklevel=3)
        return None


def _load_samples(path: Path) -> dict[str, Array]:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it holds no named arrays")
    with loaded as arrays:
        return {name: arrays[name] for name in _OF_SAMPLES}


def load_run(path: Path) -> Array:
    """Read one run.

    Raises:
        ValueError: the file is not what was written.
    """
    data = path.read_bytes()
    content, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if zlib.crc32(content).to_bytes(_CHECKSUM, "little") != checksum:
        raise ValueError("its checksum is wrong")
    start = _PREAMBLE + int.from_bytes(content[_PREAMBLE - 4 : _PREAMBLE], "little")
    return np.frombuffer(content, _dtype(content[_PREAMBLE:start]), count=1, offset=start).reshape(())


@lru_cache
def _dtype(header: bytes) -> "np.dtype[Any]":
    # numpy.load would parse it again for each of a thousand files, which takes most of the time.
    return np.lib.format.descr_to_dtype(ast.literal_eval(header.decode("utf-8"))["descr"])


def _with_checksum(array: Array) -> bytes:
    buffer = io.BytesIO()
    # The format whose header may hold any text, such as a region's name.
    np.lib.format.write_array(buffer, array, version=(3, 0), allow_pickle=False)
    content = buffer.getvalue()
    return content + zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _write(path: Path, content: bytes) -> None:
    """Write a new file as a whole: nobody ever sees half of it, not even after a power cut.

    Raises:
        FileExistsError: somebody else has written it.
    """
    unfinished = path.with_name(f"{path.stem}_{os.urandom(4).hex()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _rename(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _rename(unfinished: Path, path: Path) -> None:
    try:
        os.link(unfinished, path)  # which, other than a renaming, refuses to replace
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(f"{path} exists.") from None
        os.replace(unfinished, path)
