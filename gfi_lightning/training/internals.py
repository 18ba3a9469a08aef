"""What we need of Lightning beyond its public interface, in one place. Checked with 2.4 to 2.6."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader, rank_zero_only
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import distributed
from torch.nn.parameter import is_lazy

from gfi_lightning.guard import preserved_state
from gfi_lightning.logs import logger
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


def _strategy_is(trainer: L.Trainer, names: set[str]) -> bool:
    return any(base.__name__ in names for base in type(trainer.strategy).__mro__)


def evaluation_loader(trainer: L.Trainer) -> Any:
    """The first validation loader, or under ``trainer.test`` the first test loader; None if there is none.

    In a fit where validation is switched off, or comes only epochs later, the loader is requested here and
    not kept, so that Lightning will request its own when it would have done so anyway.
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
    return flattened[0] if flattened else None


def _is_combined(loaders: Any) -> bool:
    return any(base.__name__ == "CombinedLoader" for base in type(loaders).__mro__)


def to_device(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> Any:
    """A collated batch as a validation step would get it: converted, and through the module's transfer hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


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
