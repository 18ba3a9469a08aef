"""The fixed samples: which ones, and how to read them."""

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from io import IOBase
from itertools import islice
from numbers import Integral
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from gfi_lightning.errors import UsageError, attempt
from gfi_lightning.guard import reachable
from gfi_lightning.training.batches import by_name
from gfi_lightning.training.dataset_info import choose_indices, is_users
from gfi_lightning.training.regions import Parts, Regions, parts_of_items, parts_of_samples


@dataclass(frozen=True)
class Samples:
    """The samples of a run, as the data loader's collate function returned them, and where they come from.

    Attributes:
        batch: the collated batch, on the CPU.
        indices: their places in the data set; None where it has none (iterable, or a batch was given).
        dataset_size: items in the data set; None where it has no length.
        parts: what is known to lie where, of each sample.
    """

    batch: Any
    indices: list[int] | None = None
    dataset_size: int | None = None
    parts: Parts = field(default_factory=dict)


def read_samples(
    loader: Any, count: int, indices: Sequence[int] | None = None, regions: Regions | None = None
) -> Samples:
    """Read the samples from a loader's data set, past its sampler, shuffling and sharding.

    Args:
        loader: a DataLoader, or any iterable of batches.
        count: how many, where indices are not given.
        indices: of the items; None: :func:`choose_indices`.
        regions: what is known to lie where, by name, or a function from an item to that.

    Raises:
        UsageError: the indices do not exist, or there is nothing to read.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is None or getattr(loader, "batch_sampler", None) is None:
        if callable(regions):
            raise UsageError(
                "regions= as a function takes an item of the validation set, and this one has only ready batches: give "
                "a mapping from names to the boxes or masks of its first images."
            )
        return Samples(_first_rows(loader, count), parts=dict(regions or {}))
    if isinstance(dataset, IterableDataset):
        return _collated(loader, list(islice(_independent_iterator(dataset), count)), None, None, regions)
    chosen = choose_indices(dataset, count) if indices is None else [int(index) for index in indices]
    if len(dataset) == 0:
        raise UsageError("The validation set is empty: nothing to explain. Give samples=(images, labels).")
    if not chosen or min(chosen) < 0 or max(chosen) >= len(dataset):
        raise UsageError(
            f"samples={chosen} cannot be read from a data set of {len(dataset)} items: "
            f"give indices from 0 to {len(dataset) - 1}."
        )
    return _collated(loader, [dataset[index] for index in chosen], chosen, len(dataset), regions)


def _collated(
    loader: Any, items: list[Any], indices: list[int] | None, size: int | None, regions: Regions | None
) -> Samples:
    # Before the items are collated, which may take them apart.
    if callable(regions):
        with attempt("ask regions= about its samples", "It is given an item of the validation set, as the loader is."):
            parts = parts_of_items(regions, items)
    else:
        parts = parts_of_samples(regions or {}, indices, size)
    return Samples(loader.collate_fn(items), indices, size, parts)


def _first_rows(loader: Iterable[Any], count: int) -> Any:
    batch = next(_independent_iterator(loader), None)
    if batch is None:
        raise UsageError("The data loader is empty: nothing to explain. Give samples=(images, labels).")
    length = _length(batch)
    return _select_rows(batch, torch.arange(min(count, length)), length)


def _independent_iterator(iterable: Iterable[Any]) -> Iterator[Any]:
    """An iterator that takes nothing from the run."""
    positions = _positions(iterable)
    if not positions:
        return iter(iterable)
    try:
        copied = copy.deepcopy(iterable)
    except Exception as error:  # of whatever refuses to be copied
        raise _readable_once(iterable, str(error)) from error
    # What a function's variables hold is not copied with it.
    shared = {id(one) for one in positions} & {id(one) for one in _positions(copied)}
    if shared:
        kinds = sorted({type(one).__name__ for one in positions if id(one) in shared})
        raise _readable_once(iterable, f"its {', '.join(kinds)} cannot be copied")
    return iter(copied)


def _positions(iterable: Iterable[Any]) -> list[Any]:
    """What would hand out to us what the run would see next, wherever an iterable keeps it."""
    made_by = getattr(type(iterable), "__iter__", None)
    roots = [iterable, made_by] if isinstance(made_by, FunctionType) and is_users(made_by) else [iterable]
    return [thing for thing in reachable(roots, others=True, variables=True) if _is_position(thing)]


def _is_position(thing: Any) -> bool:
    if isinstance(thing, IOBase):
        return not thing.closed and thing.readable()  # and no log that is written
    return isinstance(thing, Iterator)


def _readable_once(iterable: Iterable[Any], reason: str) -> UsageError:
    return UsageError(
        f"The validation data is a {type(iterable).__name__} that can be read only once ({reason}), and the run "
        "would miss what GFICallback reads: give samples=(images, labels)."
    )


def _select_rows(batch: Any, rows: Tensor, count: int) -> Any:
    """Some rows of every tensor or array in a tuple, a list, a mapping or a dataclass that has one row per image.

    Args:
        batch: whatever holds the tensors; what else is in there is kept as it is.
        rows: indices.
        count: the number of images: tensors of another length are kept as they are.
    """
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch[rows.tolist()] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_select_rows(part, rows, count) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_select_rows(part, rows, count) for part in batch)
    if isinstance(batch, Mapping):
        parts = {key: _select_rows(part, rows, count) for key, part in batch.items()}
        if not isinstance(batch, MutableMapping):
            return parts
        selected = copy.copy(batch)  # of the same class, such as BatchFeature
        selected.update(parts)
        return selected
    if (names := by_name(batch)) is not None:
        return replace(batch, **{name: _select_rows(part, rows, count) for name, part in names.items()})
    return batch


def _length(batch: Any) -> int:
    names = by_name(batch)
    parts = names.values() if names is not None else batch if isinstance(batch, (tuple, list)) else [batch]
    return next((len(part) for part in parts if isinstance(part, (Tensor, np.ndarray)) and part.ndim), 0)


def as_indices(samples: Any) -> list[int] | None:
    """Samples that were given as indices, in a sequence, an array or a tensor; None where they are no such."""
    if samples is None:
        return None
    if isinstance(samples, Sequence) and not isinstance(samples, str):
        integers = bool(samples) and all(isinstance(index, Integral) for index in samples)
    else:
        integers = getattr(samples, "ndim", 0) == 1 and not torch.as_tensor(samples).is_floating_point()
    return [int(index) for index in samples] if integers else None


def is_batch(samples: Any) -> bool:
    """Whether what was given as samples is a ready batch, and not None or indices."""
    return samples is not None and as_indices(samples) is None


def as_names(names: Any) -> list[str] | None:
    """Class names as a list, each on one line; None where they are no sequence of names."""
    if isinstance(names, str) or not hasattr(names, "__len__") or not hasattr(names, "__iter__"):
        return None
    return [" ".join(str(name).split()) for name in names]  # such as lines that were read from a file
