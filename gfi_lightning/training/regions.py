"""Where in the samples something is known to lie: boxes and masks that the user gives by name."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.scores import describe
from gfi_lightning.metrics.localization import regions_of_boxes
from gfi_lightning.recording.curves import OF_REGIONS

Regions = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
Parts = dict[str, list[Any]]  # by name, for each sample its boxes or its mask, or None

_CORNERS = 4  # numbers of a box
_MASKS = ({0}, {1}, {0, 1}, {255}, {0, 255})  # values: True and False, also as numbers and as pixels
_LISTED = 16  # samples that a warning names
_FORMS = (
    "expected is for each sample a box (4,) or boxes (B, 4) of x0, y0, x1, y1 in pixels of the image as the model sees "
    "it, x1 and y1 exclusive, or a mask (H, W) or masks (M, H, W), bool; or None"
)


def check_regions(regions: Any, given_batch: bool) -> None:
    """Raise UsageError for what cannot be regions.

    Args:
        regions: as given.
        given_batch: whether the samples were given as a ready batch, which has no items.
    """
    if regions is None or (callable(regions) and not given_batch):
        return
    if callable(regions):
        raise UsageError(
            "regions= as a function takes an item of the validation set, and samples= is a ready batch: give a mapping "
            f"from names, and for each of them {_FORMS[len('expected is ') :]}."
        )
    if not isinstance(regions, Mapping):
        raise UsageError(
            f"regions={describe(regions)} cannot be used: give a mapping from names to boxes or masks, or a function "
            "from an item of the validation set to such a mapping."
        )
    _check_names(regions)
    for name, parts in regions.items():
        if not hasattr(parts, "__len__") or isinstance(parts, (str, Mapping)):
            raise UsageError(f"regions[{name!r}] is {describe(parts)}; {_FORMS}.")


def check_alarm(alarm: Any, regions: Any) -> None:
    """Raise UsageError for what is no mapping from the names of regions to shares of a map's energy."""
    if alarm is None:
        return
    if not isinstance(alarm, Mapping):
        raise UsageError(
            f"alarm={alarm!r} must be a mapping from a region's name to a share, such as {{'patch': 0.3}}."
        )
    if regions is None:
        raise UsageError(f"alarm={dict(alarm)!r} needs regions=, which say where these lie.")
    for name, share in alarm.items():
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) < 1:
            raise UsageError(f"alarm[{name!r}]={share!r} must be a share of the map's energy, above 0 and below 1.")


def check_watched(alarm: Mapping[str, float], prog_bar: Sequence[str], regions: Collection[str]) -> None:
    """Raise UsageError where the alarm, or a curve for the progress bar, is of a region that does not exist."""
    watched = [(f"alarm={dict(alarm)!r}", name) for name in alarm]
    curves = [curve.split("/") for curve in prog_bar]
    watched += [(f"prog_bar={list(prog_bar)!r}", curve[1]) for curve in curves if curve[0] in OF_REGIONS]
    for argument, name in watched:
        if name not in regions:
            known = ", ".join(map(repr, regions)) or "none"
            raise UsageError(f"{argument} watches {name!r}, but regions= has {known}.")


def parts_of_items(regions: Callable[[Any], Mapping[str, Any]], items: Sequence[Any]) -> Parts:
    """What a function says of each item, by name; None where an item lacks what another one has.

    Raises:
        UsageError: it returned no mapping.
    """
    found = [regions(item) for item in items]
    for one in found:
        if not isinstance(one, Mapping):
            raise UsageError(f"regions= returned {describe(one)}; expected is a mapping from names to boxes or masks.")
        _check_names(one)
    names = dict.fromkeys(name for one in found for name in one)
    return {name: [one.get(name) for one in found] for name in names}


def parts_of_samples(regions: Mapping[str, Any], indices: list[int] | None, dataset_size: int | None) -> Parts:
    """What was given for each sample, or for each item of the data set, of which the samples' are taken.

    Args:
        regions: by name.
        indices: the samples' places in the data set; None: they have none.
        dataset_size: items in it; None: not known.
    """
    chosen = {}
    for name, parts in regions.items():
        of_items = indices is not None and len(parts) == dataset_size
        chosen[name] = [parts[index] for index in indices] if of_items and indices is not None else list(parts)
    return chosen


def as_masks(parts: Parts, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes and masks as masks, by name: (N, H, W), bool, on the CPU; nowhere in a sample that has none.

    Args:
        parts: by name, for each sample.
        count: N.
        size: (H, W) of the images.

    Raises:
        UsageError: there are not as many as samples, or one is of another form.
    """
    for name, of_samples in parts.items():
        if len(of_samples) != count:
            raise UsageError(
                f"regions[{name!r}] has {len(of_samples)} entries, and there are {count} samples: give one for each, "
                "None where it has no such region, or one for each item of the validation set."
            )
    return {
        name: torch.stack([_mask(part, size, f"regions[{name!r}][{number}]") for number, part in enumerate(of_samples)])
        for name, of_samples in parts.items()
    }


def alarms(
    alarm: Mapping[str, float], curves: Mapping[str, Tensor], step: int, prefix: str, picture: str
) -> Iterator[tuple[str, str]]:
    """The regions in which a map has more of its energy than allowed, and what is to be said of each.

    Args:
        alarm: by the region's name the largest share that is allowed.
        curves: of a run, with the energy in each region.
        step: of the run.
        prefix: of all tags.
        picture: where to look, "film" or "sample".
    """
    for name, share in alarm.items():
        energy = curves[f"energy/{name}"]
        above = (energy > share).nonzero().flatten().tolist()  # NaN, where a sample has no such region, is not above
        if above:
            count = int(energy.isfinite().sum())
            yield (
                name,
                f"GFICallback: at step {step} the maps of {len(above)} of {count} samples have more than {share:g} of "
                f"their energy in the region {name!r}: {_listed(above)}. The mean is {energy.nanmean():.2f}. The model "
                f"may have learned to look there: see {prefix}/{picture}_{above[0]} and the curve "
                f"{prefix}/energy/{name}.",
            )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_LISTED]))
    return f"{'samples' if len(numbers) > 1 else 'sample'} {shown}{', …' if len(numbers) > _LISTED else ''}"


def _by_corners(part: Any) -> Any:
    """Torchvision's boxes, which know in what form their numbers are, as (x0, y0, x1, y1); all else as it is."""
    if not isinstance(part, Tensor):
        return part
    # Only here, as few have any, and importing it takes a tenth of what the whole package does.
    from torchvision.transforms.v2.functional import convert_bounding_box_format  # type: ignore[import-untyped]
    from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat  # type: ignore[import-untyped]

    is_box = isinstance(part, BoundingBoxes)
    return convert_bounding_box_format(part, new_format=BoundingBoxFormat.XYXY) if is_box else part


def _mask(part: Any, size: tuple[int, int], name: str) -> Tensor:
    if part is None:
        return torch.zeros(size, dtype=torch.bool)
    try:
        part = _by_corners(part)
        tensor = torch.as_tensor(part if isinstance(part, Tensor) else np.asarray(part)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} is {describe(part)}; {_FORMS}.") from error
    if tensor.numel() == 0:
        return torch.zeros(size, dtype=torch.bool)
    if tensor.shape[-2:] == size and tensor.ndim in (2, 3):
        if set(tensor.unique().tolist()) not in _MASKS:
            raise UsageError(f"{name} is {describe(tensor)} of {_values(tensor)}, and no mask: give True and False.")
        return tensor.bool().reshape(-1, *size).any(0)
    if tensor.dtype == torch.bool or (tensor.ndim > 1 and tensor.shape[-1] != _CORNERS):
        raise UsageError(
            f"{name} is a mask of {_by(tensor.shape[-2:])}, and the images are {_by(size)}: give masks of the images "
            "as the model sees them, after their transform."
        )
    if tensor.shape[-1] != _CORNERS or tensor.ndim > 2:
        raise UsageError(f"{name} is {describe(tensor)}; {_FORMS}.")
    if tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1 and max(size) > 1:
        raise UsageError(
            f"{name} is {tensor.tolist()}, which looks like shares of the image's size: give pixels, here of an image "
            f"of {_by(size)}. (A box of the very first pixel is [0, 0, 1, 1], in whole numbers.)"
        )
    try:
        return regions_of_boxes([tensor.reshape(-1, 4)], size)[0]
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _values(tensor: Tensor) -> str:
    low, high = tensor.min().item(), tensor.max().item()
    return f"{low:g}" if low == high else f"values from {low:g} to {high:g}"


def _by(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def _check_names(regions: Mapping[str, Any]) -> None:
    for name in regions:
        if not isinstance(name, str) or not name or "/" in name:
            raise UsageError(f"The region {name!r} needs a name that can be part of a tag: text without '/'.")
