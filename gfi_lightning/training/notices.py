"""What the user is told: one line when a training begins, and one when it is over."""

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from gfi_lightning.recording.record import Record
from gfi_lightning.training.budget import Budget
from gfi_lightning.training.schedule import Schedule

_MINUTE, _HOUR = 60, 3600  # seconds


def title(prefix: str, root: str) -> str:
    """How a callback calls itself, from what its tags start with."""
    return "GFICallback" if prefix == root else f"GFICallback {prefix.removeprefix(f'{root}/')!r}"


def samples_in_words(record: Record, kind: str) -> str:
    """How many samples there are, and of how many classes, where that is known.

    Args:
        record: of a run.
        kind: of images, with a space behind it; or nothing.
    """
    count = len(record.samples)
    labels = {sample.label for sample in record.samples} | {
        label for sample in record.samples for label in sample.present or ()
    }
    classes = len(labels - {None})
    of_classes = f" of {classes} class{'es' * (classes != 1)}" if classes else ""
    return f"{count} {kind}image{'s' * (count != 1)}{of_classes}"


def other_images(held: str, given: str) -> str:
    """A warning: what a batch holds, and what the model is given instead, in words."""
    return (
        f"validation_step gives the model other images ({given}) than those in its batch ({held}), which GFICallback "
        "explains, so its pictures are not of what the model is trained on: do what the step does to images in "
        "forward, in a transform or in on_after_batch_transfer, or give batch= (batch → images, labels) that does it."
    )


def first_line(
    name: str, samples: str, layers: str, schedule: Schedule, budget: Budget, floor: float, to_come: int | None
) -> str:
    """What is explained, where, when, and what that will take.

    Args:
        name: of the callback.
        samples: in words.
        layers: a sentence.
        schedule: of the callback.
        budget: after the first run.
        floor: seconds which that took in addition, as it was the first.
        to_come: further runs; None: it is not known.
    """
    each = max((budget.last_cost or 0.0) - floor, 0.0)
    cost = f"A run takes about {duration(each)}"
    if to_come is not None:
        cost += f", the {to_come} to come about {duration(each * to_come)}" if to_come > 1 else f", {to_come} to come"
    if budget.limit < 1 and (budget.free == 0 or to_come is None or each * to_come > budget.free):
        on_top = f" and {duration(budget.free)} on top" if budget.free else ""
        cost += f", and all no more than {budget.limit:.3g} of the time{on_top}"
    return f"{name} explains {samples} {schedule}. {layers} {cost}."


def resumed_line(name: str, schedule: Schedule) -> str:
    """That a training which is resumed is explained further."""
    return f"{name} goes on where the checkpoint left off, {schedule}."


def last_line(
    name: str,
    budget: Budget,
    folder: Path | None,
    log_dir: Path | None,
    boards: Sequence[str],
    outlets: Sequence[str],
) -> str:
    """What was done, where it is, and how to look at it.

    Args:
        name: of the callback.
        budget: at the end.
        folder: of the maps; None: none were kept.
        log_dir: of the training, which the report is made from.
        boards: log directories of TensorBoard.
        outlets: where pictures went, in words.
    """
    commands = [f"tensorboard --logdir {shown(board)}" for board in boards]
    places = [f"Its pictures are in {' and '.join(outlets)}."] if outlets else []
    if folder is not None and log_dir is not None and folder.is_dir():
        places.append(f"Its maps are in {shown(folder, quoted=False)}.")
        commands.append(f"gfi-lightning report {shown(log_dir)}")
    line = f"{name} {budget}. {' '.join(places) or 'Nothing of it was kept.'}"
    return f"{line} To look at them: {'  or  '.join(commands)}" if commands else line


def shown(path: str | Path, quoted: bool = True) -> str:
    """A path as short as it can be typed here, by default quoted for the shell where it must be."""
    absolute = str(Path(path).absolute())
    try:
        relative = os.path.relpath(absolute)
    except ValueError:  # on another drive of Windows
        relative = absolute
    short = min(relative, absolute, key=len)
    return shlex.quote(short) if quoted else short


def duration(seconds: float) -> str:
    """A time in a unit that people would take: 0.04 s, 1.3 s, 12 s, 3 min, 1.5 h."""
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    if seconds >= 2 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.01):.{1 if seconds >= 0.1 else 2}f} s"


def runs_to_come(trainer: L.Trainer, schedule: Schedule) -> int | None:
    """How many runs follow that of the untrained model; None where nobody can tell.

    Of a training that goes on until its last epoch or step.
    """
    batches = trainer.num_training_batches
    if trainer.global_step > 0 or not math.isfinite(batches) or batches < 1:
        return None
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    epochs, most = trainer.max_epochs, trainer.max_steps
    totals = [] if epochs is None or epochs < 0 else [epochs * per_epoch]
    if most >= 0:
        if len(trainer.optimizers) > 1:  # whose steps all count
            return None
        totals.append(most)
    return schedule.runs(min(totals), per_epoch) if totals else None
