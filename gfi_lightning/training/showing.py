"""What becomes of what was seen, on the first rank: it is kept, and sent to the loggers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfi_lightning.errors import attempt
from gfi_lightning.recording.arrays import run_array, sample_arrays, without_extras
from gfi_lightning.recording.curves import Curves, means, means_by_class, means_by_sample
from gfi_lightning.recording.encoding import Pictures, encoded, encoding
from gfi_lightning.recording.film import Film
from gfi_lightning.recording.history import Earlier, History, HistoryWriter
from gfi_lightning.recording.loggers import log_scalars, picture_outlets
from gfi_lightning.recording.pictures import draw_overview
from gfi_lightning.recording.record import Record
from gfi_lightning.training.faults import Faults
from gfi_lightning.training.regions import alarms
from gfi_lightning.training.schedule import is_power_of_two

REST_IS_KEPT = "Its maps and curves are kept all the same."
_REST_IS_SHOWN = "Make room there, or make it writable. What goes to loggers is logged all the same."


@dataclass(frozen=True)
class Wishes:
    """What the user wants to see; see :class:`~gfi_lightning.GFICallback`."""

    per_class: bool
    per_sample: bool
    keep_weights: bool
    alarm: Mapping[str, float]


class Showing:
    """Keeps the runs of one training, or of an evaluation, and shows them; what fails keeps nothing else from it.

    Args:
        prefix: of all tags, and the folder below the log directory.
        log_dir: of the training; None: nothing is written.
        class_names: by class index; None: the index stands for it.
        wishes: of the user.
        faults: say what fails.
        restored: :meth:`state` of the training that is resumed, and its "last_step"; or an empty mapping.
    """

    def __init__(
        self,
        prefix: str,
        log_dir: Path | None,
        class_names: Sequence[str] | None,
        wishes: Wishes,
        faults: Faults,
        restored: Mapping[str, Any],
    ) -> None:
        self._prefix = prefix
        self._log_dir = log_dir
        self._folder = None if log_dir is None else log_dir / prefix
        self._class_names = class_names
        self._wishes = wishes
        self._faults = faults
        self._restored = restored
        self._alarmed: list[str] = list(restored.get("alarmed", ()))
        self._writer: HistoryWriter | None = None
        self._film: Film | None = None

    def state(self) -> dict[str, Any]:
        """What a resumed training needs: plain types, which load with ``weights_only``."""
        if self._writer is None or self._folder is None:
            return {"alarmed": self._alarmed}
        return {"alarmed": self._alarmed, "run_id": self._writer.run_id, "folder": str(self._folder.resolve())}

    @property
    def history(self) -> History | None:
        """The runs so far, without ω and depths."""
        return None if self._film is None else self._film.history

    def show(
        self,
        loggers: Sequence[Any],
        record: Record,
        curves: Curves,
        drawn: Pictures | None,
        overhead: float | None,
        untrained: bool,
    ) -> dict[str, float]:
        """Keep a run, log its curves and pictures, and set off the alarm.

        Args:
            loggers: of the Trainer.
            record: what was seen.
            curves: of the samples.
            drawn: the samples' pictures by their tags; None: nobody would see them.
            overhead: the share of the training's time that was spent on explaining; None: there is no training.
            untrained: the model has learned nothing yet, right or wrong: there is no alarm.

        Returns:
            What was logged, by tag; without the overhead, as a clock makes no two trainings alike.
        """
        self._keep(record, curves)
        scalars = {f"{self._prefix}/{name}": value for name, value in self._scalars(record, curves).items()}
        spent = {} if overhead is None else {f"{self._prefix}/overhead": overhead}
        for one in loggers:
            with self._faults.guarded(), attempt(f"log curves to {type(one).__name__}", "All else is logged and kept."):
                log_scalars(one, scalars | spent, record.step)
        if drawn is not None:
            self._send(loggers, drawn | self._pictures(record), record.step)
        if not untrained:
            self._watch(curves, record)
        return scalars

    def finish(self, loggers: Sequence[Any], step: int) -> None:
        """What is drawn once, at the end: the whole animation, and all curves in a figure."""
        if self._film is None:
            return
        # Only here, because it brings Matplotlib's drawing, which nothing else needs.
        from gfi_lightning.recording.figures import drift_figure

        # After as many runs it has just been drawn.
        pictures = {} if is_power_of_two(len(self._film.history)) else self._animation()
        with self._faults.guarded(), attempt("draw its curves", REST_IS_KEPT):
            pictures[f"{self._prefix}/curves"] = encoded(
                drift_figure(self._film.history), "all curves, sample by sample", of_all_runs=True
            )
        self._send(loggers, pictures, step)

    def _watch(self, curves: Curves, record: Record) -> None:
        """Set off the alarm, once in a training."""
        picture = "sample" if record.epoch is None else "film"
        for name, message in alarms(self._wishes.alarm, curves, record.step, self._prefix, picture):
            if name not in self._alarmed:
                self._alarmed.append(name)
                self._faults.warn(message)

    def _scalars(self, record: Record, curves: Curves) -> dict[str, float]:
        values = means(curves)
        if self._wishes.per_class:
            labels = [sample.label for sample in record.samples]
            if not any(label is not None for label in labels):
                self._faults.warn(
                    "GFICallback(per_class=True) needs a class index for each sample, and there is none: there are no "
                    "curves of classes. Give batch= (batch → images, labels)."
                )
            values |= means_by_class(curves, labels, self._class_names)
        if self._wishes.per_sample:
            values |= means_by_sample(curves)
        return values

    def _keep(self, record: Record, curves: Curves) -> None:
        """Add a run to the history, in memory and on disk."""
        run = run_array(record, curves, self._wishes.keep_weights)
        if self._film is None:
            self._film = Film(self._earlier(sample_arrays(record, self._class_names)))
        self._film.history.add(without_extras(run))
        if self._writer is not None:
            with self._faults.guarded(), attempt(f"write its maps to {self._folder}", _REST_IS_SHOWN):
                self._writer.append(run)

    def _earlier(self, samples: Mapping[str, Any]) -> History:
        """What the training that is resumed has kept in its folder."""
        if self._folder is not None:
            self._writer = HistoryWriter(self._folder, samples, self._restored.get("run_id"), self._elsewhere())
            with self._faults.guarded(), attempt(f"write its maps to {self._folder}", _REST_IS_SHOWN):
                return self._writer.open()
        return History("", samples)

    def _elsewhere(self) -> Earlier | None:
        """Where the training that is resumed has written: a new folder is the default of Lightning's loggers."""
        folder, step = self._restored.get("folder"), self._restored.get("last_step")
        return None if folder is None or step is None else Earlier(Path(folder), step)

    def _pictures(self, record: Record) -> Pictures:
        """An overview of all samples, and in a training the films so far."""
        pictures: Pictures = {}
        with self._faults.guarded(), attempt("compress its pictures", REST_IS_KEPT), encoding(pictures) as encode:
            with self._faults.guarded(), attempt("draw its pictures", REST_IS_KEPT):
                overview = draw_overview(record, self._class_names)
                encode(f"{self._prefix}/overview", overview, f"all samples at step {record.step}")
            if self._film is None or record.epoch is None:
                return pictures
            with self._faults.guarded(), attempt("draw its film strips", REST_IS_KEPT):
                for number in range(len(record.samples)):
                    strip, caption = self._film.strip(number), f"sample {number}, step by step"
                    encode(f"{self._prefix}/film_{number}", strip, caption, of_all_runs=True)
            if is_power_of_two(len(self._film.history)):  # not every time, as it takes longer with every run
                pictures |= self._animation()
        return pictures

    def _animation(self) -> Pictures:
        with self._faults.guarded(), attempt("draw its animation", REST_IS_KEPT):
            if self._film is not None:
                return {f"{self._prefix}/animation": self._film.animation()}
        return {}

    def _send(self, loggers: Sequence[Any], pictures: Pictures, step: int) -> None:
        run_id = "" if self._writer is None else self._writer.run_id
        for outlet in picture_outlets(loggers, self._prefix, self._log_dir, run_id):
            with self._faults.guarded(), attempt(f"log pictures to {outlet.name}", REST_IS_KEPT):
                outlet.send(pictures, step)
