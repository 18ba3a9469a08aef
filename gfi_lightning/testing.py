"""Proof for a setup of your own that the callback does not harm it: two fits, compared bit for bit."""

import hashlib
import inspect
import os
import pickle
import random
import re
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from typing_extensions import override

from gfi_lightning.guard import preserved_rng
from gfi_lightning.training import internals
from gfi_lightning.training.added import AddedCallback
from gfi_lightning.training.callback import GFICallback

MakeTrainer = Callable[[], L.Trainer] | Callable[[list[L.Callback]], L.Trainer]
Entry = tuple[str, str]  # a kind, such as "weight", and a name

_SHOWN_PER_KIND = 3
_SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
_ESSENTIAL = {
    "weight",
    "buffer",
    "gradient",
    "optimizer",
    "learning rate",
    "random stream",
    "progress",
    "moment",
    "error",
}
_OURS = re.compile(r"GFICallback|gfi_lightning$|gfi/")  # keys of a checkpoint, of its "callbacks", and of metrics
_EXPLAINED = re.compile(r"gfi/(.+/)?preserved")  # a metric that every explanation logs
_OF_ONE_RUN = {"dirpath", "time_elapsed"}  # what a ModelCheckpoint and a Timer save differs between any two runs
# Attributes of a module that are looked at on their own, and the address that torch.compile notes down.
_NO_STATE = {"training", "_parameters", "_buffers", "_modules", "_torchdynamo_wrapper_id"}


def aggressive_callbacks() -> list[L.Callback]:
    """The callbacks that :func:`assert_harmless` adds by default: they explain as often as possible."""
    every_epoch = GFICallback(num_samples=2, on_error="raise")
    every_step = GFICallback(every_n_steps=1, num_samples=2, on_error="raise")
    return [every_step, every_epoch]


def assert_harmless(
    make_trainer: MakeTrainer,
    make_module: Callable[[], L.LightningModule],
    make_datamodule: Callable[[], L.LightningDataModule] | None = None,
    *,
    make_callbacks: Callable[[], list[L.Callback]] = aggressive_callbacks,
    seed: int = 0,
) -> None:
    """Assert that your training is bit for bit the same with the callback as without.

    Runs two whole fits, so give a Trainer with a few batches: ``limit_train_batches=4``, ``max_epochs=2``. They are
    compared after every batch, in every checkpoint and at the end: weights, buffers, gradients, optimisers,
    learning rates, logged metrics, random streams, modes, flags, hooks and the attributes of the modules. Under DDP
    each rank compares its own; strategies that spawn processes keep what they see to themselves and are not for this.

    Args:
        make_trainer: gives a new Trainer each time; of no arguments, or of the list of callbacks to add (as its first
            argument, or as ``callbacks``).
        make_module: gives a new module each time; everything is seeded before.
        make_datamodule: gives a new data module each time; None: the module has its own loaders.
        make_callbacks: the callbacks to judge; by default one :class:`~gfi_lightning.GFICallback` that explains after
            every step and one that does so after every epoch. Give your own for arguments such as ``forward=``.
        seed: of all fits. The process's own random states are put back afterwards.

    Raises:
        AssertionError: the runs differ; the message lists where, and after which batch first. Or nothing was
            explained, so that the comparison proves nothing. Or two runs without the callback differ already.
        Exception: what the fit without the callback raised.

    Example::

        def test_explaining_does_not_harm_our_training():
            assert_harmless(lambda: L.Trainer(max_epochs=2, limit_train_batches=4), OurModule, OurData)
    """

    def fit(callbacks: Callable[[], list[L.Callback]]) -> FitRecord:
        with _seeded(seed):
            trainer = _trainer_with(callbacks(), make_trainer)
            for added in [one for one in internals.callbacks(trainer) if isinstance(one, AddedCallback)]:
                internals.remove_callback(trainer, added)  # else one fit would be without a callback in name only
            record = record_fit(trainer, make_module(), make_datamodule() if make_datamodule else None)
        if record.error is not None and not isinstance(record.error, Exception):
            raise record.error  # somebody wants to stop
        return record

    without = fit(list)
    if without.error is not None:
        raise without.error
    watched = fit(make_callbacks)
    found = _compare(without, watched, "without the callback", "with it")
    if _on_any_rank(bool(found)):
        own = _compare(without, fit(list), "in one run", "in another")
        _judge(found, own, watched.error)
    if watched.speaks and not watched.explained:
        raise AssertionError("Nothing was explained in the fit with the callback: the comparison proves nothing.")


@dataclass
class FitRecord:
    """What a fit did, to be compared with another.

    Attributes:
        moments: by the name of a moment (a batch, the end of an epoch, a checkpoint) digests of all that was there.
        end: copies of all that was there at the end, and every logged metric.
        explained: how many explanations were logged; 1 at most where there is no logger.
        speaks: whether this rank is the one that logs.
        error: what ended the fit, if it did not end by itself.
    """

    moments: dict[str, dict[Entry, str]] = field(default_factory=dict)
    end: dict[Entry, Any] = field(default_factory=dict)
    explained: int = 0
    speaks: bool = True
    error: BaseException | None = None


def record_fit(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None = None, **options: Any
) -> FitRecord:
    """Fit, and record what happens; also of a fit that is interrupted or fails.

    Args:
        trainer: a new Trainer; it gets one more callback.
        module: as for ``trainer.fit``.
        datamodule: likewise.
        options: more arguments of ``trainer.fit``, such as ``ckpt_path``.

    Returns:
        The record, with the error that ended the fit, if one did.
    """
    record = FitRecord()
    _add_callbacks(trainer, [_Watcher(record)])
    with _metrics_recorded(trainer, record):
        try:
            trainer.fit(module, datamodule=datamodule, **options)
        except BaseException as error:
            record.error = error
    record.speaks = trainer.is_global_zero
    if trainer.lightning_module is not None:
        entries = [*_state(trainer, trainer.lightning_module), *_state_at_the_end(trainer, trainer.lightning_module)]
        record.end = {(kind, name): _copied(leaf) for kind, name, leaf in entries} | record.end
    return record


def differences(record: FitRecord, other: FitRecord) -> list[str]:
    """All differences between two fits, one per line, in the order in which they came about.

    Args:
        record: of the first fit.
        other: of the second.
    """
    return list(_compare(record, other, "in the first", "in the second").values())


@contextmanager
def _metrics_recorded(trainer: L.Trainer, record: FitRecord) -> Iterator[None]:
    """Listen to the loggers, to which Lightning and modules tell metrics, and count our own metrics instead."""

    def listen(
        number: int, log_metrics: Callable[..., None], metrics: Mapping[str, Any], step: int | None = None
    ) -> None:
        record.explained += number == 0 and any(_EXPLAINED.fullmatch(name) for name in metrics)
        for name, value in metrics.items():
            if not _OURS.match(name):
                entry = "logged metric", f"{name} at step {step}" + (f", logger {number}" if number else "")
                record.end.setdefault(entry, []).append(_leaf(value.tolist() if isinstance(value, Tensor) else value))
        log_metrics(metrics, step)

    loggers = list(trainer.loggers)
    for number, logger in enumerate(loggers):
        vars(logger)["log_metrics"] = partial(listen, number, logger.log_metrics)
    try:
        yield
        if not loggers:  # other callbacks are told them all the same
            record.explained += any(_EXPLAINED.fullmatch(name) for name in trainer.callback_metrics)
    finally:
        for logger in loggers:
            vars(logger).pop("log_metrics", None)


class _Watcher(L.Callback):
    """Takes digests of everything whenever something may have changed it."""

    def __init__(self, record: FitRecord) -> None:
        self._record = record
        self._batches = self._checkpoints = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("the start", _state(trainer, pl_module))

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._note(f"batch {self._batches}", _state(trainer, pl_module))
        self._batches += 1

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(f"the end of epoch {trainer.current_epoch}", _state(trainer, pl_module))

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._note(f"checkpoint {self._checkpoints}", _nested("checkpoint entry", checkpoint))
        self._checkpoints += 1

    def _note(self, moment: str, entries: Iterable[tuple[str, str, Any]]) -> None:
        self._record.moments[moment] = {(kind, name): _digest(leaf) for kind, name, leaf in entries}


def _state(trainer: L.Trainer, module: L.LightningModule) -> Iterator[tuple[str, str, Any]]:
    """What a callback could harm and a training depends on: kind, name and value. Nothing is computed here."""
    yield "random stream", "torch", torch.get_rng_state().numpy().tobytes()
    yield "random stream", "numpy", pickle.dumps(np.random.get_state())
    yield "random stream", "python", pickle.dumps(random.getstate())
    for device, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []):
        yield "random stream", f"torch, cuda:{device}", state.numpy().tobytes()
    yield "progress", "global_step", trainer.global_step
    yield "progress", "current_epoch", trainer.current_epoch
    for name, part in module.named_modules():
        yield "training mode", name, part.training
        yield "hooks", name, sum(len(hooks) for key, hooks in vars(part).items() if _holds_hooks(key, hooks))
    for name, parameter in module.named_parameters():
        yield "requires_grad", name, parameter.requires_grad
        yield "hooks", name, sum(map(len, (parameter._backward_hooks or (), _accumulation_hooks(parameter))))
        yield "gradient", name, _leaf(parameter.grad)
        yield "weight", name, _leaf(parameter)
    for name, buffer in module.named_buffers():
        yield "buffer", name, _leaf(buffer)
        yield "requires_grad", name, buffer.requires_grad
    for number, optimizer in enumerate(trainer.optimizers):
        for group, options in enumerate(optimizer.param_groups):
            yield "learning rate", f"of optimizer {number}, group {group}", _leaf(options["lr"])
        yield from _nested("optimizer", optimizer.state_dict(), str(number))
    for number, config in enumerate(trainer.lr_scheduler_configs):
        yield from _nested("scheduler", config.scheduler.state_dict(), str(number))


def _state_at_the_end(trainer: L.Trainer, module: L.LightningModule) -> Iterator[tuple[str, str, Any]]:
    """What costs more, or would compute something in mid-training."""
    yield from _nested("metric", trainer.logged_metrics, "logged_metrics")
    yield from _nested("metric", trainer.callback_metrics, "callback_metrics")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not _OURS.match(callback.state_key):
            yield from _nested("callback", callback.state_dict(), callback.state_key)
    for name, part in module.named_modules():
        own = {key: value for key, value in vars(part).items() if key not in _NO_STATE}
        yield from _nested(
            "attribute", {key: value for key, value in own.items() if not _holds_hooks(key, value)}, name
        )


def _holds_hooks(key: str, value: Any) -> bool:
    return "_hooks" in key and isinstance(value, dict)


def _accumulation_hooks(parameter: nn.Parameter) -> Any:
    return getattr(parameter, "_post_accumulate_grad_hooks", None) or ()


def _nested(kind: str, value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """The parts of a nested value, by their paths, without ours and without what differs between any two runs."""
    if isinstance(value, nn.Module):  # hidden in a list, say
        value = value.state_dict()
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _OF_ONE_RUN and not (isinstance(key, str) and _OURS.match(key)):
                yield from _nested(kind, inner, f"{path}.{_portable(str(key))}".lstrip("."))
    elif isinstance(value, (list, tuple, deque)):
        for number, inner in enumerate(value):
            yield from _nested(kind, inner, f"{path}.{number}")
    else:
        yield kind, path, _leaf(value)


def _leaf(value: Any) -> Any:
    """A value that can be compared between runs; of an unknown object only its type can."""
    if isinstance(value, Tensor):
        return _local(value)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, (np.ndarray, np.generic, np.random.Generator, np.random.RandomState, random.Random)):
        return pickle.dumps(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (str, os.PathLike)):
        return _portable(os.fspath(value))
    if value is None or isinstance(value, (bool, int, float, complex, bytes, torch.dtype, torch.device)):
        return value
    return type(value).__qualname__


def _local(tensor: Tensor) -> Any:
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return f"a tensor without values, {tensor.dtype}"
    shard = getattr(tensor, "to_local", None)  # a DTensor: each rank compares its own part
    tensor = tensor.detach() if shard is None else shard().detach()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _portable(text: str) -> str:
    """Paths by their last part, and a ModelCheckpoint's without the version that a second run in a folder gets."""
    return re.sub(r"-v\d+(?=\.ckpt$)", "", os.path.basename(text)) if os.sep in text else text


def _copied(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf


def _digest(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return hashlib.blake2b(repr(leaf).encode(), digest_size=16).hexdigest()
    digest = hashlib.blake2b(f"{leaf.dtype}{tuple(leaf.shape)}".encode(), digest_size=16)
    # As bytes: not every type of torch is one of numpy, NaN equals NaN, and -0.0 is not 0.0. And a copy: numpy()
    # takes from a tensor the right to be resized.
    flat = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).clone().numpy().data)
    return digest.hexdigest()


def _compare(first: FitRecord, second: FitRecord, in_first: str, in_second: str) -> dict[Entry, str]:
    """What differs, in words, in the order in which it came about."""
    if type(first.error) is not type(second.error):  # all else follows from it
        return {("error", ""): f"error: {first.error!r} {in_first}, {second.error!r} {in_second}"}
    found = {}
    for moment in first.moments | second.moments:
        if moment not in first.moments or moment not in second.moments:
            found["moment", moment] = f"{moment}: only {in_first if moment in first.moments else in_second}"
    since = _first_moments(first, second)
    for entry in dict.fromkeys([*since, *first.end, *second.end]):
        what = _difference_at_the_end(first.end, second.end, entry, in_first, in_second)
        if entry in since or what is not None:
            text = f"{entry[0]} {entry[1] or 'of the module itself'}: {what or 'differs'}"
            found[entry] = f"{text}, first at {since[entry]}" if entry in since else text
    return found


def _first_moments(first: FitRecord, second: FitRecord) -> dict[Entry, str]:
    since: dict[Entry, str] = {}
    for moment in (one for one in first.moments if one in second.moments):
        digests, others = first.moments[moment], second.moments[moment]
        for entry in digests | others:
            if digests.get(entry) != others.get(entry):
                since.setdefault(entry, moment)
    return since


def _difference_at_the_end(
    first: Mapping[Entry, Any], second: Mapping[Entry, Any], entry: Entry, in_first: str, in_second: str
) -> str | None:
    if entry not in first and entry not in second:
        return None
    if entry not in first or entry not in second:
        return f"only {in_first if entry in first else in_second}"
    one, other = first[entry], second[entry]
    if _digest(one) == _digest(other):
        return None
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{tuple(one.shape)} {one.dtype} {in_first}, {tuple(other.shape)} {other.dtype} {in_second}"
        return f"max abs difference {float((one.double() - other.double()).abs().max()):.3g}"
    if isinstance(one, bytes) and isinstance(other, bytes):
        return "differs"
    return f"{reprlib.repr(one)} {in_first}, {reprlib.repr(other)} {in_second}"


def _judge(found: dict[Entry, str], own: dict[Entry, str], error: BaseException | None) -> None:
    """Tell what the callback did, unless the training differs from itself."""
    clocks = {entry for entry in own if entry[0] not in _ESSENTIAL}  # that hold the time, say
    found, own = ({entry: many[entry] for entry in many if entry not in clocks} for many in (found, own))
    if own:
        raise AssertionError(
            "This training is not reproducible by itself: two runs without the callback, from the same seed, differ. "
            f"Nothing can be said about the callback.\n{_readable(own)}"
        )
    if found:
        raise AssertionError(f"The training is not the same with the callback.\n{_readable(found)}") from error


def _readable(found: dict[Entry, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for (kind, _), text in found.items():
        kinds.setdefault(kind, []).append(text)
    lines = []
    for kind, texts in kinds.items():
        lines += texts[:_SHOWN_PER_KIND]
        if len(texts) > _SHOWN_PER_KIND:
            lines.append(f"and {len(texts) - _SHOWN_PER_KIND} more of {kind!r}")
    return "\n".join(f"  - {line}" for line in lines)


def _on_any_rank(decision: bool) -> bool:
    """The third fit is for all ranks or none: one alone would wait for the others for ever."""
    if not (dist.is_available() and dist.is_initialized()):
        return decision
    decisions = [False] * dist.get_world_size()
    dist.all_gather_object(decisions, decision)
    return any(decisions)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed everything, and leave the process's random states and environment as they were."""
    before = {name: os.environ.get(name) for name in _SEED_VARIABLES}
    with preserved_rng():
        try:
            L.seed_everything(seed, workers=True, verbose=False)
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _trainer_with(callbacks: list[L.Callback], make_trainer: Callable[..., L.Trainer]) -> L.Trainer:
    parameters = inspect.signature(make_trainer).parameters
    if "callbacks" in parameters:
        return make_trainer(callbacks=callbacks)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(one.default is one.empty and one.kind in kinds for one in parameters.values()):
        return make_trainer(callbacks)
    trainer = make_trainer()
    _add_callbacks(trainer, callbacks)
    return trainer


def _add_callbacks(trainer: L.Trainer, callbacks: list[L.Callback]) -> None:
    """At the end, but before those that write checkpoints, which Lightning keeps last."""
    present: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    last = [one for one in present if isinstance(one, Checkpoint)]
    first = [one for one in present if not isinstance(one, Checkpoint)]
    trainer.callbacks = [*first, *callbacks, *last]  # type: ignore[attr-defined]
