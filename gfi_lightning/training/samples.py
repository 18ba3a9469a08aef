"""The fixed samples: which ones, how to read them, and what is in a batch."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from numbers import Integral
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from gfi_lightning.errors import UsageError, attempt
from gfi_lightning.inversion.scores import describe
from gfi_lightning.training.regions import Parts, Regions, parts_of_items, parts_of_samples

SplitBatch = Callable[[Any], tuple[Tensor, Tensor | None]]

_IMAGE_NAMES = ("image", "images", "pixel_values", "x")
_LABEL_NAMES = ("label", "labels", "target", "y")


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


def choose_indices(dataset: Any, count: int) -> list[int]:
    """Indices of at most ``count`` items, spread evenly over the classes if labels can be had without reading.

    Labels are looked for in the attributes ``targets``, ``labels`` and ``tensors``, also behind
    ``Subset`` and ``ConcatDataset``. Without them the first items are taken.
    """
    size = len(dataset)
    labels = cheap_labels(dataset)
    if labels is None:
        return list(range(min(count, size)))
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    queues = [by_class[label] for label in sorted(by_class)]
    chosen: list[int] = []
    for turn in range(max(map(len, queues), default=0)):
        candidates = [queue[turn] for queue in queues if len(queue) > turn]
        chosen += _evenly(candidates, count - len(chosen))
        if len(chosen) >= min(count, size):
            break
    return chosen


def _evenly(items: list[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[position * len(items) // count] for position in range(count)]


def cheap_labels(dataset: Any) -> list[int] | None:
    """The class of every item, from the data set's attributes alone; None where they do not tell."""
    inner = getattr(dataset, "dataset", None)
    if inner is not None and hasattr(dataset, "indices"):  # Subset
        labels = cheap_labels(inner)
        return None if labels is None else [labels[index] for index in dataset.indices]
    if isinstance(parts := getattr(dataset, "datasets", None), (list, tuple)):  # ConcatDataset
        all_labels = [cheap_labels(part) for part in parts]
        return None if None in all_labels else [label for labels in all_labels for label in labels or ()]
    tensors = getattr(dataset, "tensors", None)
    candidates = [getattr(dataset, "targets", None), getattr(dataset, "labels", None)]
    candidates += list(tensors[1:]) if isinstance(tensors, (tuple, list)) else []
    return next((found for labels in candidates if (found := _as_classes(labels, len(dataset))) is not None), None)


def _as_classes(labels: Any, size: int) -> list[int] | None:
    if not isinstance(labels, (Tensor, Sequence)) and not hasattr(labels, "__array__"):
        return None
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # strings, ragged lists
        return None
    classes = class_indices(tensor, size)
    return None if classes is None else classes.tolist()


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
    # What iterates itself, or holds what does, would hand out to us what the run would see next.
    holds_position = any(isinstance(part, Iterator) for part in (iterable, *getattr(iterable, "__dict__", {}).values()))
    if not holds_position:
        return iter(iterable)
    try:
        return iter(copy.deepcopy(iterable))
    except TypeError as error:
        raise UsageError(
            f"The validation data is a {type(iterable).__name__} that can be read only once ({error}), and the run "
            "would miss what GFICallback reads: give samples=(images, labels)."
        ) from error


def _select_rows(batch: Any, rows: Tensor, count: int) -> Any:
    """Some rows of every tensor in a tensor, a tuple, a list or a mapping that has one row per image.

    Args:
        batch: whatever holds the tensors; what else is in there is kept as it is.
        rows: indices.
        count: the number of images: tensors of another length are kept as they are.
    """
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_select_rows(part, rows, count) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_select_rows(part, rows, count) for part in batch)
    if isinstance(batch, Mapping):
        return {key: _select_rows(part, rows, count) for key, part in batch.items()}
    return batch


def _length(batch: Any) -> int:
    parts = batch.values() if isinstance(batch, Mapping) else [batch] if isinstance(batch, Tensor) else batch
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), 0)


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


def split_batch(batch: Any, split: SplitBatch | None) -> tuple[Tensor, Any]:
    """Images (N, C, H, W) and whatever stands for their labels, by the user's callable or by the usual forms.

    Raises:
        UsageError: no images were found.
    """
    if split is None:
        return images_and_labels(batch)
    found = split(batch)
    if not isinstance(found, (tuple, list)) or len(found) != 2 or not _are_images(found[0]):
        raise UsageError(
            f"batch= returned {describe(found)}; expected are images, floating point of shape (N, C, H, W), "
            "and labels (N,) or None."
        )
    return found[0], found[1]


def _are_images(images: Any) -> TypeGuard[Tensor]:
    return isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()


def images_and_labels(batch: Any) -> tuple[Tensor, Any]:
    """The images and labels of a batch in one of the usual forms.

    Args:
        batch: (images, labels, ...); a mapping with image, images, pixel_values or x, and label, labels,
            target or y; or images alone.

    Returns:
        Images (N, C, H, W), floating point, and what stands for their labels, or None; see
        :func:`class_indices`.

    Raises:
        UsageError: no images were found, or not in that form.
    """
    if isinstance(batch, Mapping):
        images, labels = _by_name(batch, _IMAGE_NAMES), _by_name(batch, _LABEL_NAMES)
    elif isinstance(batch, (tuple, list)) and batch:
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        images, labels = batch, None
    if not _are_images(images):
        raise UsageError(
            f"A validation batch is {describe(batch)}. Expected is (images, labels) or a mapping with "
            f"{'/'.join(_IMAGE_NAMES)} and {'/'.join(_LABEL_NAMES)}, images being floating point of shape "
            "(N, C, H, W), no videos or volumes, no bytes (v2.ToDtype(torch.float32, scale=True) converts them). "
            "Give batch= (batch → images, labels) for anything else."
        )
    return images, labels


def _by_name(batch: Mapping[Any, Any], names: Sequence[str]) -> Any:
    return next((batch[name] for name in names if name in batch), None)


def class_indices(labels: Any, count: int) -> Tensor | None:
    """Labels as class indices (N,), int64; None where they are something else (multi-hot, masks, text).

    Floating point labels of whole numbers, which binary losses ask for, count as class indices.
    """
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    if tensor.shape == (count, 1):
        tensor = tensor.squeeze(1)
    if tensor.shape != (count,) or (tensor.is_floating_point() and not torch.equal(tensor, tensor.round())):
        return None
    return tensor.long()


def multi_hot(labels: Any, count: int) -> Tensor | None:
    """Labels as which classes are present, (N, classes), bool; None where they are not 0 or 1 for each class."""
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    if tensor.ndim != 2 or len(tensor) != count or tensor.shape[1] < 2 or not ((tensor == 0) | (tensor == 1)).all():
        return None
    return tensor.bool()


def attribute_of_dataset(dataset: Any, name: str) -> Any:
    """An attribute of a data set, or of the one that it wraps (Subset, ConcatDataset); None where missing."""
    for _ in range(8):  # wrappers may be nested, but not for ever
        if getattr(dataset, name, None) is not None:
            return getattr(dataset, name)
        parts = getattr(dataset, "datasets", None)
        dataset = parts[0] if isinstance(parts, (list, tuple)) and parts else getattr(dataset, "dataset", None)
    return None


def find_normalization(dataset: Any) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the Normalize step in a data set's transforms; None where there is none."""
    for name in ("transform", "transforms"):
        found = _normalization_in(attribute_of_dataset(dataset, name), depth=8)
        if found is not None:
            return found
    return None


def _normalization_in(transform: Any, depth: int) -> tuple[list[float], list[float]] | None:
    if transform is None or depth == 0:
        return None
    if type(transform).__name__ == "Normalize" and hasattr(transform, "mean") and hasattr(transform, "std"):
        return _floats(transform.mean), _floats(transform.std)
    if isinstance(transform, (list, tuple)):
        inner = list(transform)
    else:  # Compose holds .transforms; torchvision's data sets wrap theirs in a StandardTransform with .transform
        inner = [getattr(transform, name, None) for name in ("transforms", "transform")]
    results = (_normalization_in(part, depth - 1) for part in inner)
    return next((found for found in results if found is not None), None)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in torch.as_tensor(values).flatten()]
