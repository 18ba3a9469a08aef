"""What is in a batch: images, and what stands for their labels."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.scores import describe

SplitBatch = Callable[[Any], tuple[Tensor, Tensor | None]]

IMAGE_NAMES = ("image", "images", "pixel_values", "img", "imgs", "input", "inputs", "x")
_USUAL_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "y")
_IDS = ("label_id", "label_ids", "label_idx", "class_id", "class_ids", "class_idx")
LABEL_NAMES = (*_USUAL_LABEL_NAMES, *_IDS, "class_label", "category", "category_id", "cls")
_CHANNELS = (1, 3, 4)


def split_batch(batch: Any, split: SplitBatch | None, label: Any = None) -> tuple[Tensor, Any]:
    """Images and whatever stands for their labels, by the user's callable or by the usual forms.

    Args:
        batch: of images.
        split: the user's.
        label: the name of the labels, where it is none of the usual ones.

    Returns:
        Images (N, C, H, W) or, where the batch has them so, (N, H, W, C), floating point; and what stands for their
        labels, or None.

    Raises:
        UsageError: no images were found.
    """
    if split is None:
        return images_and_labels(batch, label)
    found = split(batch)
    images = _as_tensor(found[0]) if isinstance(found, (tuple, list)) and len(found) == 2 else None
    if not _are_images(images):
        raise UsageError(
            f"batch= returned {describe(found)}; expected are images, floating point of shape (N, C, H, W), "
            "and labels (N,) or None."
        )
    return images, found[1]


def _are_images(images: Any) -> TypeGuard[Tensor]:
    return isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()


def _as_tensor(images: Any) -> Any:
    """Arrays, which transfer hooks leave as they are, as tensors; and anything else as it is."""
    return torch.from_numpy(images).float() if isinstance(images, np.ndarray) and images.dtype.kind == "f" else images


def are_channels_last(images: Tensor, module: nn.Module | None = None) -> bool:
    """Whether images are (N, H, W, C): 1, 3 or 4 channels at the end, and before that no number so small.

    Where there are not 1, 3 or 4 at the front, and convolutions of the model take either as many channels as there are
    at the front or as many as there are at the end, these decide.
    """
    first, last = images.shape[1], images.shape[3]
    taken = {part.in_channels for part in (module.modules() if module else ()) if isinstance(part, nn.Conv2d)}
    if first not in _CHANNELS and (first in taken) != (last in taken):
        return last in taken
    return images.shape[3] in _CHANNELS and min(images.shape[1:3]) > max(_CHANNELS)


def images_and_labels(batch: Any, label: Any = None) -> tuple[Tensor, Any]:
    """The images and labels of a batch in one of the usual forms.

    Args:
        batch: (images, labels, ...); images alone; or a mapping, a named tuple or a dataclass with names such as
            image or pixel_values, and label or target. Where no name tells the images, the only ones in there count.
        label: the name of the labels, where it is none of the usual ones.

    Returns:
        Images (N, C, H, W) or (N, H, W, C), floating point, and what stands for their labels, or None; see
        :func:`class_indices`.

    Raises:
        UsageError: no images were found, or not in that form.
    """
    names = by_name(batch)
    name = None if names is None else image_name(names)
    if names is not None and name is not None:
        images, labels = names[name], _label(batch, names, name, label)
    elif isinstance(batch, (tuple, list)) and batch:
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        images, labels = batch, None
    images = _as_tensor(images)
    if not _are_images(images):
        raise UsageError(
            f"A validation batch is {describe(names if is_dataclass(batch) else batch)}. Expected is (images, labels) "
            f"or a mapping with {'/'.join(IMAGE_NAMES)} and {'/'.join(_USUAL_LABEL_NAMES)}, images being floating "
            "point of shape (N, C, H, W), no videos or volumes, no bytes (v2.ToDtype(torch.float32, scale=True) "
            "converts them). Give batch= (batch → images, labels) for anything else."
        )
    return images, labels


def by_name(batch: Any) -> Mapping[Any, Any] | None:
    """The parts of a batch that have names; None where they have none."""
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return None


def image_name(names: Mapping[Any, Any]) -> Any:
    """By which name the images are in there: a usual one, or that of the only ones; None where neither tells."""
    images = [name for name, part in names.items() if _are_images(_as_tensor(part))]
    usual = [name for name in IMAGE_NAMES if name in images]
    return usual[0] if usual else images[0] if len(images) == 1 else None


def label_name(names: Mapping[Any, Any], otherwise: Any = None) -> Any:
    """By which name the labels are in there: a usual one, or the only one such as fine_label; else None.

    Args:
        names: the parts of a batch; of several labels the first that are numbers count.
        otherwise: a name that counts after the usual ones.
    """
    usual = [name for name in (*LABEL_NAMES, otherwise) if name is not None and name in names]
    similar = [name for name in names if str(name).endswith(("_label", "_labels", "_target", "_targets"))]
    candidates = usual or (similar if len(similar) == 1 else [])
    return next((name for name in candidates if _tensor_of(names[name]) is not None), next(iter(candidates), None))


def _label(batch: Any, names: Mapping[Any, Any], image: Any, otherwise: Any) -> Any:
    label = label_name(names, otherwise)
    if label is None and isinstance(batch, tuple) and len(batch) > 1 and batch[0] is names[image]:
        return batch[1]  # a named tuple, read as a tuple
    return None if label is None else names[label]


def class_indices(labels: Any, count: int) -> Tensor | None:
    """Labels as class indices (N,), int64; None where they are something else (multi-hot, masks, text, amounts).

    Floating point labels of whole numbers, which binary losses ask for, count as class indices.
    """
    tensor = _tensor_of(labels)
    if tensor is not None and tensor.shape == (count, 1):
        tensor = tensor.squeeze(1)
    if (
        tensor is None
        or tensor.shape != (count,)
        or (tensor.is_floating_point() and not torch.equal(tensor, tensor.round()))
    ):
        return None
    return tensor.long()


def multi_hot(labels: Any, count: int) -> Tensor | None:
    """Labels as which classes are present, (N, classes), bool; None where they are not 0 or 1 for each class."""
    columns = _columns(labels, count)
    return None if columns is None or not ((columns == 0) | (columns == 1)).all() else columns.bool()


def one_class_each(labels: Any, count: int) -> Tensor | None:
    """Labels of one class for each image as class indices (N,), int64, also where they are one-hot; else None."""
    indices, present = class_indices(labels, count), multi_hot(labels, count)
    if indices is not None or present is None or not (present.sum(1) == 1).all():
        return indices
    return present.int().argmax(1)


def soft_labels(labels: Any, count: int) -> Tensor | None:
    """Labels that share 1 between the classes, as smoothing, MixUp and CutMix make them; (N, classes), or None."""
    columns = _columns(labels, count)
    if columns is None or not columns.is_floating_point():
        return None
    shares = columns.float()
    sums_to_one = (shares.sum(1) - 1).abs() <= 1e-2  # which half precision keeps
    return shares if bool(sums_to_one.all()) and bool((shares >= 0).all()) else None


def are_amounts(labels: Any, count: int) -> bool:
    """Whether labels are one or several numbers for each image that do not stand for classes, as of a regression."""
    tensor = _tensor_of(labels)
    if tensor is None or not tensor.is_floating_point() or tensor.ndim not in (1, 2) or len(tensor) != count:
        return False
    return all(kind(labels, count) is None for kind in (class_indices, multi_hot, soft_labels))


def _columns(labels: Any, count: int) -> Tensor | None:
    tensor = _tensor_of(labels)
    return tensor if tensor is not None and tensor.ndim == 2 and len(tensor) == count and tensor.shape[1] > 1 else None


def _tensor_of(labels: Any) -> Tensor | None:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None


class Form(NamedTuple):
    """The form of a batch, without what is in it.

    Attributes:
        kind: its class.
        names: of its parts, or their number where they have no names; None: it is the images themselves.
        image: the name of the images, or their place.
    """

    kind: Callable[..., Any]
    names: tuple[Any, ...] | int | None
    image: Any

    @classmethod
    def of(cls, batch: Any) -> "Form":
        """The form of a batch."""
        if isinstance(batch, Mapping):
            return cls(dict, (), image_name(batch))
        if (names := by_name(batch)) is not None:
            return cls(type(batch), tuple(names), image_name(names) or next(iter(names)))
        return cls(type(batch), len(batch) if isinstance(batch, (tuple, list)) else None, 0)

    def holding(self, images: Tensor) -> Any:
        """Such a batch of images alone: a mapping from their name, or with None for all else."""
        if isinstance(self.names, tuple):
            return self.kind(**(dict.fromkeys(self.names) | {self.image: images}))
        return images if self.names is None else self.kind([images, *[None] * (self.names - 1)])
