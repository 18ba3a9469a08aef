"""What a data set tells of its items without reading them: classes, their names, and how it makes them."""

import sys
from collections.abc import Iterator, Mapping, Sequence, Sized
from inspect import getattr_static
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.training.batches import LABEL_NAMES, label_name, one_class_each

_DEEPEST = 8  # wrappers may be nested, but not for ever
_HOLD_LABELS = ("targets", "labels", "y", "_labels")  # attributes of many people's data sets, and of torchvision's


def attribute(thing: Any, name: str) -> Any:
    """An attribute; None where it is missing or cannot be had.

    Properties of the user's own classes are not asked: they may read every item.
    """
    computed = getattr_static(type(thing), name, None)
    function = getattr(computed, "fget", None) or getattr(computed, "func", None)
    if isinstance(function, FunctionType) and is_users(function):
        return getattr(thing, "__dict__", {}).get(name)  # once a cached property was asked by others
    try:
        return getattr(thing, name, None)
    except Exception:  # whatever a library does where nothing is loaded yet
        return None


def with_wrapped(dataset: Any) -> Iterator[Any]:
    """A data set, and those that it wraps: in a Subset, a ConcatDataset (of which the first) or one of the user's."""
    for _ in range(_DEEPEST):
        if dataset is None:
            return
        yield dataset
        parts = attribute(dataset, "datasets")
        dataset = parts[0] if isinstance(parts, (list, tuple)) and parts else attribute(dataset, "dataset")


def attribute_of_dataset(dataset: Any, name: str) -> Any:
    """An attribute of a data set, or of the one that it wraps; None where missing."""
    found = (attribute(one, name) for one in with_wrapped(dataset))
    return next((value for value in found if value is not None), None)


def choose_indices(dataset: Any, count: int) -> list[int]:
    """Indices of at most ``count`` items, spread evenly over the classes if labels can be had without reading.

    See :func:`cheap_labels`. Without them the first items are taken.
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
    """The class of every item, without reading one; None where that cannot be told.

    From the attributes ``targets``, ``labels``, ``y`` or ``tensors``, or the label's column of a data set of Hugging
    Face; also behind ``Subset``, ``ConcatDataset`` and the like.
    """
    inner = attribute(dataset, "dataset")
    if inner is not None and attribute(dataset, "indices") is not None:  # Subset
        labels = cheap_labels(inner)
        return None if labels is None else [labels[index] for index in dataset.indices]
    if isinstance(parts := attribute(dataset, "datasets"), (list, tuple)):  # ConcatDataset
        all_labels = [cheap_labels(part) for part in parts]
        return None if None in all_labels else [label for labels in all_labels for label in labels or ()]
    size = len(dataset)
    tensors = attribute(dataset, "tensors")
    candidates = [attribute(dataset, name) for name in _HOLD_LABELS]
    candidates += list(tensors[1:]) if isinstance(tensors, (tuple, list)) else []
    candidates += [_label_column(dataset)]
    found = next((found for labels in candidates if (found := _as_classes(labels, size)) is not None), None)
    if found is None and isinstance(inner, Sized) and len(inner) == size:  # which reads each item from that one
        return cheap_labels(inner)
    return found


def _as_classes(labels: Any, size: int) -> list[int] | None:
    if not isinstance(labels, (Tensor, Sequence)) and not hasattr(labels, "__array__"):
        return None
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # strings, ragged lists
        return None
    classes = one_class_each(tensor, size)
    return None if classes is None else classes.tolist()


def _label_column(dataset: Any) -> Any:
    """The labels in a data set of Hugging Face: the column as it is stored, past the user's transform."""
    name = label_column(dataset)
    if name is None or not hasattr(dataset, "with_format"):
        return None
    return list(dataset.with_format(None)[name])


def _features(dataset: Any) -> Mapping[str, Any]:
    """The columns of a data set of Hugging Face and what is in them; empty for any other."""
    features = attribute(dataset, "features")
    return features if isinstance(features, Mapping) and hasattr(dataset, "column_names") else {}


def label_column(dataset: Any, in_batch: str | None = None) -> str | None:
    """The name of the label's column in a data set of Hugging Face, or in one that it is wrapped in; None for none.

    Args:
        dataset: or one that wraps it.
        in_batch: the name of the labels in a batch: a column that is called so is it. Otherwise it is one of a usual
            name that holds no text, or the only one of classes.
    """
    features = next((found for one in with_wrapped(dataset) if (found := _features(one))), {})
    usual = [
        name for name in LABEL_NAMES if name in features and "string" not in str(getattr(features[name], "dtype", ""))
    ]
    of_classes = [name for name, feature in features.items() if _names_of(feature)]
    candidates = [in_batch] if in_batch in features else usual or (of_classes if len(of_classes) == 1 else [])
    return next(iter(candidates), None)


def _names_of(feature: Any) -> Any:
    """The names of a ClassLabel, alone or in a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def names_of_classes(dataset: Any, batch: Any) -> Any:
    """What a data set says of its classes' names: in ``classes``, or by the feature of its label; None for nothing.

    Args:
        dataset: or one that wraps it.
        batch: of its items, whose label tells which of several features counts.
    """
    found = attribute_of_dataset(dataset, "classes")
    name = label_column(dataset, label_name(batch, label_column(dataset)) if isinstance(batch, Mapping) else None)
    if found is not None or name is None:
        return found
    return next(_names_of(features[name]) for one in with_wrapped(dataset) if (features := _features(one)))


def makers_of_items(loader: Any) -> list[Any]:
    """What takes part in reading from a loader: its data set, its collate function, and the functions of both."""
    makers = [attribute(loader, name) for name in ("dataset", "collate_fn")]
    for dataset in with_wrapped(getattr(loader, "dataset", None)):
        makers += [getattr(type(dataset), "__getitem__", None), format_transform(dataset)]
    return [maker for maker in makers if not isinstance(maker, FunctionType) or is_users(maker)]


def is_users(function: FunctionType) -> bool:
    """Whether a function is the user's, and of no library."""
    installed = any(part in function.__code__.co_filename for part in ("site-packages", "dist-packages"))
    return not installed and (function.__module__ or "").partition(".")[0] not in sys.stdlib_module_names


def format_transform(dataset: Any) -> Any:
    """What the user gave to ``set_transform`` or ``with_transform`` of a data set of Hugging Face; None for another."""
    options = attribute(dataset, "format") if _features(dataset) else None
    return (options.get("format_kwargs") or {}).get("transform") if isinstance(options, Mapping) else None
