"""The curves of a training: how far each sample's map has moved, its form, and what it says of the score."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gfi_lightning.metrics.drift import SETTLED, heatmap_drift, top_fifth_iou
from gfi_lightning.metrics.localization import energy_in_region, pointing_hits
from gfi_lightning.metrics.sparsity import entropy, half_area
from gfi_lightning.recording.record import Record, class_name

Curves = dict[str, Tensor]  # by name the samples' values (N,), float32, NaN where a sample has none

OF_REGIONS = ("energy", "pointing")  # each with the name of a region
CURVES = (
    *("preserved", "removed", "entropy", "area"),
    *("drift", "drift_from_first", "drift_floor", "settled", "top_fifth_iou", "top_fifth_iou_from_first"),
    *OF_REGIONS,
)


class CurveTracker:
    """Makes the curves of one run after the other; remembers the first maps and the last.

    Of each sample's first target they are

    - ``preserved`` and ``removed``: its score on what is kept and on what is removed;
    - ``entropy`` and ``area``: see :func:`~gfi_lightning.metrics.entropy` and :func:`~gfi_lightning.metrics.half_area`;
    - from the second run on ``drift`` and ``top_fifth_iou``: since the run before, see
      :func:`~gfi_lightning.metrics.heatmap_drift` and :func:`~gfi_lightning.metrics.top_fifth_iou`; and
      ``drift_from_first`` and ``top_fifth_iou_from_first``: since the first run;
    - ``settled``: 1 where ``drift`` is at most 0.1 or the noise floor, else 0. A map has settled at the step from which
      on this stays 1, see :func:`~gfi_lightning.metrics.settled_at`;
    - ``drift_floor``: the drift that rounding alone makes, which is no movement;
    - ``energy/<region>`` and ``pointing/<region>``: the share of the map's energy in a region, and whether its maximum
      lies there (1 or 0), of samples that have the region.

    Maps are compared at the base layer's resolution.

    Args:
        restored: :meth:`state` of the training that is resumed, or an empty mapping.
    """

    def __init__(self, restored: Mapping[str, Tensor | None]) -> None:
        self._first = restored.get("first_maps")
        self._last = restored.get("last_maps")
        self.floor = restored.get("drift_floor")

    def state(self) -> dict[str, Tensor | None]:
        """What a resumed training needs."""
        return {"first_maps": self._first, "last_maps": self._last, "drift_floor": self.floor}

    def forget_maps(self) -> None:
        """The images are others than before: nothing can be compared with their maps."""
        self._first = self._last = self.floor = None

    def curves(self, record: Record) -> Curves:
        """The curves at the next run."""
        heatmaps, maps = record.heatmaps(), record.maps()
        if self._last is not None and self._last.shape != maps.shape:
            self._first = self._last = None
        first = [sample.targets[0] for sample in record.samples]
        curves = {
            "preserved": torch.tensor([target.preserved for target in first]),
            "removed": torch.tensor([target.removed for target in first]),
            "entropy": entropy(heatmaps),
            "area": half_area(heatmaps),
        }
        if self._last is not None and self._first is not None:
            curves["drift"] = heatmap_drift(maps, self._last)
            curves["drift_from_first"] = heatmap_drift(maps, self._first)
            curves["top_fifth_iou"] = top_fifth_iou(maps, self._last)
            curves["top_fifth_iou_from_first"] = top_fifth_iou(maps, self._first)
            floor = torch.zeros(len(first)) if self.floor is None else self.floor
            curves["settled"] = (curves["drift"] <= floor.clamp(min=SETTLED)).float()
        if self.floor is not None:
            curves["drift_floor"] = self.floor
        for name, regions in record.regions.items():
            there = regions.flatten(1).any(1)
            curves[f"energy/{name}"] = energy_in_region(heatmaps, regions).where(there, torch.nan)
            curves[f"pointing/{name}"] = pointing_hits(heatmaps, regions).float().where(there, torch.nan)
        self._first, self._last = maps if self._first is None else self._first, maps
        return {name: values.float() for name, values in curves.items()}


def means(curves: Curves) -> dict[str, float]:
    """Each curve's mean over the samples that have a value; a curve of which none has is left out."""
    averages = {name: float(values.nanmean()) for name, values in curves.items()}
    return {name: value for name, value in averages.items() if value == value}


def means_by_class(curves: Curves, labels: Sequence[int | None], class_names: Sequence[str] | None) -> dict[str, float]:
    """The same for the samples of each class, as ``<curve>/<class>``.

    Args:
        curves: of all samples.
        labels: of each sample; None: it has no label, and counts for no class.
        class_names: by class index; None: the index stands for it.
    """
    by_class: dict[str, float] = {}
    for label in sorted({label for label in labels if label is not None}):
        chosen = torch.tensor([other == label for other in labels])
        name = class_name(label, class_names)
        if (class_names or ()).count(name) > 1:  # no other class may have the same tag
            name += f" (class {label})"
        of_class = means({curve: values[chosen] for curve, values in curves.items()})
        by_class |= {f"{curve}/{name}": value for curve, value in of_class.items()}
    return by_class


def means_by_sample(curves: Curves) -> dict[str, float]:
    """Each sample's own values, as ``<curve>/sample_<number>``; those that it lacks are left out."""
    every = {
        f"{name}/sample_{number}": value
        for name, values in curves.items()
        for number, value in enumerate(values.tolist())
    }
    return {name: value for name, value in every.items() if value == value}
