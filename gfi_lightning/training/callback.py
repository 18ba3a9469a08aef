"""The callback: when to explain, and where the pictures go."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import lightning as L
from torch import nn
from typing_extensions import override

from gfi_lightning.errors import UsageError
from gfi_lightning.guard import preserved_rng
from gfi_lightning.inversion.backgrounds import Background, background_function
from gfi_lightning.inversion.network import Forward
from gfi_lightning.inversion.recipes import Recipe, find_recipe
from gfi_lightning.inversion.scores import ScoreFunction, check_score
from gfi_lightning.recording.history import save_run
from gfi_lightning.recording.loggers import log_pictures, log_scalars, shows_images
from gfi_lightning.recording.pictures import draw_overview, draw_sample
from gfi_lightning.training import internals
from gfi_lightning.training.samples import SplitBatch, is_batch
from gfi_lightning.training.session import Session, Settings, Targets

_SEED = 0  # of everything random that explaining runs into, so that the same weights give the same picture


class GFICallback(L.Callback):
    """Shows in TensorBoard what the model looks at, on the same validation images all through the training.

    Once before the first training step, then by its schedule, and at the end of the training, it explains a
    few fixed validation images by guided feature inversion and logs, under tags that start with ``gfi/``, a
    picture per sample, an overview of all, and the curves ``gfi/preserved``, ``gfi/removed`` (the target's
    score on what is kept and on what is removed) and ``gfi/drift`` (1 − rank correlation with the maps of the
    run before), means over the samples. It also runs once under ``trainer.validate`` and ``trainer.test``.
    Steps are those of Lightning's own logged metrics: batches after which an optimiser stepped, counted from 0.

    Training is left exactly as it would be without: modes, gradients, buffers, random numbers.

    Args:
        every_n_epochs: explain at the end of every n-th training epoch.
        every_n_steps: explain after every n-th optimiser step instead. The run after the very first step has
            no place of its own on the x axis and is left out: step 0 shows the untrained model.
        num_samples: how many images of the (first) validation loader's data set are explained, spread evenly
            over the classes where labels can be had from the data set's ``targets``, ``labels`` or
            ``tensors``; otherwise the first ones. Fewer where the data set has fewer.
        samples: indices into that data set, or a ready batch, instead.
        targets: which class is explained. "label": the image's label, and beside it the predicted class where
            that is another; "predicted": the predicted class; a class index, or a list of them, for all
            images; or a callable from logits (N, classes) and labels (N,) or None to class indices (N,) or
            (N, T).
        layer: the base layer by its name in the LightningModule; None: the last feature map, see
            :class:`~gfi_lightning.GuidedFeatureInversion`, as for the next four and ``chunk_size``.
        inversion_layer: where stage 1 compares features.
        recipe: "default", "paper", "release" or a :class:`~gfi_lightning.Recipe`.
        background: "blur", "mean", "noise" or a callable.
        score: "softmax", "sigmoid" or a callable.
        class_names: by class index; None: the data set's ``classes``, or else the index.
        mean: of the images' normalisation, per channel, to show images as they were; None: that of the
            ``Normalize`` step in the data set's transform. Without one, images within [0, 1] are shown as they
            are, others by their own range.
        std: likewise.
        chunk_size: images that are optimised at once.
        forward: how to get the output, (module, images) → output; None: ``module(images)``.
        batch: how to get at images (N, C, H, W) and labels (N,) or None in a validation batch, batch →
            (images, labels); None: the usual forms are understood.
        on_error: "warn": a failure to explain becomes one warning and training goes on; "raise": it ends it.

    Raises:
        UsageError: an argument cannot be right; in the constructor, or before the first training step.

    Example::

        trainer = L.Trainer(callbacks=[GFICallback()])
    """

    _session: Session | None
    _last_step: int | None
    _updates_at_last_run: int | None
    _log_dir: str | None
    _said: set[str]
    _restored: dict[str, Any]

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        num_samples: int = 8,
        samples: Any = None,
        targets: Targets = "label",
        layer: str | nn.Module | None = None,
        inversion_layer: str | nn.Module | None = None,
        recipe: str | Recipe = "default",
        background: str | Background = "blur",
        score: str | ScoreFunction = "softmax",
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
        forward: Forward | None = None,
        batch: SplitBatch | None = None,
        on_error: str = "warn",
    ) -> None:
        _check_schedule(every_n_epochs, every_n_steps)
        _check_choices(num_samples, targets, on_error)
        find_recipe(recipe)
        check_score(score)
        background_function(background)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self._settings = Settings(
            num_samples=num_samples,
            samples=samples,
            targets=targets,
            layer=layer,
            class_names=class_names,
            normalization=_normalization(mean, std),
            batch=batch,
            explainer={
                "inversion_layer": inversion_layer,
                "recipe": recipe,
                "background": background,
                "score": score,
                "chunk_size": chunk_size,
                "forward": forward,
            },
        )
        self._forget()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start afresh in every fit; what a checkpoint knows comes after this."""
        if stage == "fit":
            self._forget()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose and read the samples, and show the untrained model. Misuse ends the fit here."""
        if self._is_idle(trainer):
            return
        with self._guarded(raise_misuse=True):
            self._open_session(trainer)
            if self._last_step is None:
                updates = internals.batches_that_stepped(trainer)
                self._run(trainer, pl_module, updates)
                self._updates_at_last_run = updates

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Explain if the schedule counts steps and it is time."""
        if self.every_n_steps is None or not internals.optimizer_stepped(trainer):
            return
        step = internals.batches_that_stepped(trainer)
        if (step + 1) % self.every_n_steps == 0:
            self._run_guarded(trainer, pl_module, step)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain if the schedule counts epochs and it is time."""
        if self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run_guarded(trainer, pl_module, _step_of_epoch_metrics(trainer))

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain the final weights, unless they have just been."""
        if self._updates_at_last_run == internals.batches_that_stepped(trainer):
            return
        # After a single step its place is taken by the untrained model, and the next one is free.
        first_free = 0 if self._last_step is None else self._last_step + 1
        self._run_guarded(trainer, pl_module, max(_step_of_epoch_metrics(trainer), first_free))

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain under ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self._run_in_evaluation(trainer, pl_module)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain under ``trainer.test``."""
        self._run_in_evaluation(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Which samples, and how far we are; it loads with ``weights_only``."""
        if self._session is None:
            return self._restored
        progress = {"last_step": self._last_step, "updates_at_last_run": self._updates_at_last_run}
        return self._session.state() | progress

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the samples of the run that is resumed."""
        self._restored = dict(state_dict)

    def _forget(self) -> None:
        self._session = None
        self._last_step = None
        self._updates_at_last_run = None
        self._log_dir = None
        self._said = set()
        self._restored = {}

    def _say_where_pictures_are(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self._log_dir is not None and not any(map(shows_images, trainer.loggers)):
            self._warn_once(
                "GFICallback shows its pictures in TensorBoard, and this Trainer has no TensorBoardLogger: maps are "
                f"kept in {self._log_dir} for gfi_lightning.History, curves go to the loggers that there are."
            )

    def _is_idle(self, trainer: L.Trainer) -> bool:
        if internals.is_sharded(trainer):
            self._warn_once(
                f"GFICallback does not explain under {type(trainer.strategy).__name__}, where no rank holds the "
                "whole model. Training goes on without it."
            )
            return True
        return not trainer.loggers  # logger=False or barebones: nobody would see it

    def _open_session(self, trainer: L.Trainer) -> None:
        self._log_dir = trainer.log_dir  # asks all ranks
        self._say_where_pictures_are(trainer)
        with preserved_rng(_SEED):
            # On every rank, in case the module's own dataloader hook talks to the others.
            loader = None if is_batch(self._settings.samples) else internals.evaluation_loader(trainer)
            if trainer.is_global_zero:
                self._session = Session(self._settings, loader, self._restored, self._warn_once)
        self._last_step = self._restored.get("last_step")
        self._updates_at_last_run = self._restored.get("updates_at_last_run")

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Explain, draw and log, unless this step has been."""
        if self._session is None or step == self._last_step:
            return
        with preserved_rng(_SEED):
            record = self._session.explain(trainer, pl_module, step)
            names = self._session.class_names
            pictures = {"gfi/overview": draw_overview(record, names)}
            for number, sample in enumerate(record.samples):
                pictures[f"gfi/sample_{number}"] = draw_sample(sample, number, step, names)
            log_pictures(trainer.loggers, pictures, step)
            log_scalars(trainer.loggers, self._session.scalars(record), step)
            if self._log_dir is not None:
                save_run(self._log_dir, record, names)
        self._last_step = step
        self._updates_at_last_run = step + 1

    def _run_in_evaluation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_idle(trainer):
            return
        with self._guarded():
            if self._session is None:
                self._open_session(trainer)
            self._last_step = None  # asked for outside a fit, it runs at any step
            self._run(trainer, pl_module, internals.batches_that_stepped(trainer))

    def _run_guarded(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        with self._guarded():
            self._run(trainer, pl_module, step)

    @contextmanager
    def _guarded(self, raise_misuse: bool = False) -> Iterator[None]:
        """Our own faults become one warning each."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise" or (raise_misuse and isinstance(error, UsageError)):
                raise
            self._warn_once(
                f"GFICallback could not explain, and the run goes on: {type(error).__name__}: {error}\n"
                "GFICallback(on_error='raise') shows where this comes from.",
                cause=_origin(error),
            )

    def _warn_once(self, message: str, cause: str | None = None) -> None:
        """Warn, once per cause: of the same fault with other numbers in its message nobody wants to hear again."""
        cause = cause or message
        if cause not in self._said:
            self._said.add(cause)
            warnings.warn(message, stacklevel=2)


def _origin(error: Exception) -> str:
    """The kind of an error and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__} at {place}"


def _check_schedule(every_n_epochs: int, every_n_steps: int | None) -> None:
    if every_n_epochs < 1:
        raise UsageError(f"every_n_epochs={every_n_epochs} must be at least 1.")
    if every_n_steps is None:
        return
    if every_n_steps < 1:
        raise UsageError(f"every_n_steps={every_n_steps} must be at least 1, or None.")
    if every_n_epochs != 1:
        raise UsageError(
            f"every_n_epochs={every_n_epochs} and every_n_steps={every_n_steps} were both given: give one of them."
        )


def _check_choices(num_samples: int, targets: Targets, on_error: str) -> None:
    if num_samples < 1:
        raise UsageError(f"num_samples={num_samples} must be at least 1.")
    unknown = isinstance(targets, str) and targets not in ("label", "predicted")
    if unknown or not (callable(targets) or isinstance(targets, (str, Integral, Sequence))):
        raise UsageError(
            f"targets={targets!r} is unknown: use 'label', 'predicted', a class index, a list of them, or a callable."
        )
    if on_error not in ("warn", "raise"):
        raise UsageError(f"on_error={on_error!r} is unknown: use 'warn' or 'raise'.")


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]] | None:
    if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)):
        raise UsageError(f"mean={mean} and std={std} must be given together, one number per channel each.")
    return None if mean is None or std is None else (mean, std)


def _step_of_epoch_metrics(trainer: L.Trainer) -> int:
    """Lightning logs an epoch's metrics at the index of its last batch that stepped."""
    return max(internals.batches_that_stepped(trainer) - 1, 0)
