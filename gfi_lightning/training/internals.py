"""What we need of Lightning beyond its public interface, in one place. Checked with 2.4 to 2.6."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader, rank_zero_only
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import distributed
from torch.nn.parameter import is_lazy

from gfi_lightning.errors import UsageError
from gfi_lightning.guard import preserved_state
from gfi_lightning.logs import logger
from gfi_lightning.recording.loggers import is_dummy
from gfi_lightning.training.ranks import Ranks

_SHARDED = {"ModelParallelStrategy"}  # no rank holds the whole model
# FSDP of the first kind wraps the module, and DeepSpeed in its own engine: the module alone cannot be run.
_WRAPPING = {"FSDPStrategy", "DeepSpeedStrategy"}

# What every rank has to say is said once.
logger.addFilter(lambda record: is_first_rank())


def batches_that_stepped(trainer: L.Trainer) -> int:
    """The x axis of Lightning's own logged metrics: batches after which any optimiser stepped.

    Not ``global_step``, which counts the steps of every optimiser. The batch that is being trained on is
    counted after ``on_train_batch_end``, so that what is logged there is logged at its index.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def optimizer_stepped(trainer: L.Trainer) -> bool:
    """In ``on_train_batch_end``: whether this batch ended with an optimiser's step, or only accumulated."""
    return not trainer.fit_loop._should_accumulate()


def callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """All of a Trainer's callbacks."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]  # which it sets, but does not declare


def remove_callback(trainer: L.Trainer, callback: L.Callback) -> None:
    """Take a callback out of a Trainer, also from within one of its hooks."""
    # A new list, because Lightning is going through the old one.
    trainer.callbacks = [one for one in callbacks(trainer) if one is not callback]  # type: ignore[attr-defined]


def be_callback_of_both(callback: type[L.Callback]) -> None:
    """Let a class be a Callback of the package ``pytorch_lightning`` as well, where that is in use.

    Its Trainer asks for hooks alone, but its LightningCLI and some who go through callbacks ask for the class. It is
    not imported for that: the package takes seconds.
    """
    other = getattr(sys.modules.get("pytorch_lightning"), "Callback", None)
    if other is not None and not issubclass(callback, other):
        callback.__bases__ = (*callback.__bases__, other)


def ranks(trainer: L.Trainer) -> Ranks | None:
    """The processes of this training; None where they cannot be talked to through torch."""
    if _strategy_is(trainer, _WRAPPING):
        return None
    sharded = _strategy_is(trainer, _SHARDED)
    if trainer.world_size == 1:
        return Ranks(sharded=sharded)
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return Ranks(trainer.global_rank, trainer.world_size, sharded)


def is_uninitialized(pl_module: L.LightningModule) -> bool:
    """Whether there are lazy parameters, whose shapes and values the run's own first forward pass will decide."""
    return any(is_lazy(tensor) for tensor in (*pl_module.parameters(), *pl_module.buffers()))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


def free_memory() -> None:
    """Give back what nobody refers to any more."""
    garbage_collection_cuda()


def is_first_rank() -> bool:
    """Whether this process is the one that speaks for all."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def has_compiled() -> bool:
    """Whether anything was compiled in this process, which a hook on a module might have compiled once more."""
    dynamo = sys.modules.get("torch._dynamo")
    try:
        return dynamo is not None and dynamo.utils.counters["frames"]["total"] > 0
    except AttributeError:  # not known
        return True


def calls_for_its_steps(trainer: L.Trainer) -> bool:
    """Whether the module is called with the batch before its own step is, as under DDP."""
    return trainer.strategy.model is not trainer.lightning_module


def _strategy_is(trainer: L.Trainer, names: set[str]) -> bool:
    return any(base.__name__ in names for base in type(trainer.strategy).__mro__)


def evaluation_loader(trainer: L.Trainer, index: int = 0) -> Any:
    """A validation loader, or under ``trainer.test`` a test loader; None if there is none.

    In a fit where validation is switched off, or comes only epochs later, the loader is requested here and
    not kept, so that Lightning will request its own when it would have done so anyway.

    Args:
        trainer: whose.
        index: of several, as Lightning counts them (``dataloader_idx``).

    Raises:
        UsageError: there are not as many.
    """
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if loaders is None:
        source = trainer.fit_loop.epoch_loop.val_loop._data_source
        if source.instance is None or not source.is_defined():
            return None
        # Asked once more than without us, it must not tell.
        with preserved_state([source.instance], tensors=False):
            loaders = source.dataloader()
    if loaders is None:
        return None
    flattened = CombinedLoader(loaders, "sequential").flattened if not _is_combined(loaders) else loaders.flattened
    if flattened and index >= len(flattened):
        kind = "test" if trainer.testing else "validation"
        there = f"is one {kind} loader" if len(flattened) == 1 else f"are {len(flattened)} {kind} loaders"
        numbers = "0" if len(flattened) == 1 else f"an index from 0 to {len(flattened) - 1}"
        raise UsageError(f"dataloader_idx={index} does not exist: there {there}, so give {numbers}.")
    return flattened[index] if flattened else None


def _is_combined(loaders: Any) -> bool:
    return any(base.__name__ == "CombinedLoader" for base in type(loaders).__mro__)


def to_device(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, dataloader_idx: int = 0) -> Any:
    """A collated batch as a validation step would get it: converted, and through the transfer hooks.

    These are the module's, which must not notice anyway, or the data module's, which is left as it was.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    # Not its tensors, which may be the whole of the data.
    with preserved_state(data_modules(trainer), tensors=False):
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def data_modules(trainer: L.Trainer) -> list[Any]:
    """The Trainer's data module, if it has one."""
    found = getattr(trainer, "datamodule", None)
    return [] if found is None else [found]


def log_folder(trainer: L.Trainer) -> Path | None:
    """The folder of a training, where Lightning puts its checkpoints too; to be asked for on the first rank.

    It is the log directory of the first logger, or of one that has none, its ``save_dir/name/version``, so that two
    runs never share one; without a logger, ``default_root_dir``. None: no files are to be written, in a
    ``fast_dev_run``.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return root
    first = trainer.loggers[0]
    if is_dummy(first):
        return None
    if isinstance(log_dir := getattr(first, "log_dir", None), (str, Path)):
        return Path(log_dir)
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    return Path(first.save_dir or root, str(first.name), version)


def log_in_module(pl_module: L.LightningModule, tag: str, value: float, in_progress_bar: bool, on_step: bool) -> None:
    """Let other callbacks and the progress bar have a value, in a hook that may log; loggers had it at the very step.

    In a module that is compiled as a whole, its own calls of ``log`` would be compiled anew if it logged more.

    Args:
        pl_module: of the training.
        tag: of the value.
        value: the same on every rank.
        in_progress_bar: whether it is shown there.
        on_step: whether the hook is one of a batch; else it is one of an epoch.
    """
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        set_metrics(pl_module.trainer, {tag: value}, {tag} if in_progress_bar else set())
        return
    # Averaged over the ranks, although they are the same, because Lightning else wonders on every one of them.
    sync_dist = pl_module.trainer.world_size > 1
    pl_module.log(
        tag,
        value,
        prog_bar=in_progress_bar,
        logger=False,
        on_step=on_step,
        on_epoch=not on_step,
        batch_size=1,
        sync_dist=sync_dist,
    )


def set_metrics(trainer: L.Trainer, values: Mapping[str, float], in_progress_bar: Collection[str]) -> None:
    """The same for all values, by their tags, in a hook that may not log."""
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in values.items()})
    trainer.progress_bar_metrics.update({tag: value for tag, value in values.items() if tag in in_progress_bar})


@contextmanager
def not_logging(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """Let nothing be logged in a module's forward, so that our passes stay out of the run's metrics."""
    names, loggers = ("log", "log_dict"), trainer.loggers
    own = {name: pl_module.__dict__[name] for name in names if name in pl_module.__dict__}
    try:
        pl_module.__dict__.update(dict.fromkeys(names, _nothing))
        trainer.loggers = [DummyLogger()]
        yield
    finally:
        trainer.loggers = loggers
        for name in names:
            del pl_module.__dict__[name]
        pl_module.__dict__.update(own)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


@contextmanager
def validating(trainer: L.Trainer) -> Iterator[None]:
    """Let ``trainer.training`` be False, which user hooks look at to decide on random augmentation."""
    stage = trainer.state.stage
    try:
        if trainer.training and stage is not None:
            trainer.state.stage = type(stage).VALIDATING
        yield
    finally:
        trainer.state.stage = stage


def moment(loops: dict[str, Any]) -> tuple[int, int]:
    """Where a live callback would have shown the weights of a checkpoint.

    Args:
        loops: the checkpoint's, by name.

    Returns:
        The step, see :func:`batches_that_stepped`, and the epoch of the last batch after which an optimiser stepped.
    """
    fit = loops["fit_loop"]
    counted = fit["epoch_loop.state_dict"]["_batches_that_stepped"]
    epochs, batches = fit["epoch_progress"]["current"], fit["epoch_loop.batch_progress"]["current"]
    optimizer = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    stepped = optimizer["step"]["total"]["completed"]
    if fit["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]:  # by several, perhaps
        stepped = fit["epoch_loop.batch_progress"]["total"]["processed"]
    # Lightning counts a batch only after the validation that follows it, and hence after most checkpoints are written.
    # In a training that is resumed from a batch's end its count lags behind (2.4) or runs ahead (later). Between two
    # batches, gradients tell: they are cleared in the first one that they are accumulated over, and used in the last.
    # At an epoch's end all is counted.
    is_between_batches = batches["processed"] == batches["ready"] > 0
    if epochs["processed"] >= epochs["started"]:
        is_uncounted = False
    elif is_between_batches:
        cleared, used = (optimizer[name]["current"]["completed"] for name in ("zero_grad", "step"))
        is_uncounted = cleared == used
    else:
        is_uncounted = stepped > counted
    is_within_epoch = is_uncounted or max(epochs["started"], epochs["processed"]) > epochs["completed"]
    epoch = epochs["completed"] - (not (is_within_epoch and batches["processed"]))
    return max(counted - (not is_uncounted), 0), max(epoch, 0)


def load_weights(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    path: Path,
    checkpoint: dict[str, Any],
    weights_only: bool | None,
) -> None:
    """Give a module a checkpoint's weights, as Lightning does when it resumes.

    Args:
        trainer: of the module.
        pl_module: to be changed.
        path: of the checkpoint.
        checkpoint: as it was read.
        weights_only: as it was read.
    """
    if _strategy_is(trainer, _SHARDED):  # which reads it again, and deals out the parts
        knows = "weights_only" in signature(trainer.strategy.load_checkpoint).parameters  # since Lightning 2.6
        options = {"weights_only": weights_only} if knows and weights_only is not None else {}
        trainer.strategy.load_checkpoint(path, **options)
    pl_module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)


def set_up_for_fit(trainer: L.Trainer) -> None:
    """Let the data be set up as for a training, by whoever has it."""
    source = trainer.lightning_module if trainer.datamodule is None else trainer.datamodule  # type: ignore[attr-defined]
    source.setup("fit")


@contextmanager
def validating_by(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    work: Callable[[], Any],
    callbacks_then: list[L.Callback],
    loggers: list[Any],
) -> Iterator[None]:
    """Let ``trainer.validate`` do other work than validating, and return its result.

    So starting the ranks, the devices, the precision and the data are Lightning's, and none of the user's steps and
    hooks of a validation are run, nor anything of theirs logged.

    Args:
        trainer: that validates.
        pl_module: that is to be validated, and may lack the step for it.
        work: on every rank; it must be possible to pickle it, for strategies that spawn their processes.
        callbacks_then: instead of those of the Trainer.
        loggers: likewise.
    """
    before = callbacks(trainer), trainer.loggers
    lacks_step = type(pl_module).validation_step.__module__ == f"{package_of(type(pl_module))}.core.module"
    try:
        trainer.callbacks, trainer.loggers = callbacks_then, loggers  # type: ignore[attr-defined]
        trainer.validate_loop.run = work  # type: ignore[method-assign]
        if lacks_step:  # without which Lightning refuses to begin
            pl_module.validation_step = _nothing  # type: ignore[method-assign]
        yield
    finally:
        trainer.callbacks, trainer.loggers = before  # type: ignore[attr-defined]
        del trainer.validate_loop.run
        if lacks_step:
            del pl_module.validation_step


def package_of(module: type) -> str:
    """Which of Lightning's two packages a LightningModule's class is from; it has a Trainer, loggers and a CLI.

    Raises:
        UsageError: it is from neither.
    """
    for base in module.__mro__:
        if base.__name__ == "LightningModule":
            return base.__module__.removesuffix(".core.module")
    raise UsageError(f"model= is a {module.__module__}.{module.__qualname__}: give a LightningModule.")


def monitored_within_epochs(trainer: L.Trainer) -> list[str]:
    """The metrics by which a ModelCheckpoint judges weights elsewhere than at the end of an epoch."""

    def saves_within(one: Any) -> bool:
        by_steps = (getattr(one, "_every_n_train_steps", None) or 0) > 0
        after_validation = hasattr(one, "_should_save_on_train_epoch_end") and (
            (getattr(one, "_every_n_epochs", None) or 0) > 0 and not one._should_save_on_train_epoch_end(trainer)
        )
        return by_steps or after_validation

    monitors = [(one, getattr(one, "monitor", None)) for one in callbacks(trainer) if writes_checkpoints(one)]
    return [str(monitor) for one, monitor in monitors if monitor is not None and saves_within(one)]


def writes_checkpoints(callback: L.Callback) -> bool:
    """Whether it is a ModelCheckpoint or the like, of either of Lightning's two packages."""
    return any(base.__name__ == "Checkpoint" for base in type(callback).__mro__)
