"""Checkpoints of a finished run: which there are, where on the x axis they belong, and why some cannot be read."""

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.pytorch.utilities.migration.utils import migrate_checkpoint, pl_legacy_patch

from gfi_lightning.errors import UsageError, brief
from gfi_lightning.training import internals

CHECKPOINTS = "checkpoints"  # where Lightning puts them, in a run's log directory

_WHOLE = ("state_dict", "pytorch-lightning_version")  # what every checkpoint of a Trainer has
_ZIP = b"PK"  # what the files of torch.save start with


@dataclass(frozen=True, order=True)
class Moment:
    """Of which moment of a training a checkpoint is; in the order of the training.

    Attributes:
        step: of the x axis.
        updates: by all optimisers so far.
        epoch: in which the last of them was.
        path: of the file.
    """

    step: int
    updates: int
    epoch: int
    path: Path


class Unreadable(Exception):  # noqa: N818  # says what is the matter with the file
    """A file is no checkpoint that can be read; the message says why."""


def checkpoint_files(checkpoints: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of one run.

    Args:
        checkpoints: a folder, of which all ``*.ckpt`` count, also in folders below; or files.

    Raises:
        UsageError: there are none, or those of several runs.
    """
    if not isinstance(checkpoints, (str, Path)):
        files = [Path(path) for path in checkpoints]
        if not files:
            raise UsageError("checkpoints=[] is empty: give a folder, or files.")
        return files
    folder = Path(checkpoints)
    if not folder.is_dir():
        if folder.is_file():
            return [folder]
        raise UsageError(f"{folder} does not exist: give the folder that holds a run's checkpoints, or their files.")
    # Below as well, as a metric named val/loss makes a folder of a checkpoint's name.
    files = sorted(folder.rglob("*.ckpt"))
    runs = sorted({str(parent) for path in files for parent in path.parents if parent.name == CHECKPOINTS})
    if len(runs) > 1:
        raise UsageError(f"{folder} holds the checkpoints of several runs: give one of {', '.join(runs)}.")
    if not files:
        raise UsageError(f"{folder} holds no checkpoints (*.ckpt): give the folder that a run's ModelCheckpoint wrote.")
    return files


def moments(files: Sequence[Path], weights_only: bool | None) -> list[Moment]:
    """When in the training each checkpoint was written, in that order; what cannot be read is left out, with a warning.

    Args:
        files: of one run.
        weights_only: see :func:`read`.

    Raises:
        UsageError: none of them can be read.
    """
    found, reason = [], ""
    for path in files:
        try:
            checkpoint = read(path, weights_only)
            step, epoch = _moment(checkpoint)
            found.append(Moment(step, int(checkpoint["global_step"]), epoch, path))
        except Unreadable as error:
            reason = str(error)
            skip(path, reason)
    if not found:
        where = f"{files[0].parent} holds" if len(files) > 1 else f"{files[0]} is"
        raise UsageError(f"{where} no checkpoint that can be read: {reason}")
    return sorted(found)


def _moment(checkpoint: dict[str, Any]) -> tuple[int, int]:
    try:
        return internals.moment(checkpoint["loops"])
    except (KeyError, TypeError) as error:
        raise Unreadable("it does not say, in its loops, of which step of the training it is.") from error


def read(path: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """A Trainer's checkpoint, on the CPU, as this version of Lightning would have written it.

    Its tensors are read from the file only where they are looked at.

    Args:
        path: of the file.
        weights_only: False: load also what is no tensor or plain type, which can run any code that the file holds;
            None: as ``torch.load`` does, which is not to.

    Raises:
        Unreadable: it is no such file.
    """
    if path.is_dir():
        raise Unreadable(
            "it is a folder, as a model that is spread over several devices is saved. Make a file of it: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path} --output_file NAME.ckpt"
        )
    try:
        with warnings.catch_warnings(), pl_legacy_patch():
            warnings.simplefilter("ignore")  # of what may be odd in a file that we may have to do without
            checkpoint = torch.load(path, map_location="cpu", mmap=is_zipfile(path), weights_only=weights_only)
    except Exception as error:
        raise Unreadable(_why(path, error)) from error
    missing = [name for name in _WHOLE if not isinstance(checkpoint, dict) or name not in checkpoint]
    if missing:
        raise Unreadable(f"it was not written by a Lightning Trainer, as it has no {' and no '.join(missing)}.")
    checkpoint, _ = migrate_checkpoint(checkpoint)
    return checkpoint


def skip(path: Path, reason: str) -> None:
    """Tell, on the first rank, why a file is left out."""
    if internals.is_first_rank():
        warnings.warn(f"{path} is skipped: {reason}", stacklevel=2)


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist."
    if isinstance(error, PermissionError):
        return "it must not be read."
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if not start:
        return "it is empty."
    if start != _ZIP:  # what torch says of it would have people load anything
        return "it is no checkpoint, or a damaged one."
    if isinstance(error, pickle.UnpicklingError) and "Weights only" in str(error):
        return _why_refused(path)
    return f"it is damaged, or was not written to its end ({brief(error)})."


def _why_refused(path: Path) -> str:
    objects = ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "objects"
    return (
        f"it holds {objects}, perhaps among the hyper-parameters, which torch loads only if you trust the file: "
        "give weights_only=False (--weights-only=false)."
    )
