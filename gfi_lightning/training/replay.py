"""A training that is over, explained from its checkpoints as if the callback had been there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L

from gfi_lightning.errors import UsageError, attempt, brief
from gfi_lightning.logs import logger
from gfi_lightning.recording.history import History
from gfi_lightning.training import internals
from gfi_lightning.training.callback import GFICallback
from gfi_lightning.training.checkpoints import (
    CHECKPOINTS,
    Moment,
    Unreadable,
    checkpoint_files,
    moments,
    read,
    skip,
)
from gfi_lightning.training.ranks import Ranks
from gfi_lightning.training.samples import is_batch


def replay(
    checkpoints: str | Path | Sequence[str | Path],
    model: L.LightningModule,
    datamodule: L.LightningDataModule | None = None,
    dataloaders: Any = None,
    *,
    callback: GFICallback | None = None,
    trainer: L.Trainer | None = None,
    log_dir: str | Path | None = None,
    weights_only: bool | None = None,
) -> History | None:
    """Explain the same samples at every checkpoint of a finished training, in the order of its steps.

    What :class:`~gfi_lightning.GFICallback` would have written is written: the history and the pictures, on the x axis
    of the training's own metrics, so that reports and films work as if it had been there. The samples are those of the
    training's own callback where it had one, else chosen as that would. Nothing is validated: of the module no step
    and no hook of an evaluation is run, and of its data only the samples are read.

    What is explained are the weights in a checkpoint's ``state_dict``. Where another callback had put others in their
    place when it was written, the averaged ones of ``WeightAveraging`` for instance, it is those.

    A file that cannot be read, or does not fit the model, is skipped with a warning that says why. Of several at the
    same step the first is explained. Once more into the same folder it is another run there, and the newest counts.

    Args:
        checkpoints: the folder of a run's checkpoints, of which all ``*.ckpt`` count; or their files.
        model: like the one that was trained. Afterwards it has the weights of the last checkpoint.
        datamodule: of the training, for its validation set; None: ``dataloaders``, or the module's own.
        dataloaders: for validation, instead of a data module.
        callback: says what is explained and how; when is up to the checkpoints. None: that of the Trainer, or one that
            is like ``GFICallback()``.
        trainer: for its devices, strategy and precision; over several devices the samples are spread. Its loggers and
            the callbacks that write checkpoints take no part. None: one device.
        log_dir: for the history and the pictures; None: of the training, the parent of a folder that is called
            ``checkpoints``; or, called otherwise, the folder itself.
        weights_only: False: load checkpoints that hold more than tensors and plain types, among the hyper-parameters
            for instance. They can run any code: only for files whose origin you trust.

    Returns:
        The history, without ω and depths (:meth:`History.load` reads those); None on other ranks than the first, and
        where all explaining failed, which the callback has warned of.

    Raises:
        UsageError: there are no checkpoints, none can be read, none fits the model, or there is no data to explain.

    Example::

        history = gfi_lightning.replay("lightning_logs/version_0/checkpoints", MyModel(), MyData())
    """
    if datamodule is not None and not hasattr(datamodule, "prepare_data"):
        raise UsageError(f"datamodule= is a {type(datamodule).__name__}: give loaders as dataloaders=.")
    if datamodule is not None and dataloaders is not None:
        raise UsageError("datamodule= and dataloaders= are two sources of the same data: give one of them.")
    inner = getattr(model, "_orig_mod", model)  # of a compiled one
    package = internals.package_of(type(inner))
    files = checkpoint_files(checkpoints)
    when = moments(files, weights_only)
    trainer = _quiet_trainer(package) if trainer is None else trainer
    ours = [callback] if callback is not None else _ours(trainer) or [GFICallback()]
    others = [one for one in internals.callbacks(trainer) if not isinstance(one, GFICallback)]
    bystanders = [one for one in others if not internals.writes_checkpoints(one)]
    tensorboard = _tensorboard(package, log_dir_of(checkpoints) if log_dir is None else log_dir)
    work = partial(_explain_all, trainer, callback, when, weights_only)
    with internals.validating_by(trainer, inner, work, [*bystanders, *ours], [tensorboard]):
        history: Any = trainer.validate(model, dataloaders, datamodule=datamodule, verbose=False)
    return history  # type: ignore[no-any-return]


def _quiet_trainer(package: str) -> L.Trainer:
    trainer: L.Trainer = import_module(package).Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    return trainer


def _tensorboard(package: str, log_dir: str | Path) -> Any:
    """A logger right into a folder, of which it leaves alone what is there."""
    # A name or a version would make a folder for it. And neither a made-up hp_metric nor the hyper-parameters belong
    # to the run, which has told its own.
    tensorboard = import_module(f"{package}.loggers").TensorBoardLogger(
        log_dir, name="", version="", default_hp_metric=False
    )
    tensorboard.save = _nothing
    return tensorboard


def _nothing() -> None:
    pass


def _ours(trainer: L.Trainer) -> list[GFICallback]:
    return [one for one in internals.callbacks(trainer) if isinstance(one, GFICallback)]


def log_dir_of(checkpoints: str | Path | Sequence[str | Path]) -> Path:
    """The log directory of the run that wrote a folder of checkpoints, or the first of some files."""
    first = Path(checkpoints if isinstance(checkpoints, (str, Path)) else checkpoints[0])
    folder = first if first.is_dir() else first.parent
    if folder.name in ("", ".."):  # of the current folder, and the like
        folder = folder.resolve()
    return folder.parent if folder.name == CHECKPOINTS else folder


def _explain_all(
    trainer: L.Trainer, callback: GFICallback | None, when: list[Moment], weights_only: bool | None
) -> History | None:
    """What takes the place of a validation, on every rank."""
    pl_module = trainer.lightning_module
    ranks = internals.ranks(trainer)
    if ranks is None:
        raise UsageError(f"Nothing can be explained under {type(trainer.strategy).__name__}: give another strategy.")
    # Those that the model itself brings are with the Trainer only now.
    ours = [callback] if callback is not None else _ours(trainer)
    if not all(is_batch(one._settings.samples) for one in ours):
        ranks.agree(lambda: _see_to_data(trainer, max(one._settings.dataloader_idx for one in ours)))
    weights = _Weights(trainer, pl_module, ranks, ranks.from_first(lambda: when), weights_only)
    histories = [one.replay(trainer, pl_module, weights) for one in ours]
    return histories[0]


def _see_to_data(trainer: L.Trainer, dataloader_idx: int) -> None:
    """Lightning has had the data set up for validation, but some sets are made only for training, as in the run."""
    try:
        loader = internals.evaluation_loader(trainer, dataloader_idx)
    except UsageError:
        raise
    except Exception:  # whatever comes of a set that is not there
        loader = None
    if loader is None or getattr(loader, "dataset", loader) is None:
        try:
            internals.set_up_for_fit(trainer)
            loader = internals.evaluation_loader(trainer, dataloader_idx)
        except Exception as error:
            raise UsageError(
                f"The validation set cannot be had ({brief(error)}): give dataloaders=, or a data module "
                "whose setup() makes it for the stage 'validate' or 'fit'."
            ) from error
    if loader is None:
        raise UsageError(
            "There is no validation set to explain: give datamodule= (on the command line --data MODULE.CLASS), "
            "dataloaders=, or GFICallback(samples=(images, labels))."
        )


@dataclass
class _Weights:
    """Puts the weights of one moment after the other into the module, each time that it is gone through."""

    trainer: L.Trainer
    pl_module: L.LightningModule
    ranks: Ranks
    moments: list[Moment]
    weights_only: bool | None
    _skipped: dict[Path, str] = field(default_factory=dict)  # and why
    _is_new: bool = True

    def __iter__(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Step, epoch and checkpoint of every moment whose weights are in the module now.

        Raises:
            UsageError: there were none.
        """
        step, same = None, []
        for moment in self.moments:
            if moment.step == step:
                same.append(moment.path.name)
            elif (checkpoint := self._loaded(moment.path)) is not None:
                step = moment.step
                yield step, moment.epoch, checkpoint
        if step is None:
            reasons = list(self._skipped.values())
            raise UsageError(f"None of {len(reasons)} checkpoints could be loaded into the model: {reasons[-1]}")
        if same and self._is_new:
            logger.info(f"Another checkpoint was explained at the same step as {', '.join(same)}.")
        self._is_new = False

    def _loaded(self, path: Path) -> dict[str, Any] | None:
        if path in self._skipped:
            return None
        try:
            return self.ranks.agree(partial(self._load, path))
        except Exception as error:  # also of the user's own on_load_checkpoint
            reason = str(error) if isinstance(error, Unreadable) else f"it does not fit the model ({brief(error)})."
        self._skipped[path] = reason
        skip(path, reason)
        return None

    def _load(self, path: Path) -> dict[str, Any]:
        with attempt("load its weights", ""):
            checkpoint = read(path, self.weights_only)
            internals.load_weights(self.trainer, self.pl_module, path, checkpoint, self.weights_only)
            return checkpoint
