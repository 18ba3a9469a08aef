"""The rows of the table: what was measured of each method, image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.bootstrap import Estimate, estimate, paired_difference


@dataclass(frozen=True)
class Metric:
    """One column.

    Attributes:
        key: in the JSON.
        title: in the table.
        better: 1 where more is better, −1 where less is, 0 where neither.
        statistic: over the images, "mean" or "median".
        worst: the largest value is told, too.
    """

    key: str
    title: str
    better: int
    statistic: str = "mean"
    worst: bool = False
    digits: int = 3


GROUPS: dict[str, tuple[Metric, ...]] = {
    "Does the map lie on the object?": (
        Metric("pointing", "pointing hit", 1),
        Metric("energy", "energy in the box", 1),
        Metric("localization_error", "localisation error", -1),
    ),
    "Does the network need what the map shows?": (
        Metric("insertion_deletion", "insertion − deletion", 1),
        Metric("insertion", "insertion", 1),
        Metric("deletion", "deletion", -1),
        Metric("average_drop", "average drop", -1),
        Metric("increase", "increase in confidence", 1),
    ),
    "Does it depend on the network, and not on noise?": (
        Metric("sanity_head", "similarity, head randomised", -1),
        Metric("sanity_below", "similarity, randomised further down", -1),
        Metric("sensitivity", "sensitivity", -1),
        Metric("sparsity", "sparsity (Gini)", 0),
    ),
    "Is it the same picture again?": (
        Metric("floor", "1 − rank correlation, batch against single images", -1, "median", worst=True, digits=5),
        Metric("floor_bf16", "float32 against bfloat16", -1, "median", worst=True, digits=5),
        Metric("floor_device", "CPU against GPU", -1, "median", worst=True, digits=5),
    ),
}
METRICS = {metric.key: metric for metrics in GROUPS.values() for metric in metrics}


@dataclass
class Row:
    """What was measured of one method.

    Attributes:
        name: of the method.
        group: its name without its layer, or "".
        values: key of a metric to one value for each image, shape (images,), NaN where it was not measured.
        alpha: of the localisation error, tuned on other images; None: it was not.
        forwards: passes per image and target.
        backwards: likewise.
        seconds: time as a ratio to the reference's, for each timed batch.
        stages: layers at which the cascading randomisation was looked at, and the mean similarity there.
        layers: of a row that is the best of several, the row that each metric was taken from.
        notes: what could not be measured, and why.
    """

    name: str
    group: str = ""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    alpha: float | None = None
    forwards: float | None = None
    backwards: float | None = None
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether an error came before everything was measured."""
        return any(note.startswith("failed") for note in self.notes)

    def estimate(self, metric: Metric) -> Estimate:
        """The metric over the images, with its interval."""
        return estimate(self.values[metric.key], metric.statistic)

    def difference(self, other: "Row", metric: Metric) -> Estimate:
        """The metric less another row's, over the images that both were measured on."""
        return paired_difference(self.values[metric.key], other.values[metric.key], metric.statistic)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers and texts."""
        values = {
            key: [None if np.isnan(value) else round(float(value), 6) for value in series]
            for key, series in self.values.items()
        }
        return {**vars(self), "values": values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Row":
        """What :meth:`to_json` gave; other entries are passed over."""
        known = {key: data[key] for key in cls.__dataclass_fields__}
        values = {
            key: np.array([np.nan if value is None else value for value in series], dtype=float)
            for key, series in data["values"].items()
        }
        return cls(**{**known, "values": values})


def best_of_layers(rows: Sequence[Row]) -> list[Row]:
    """For each method that was run at several layers a row of its better layer, metric by metric.

    The layer is chosen by the very images that are reported, which flatters these rows.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.group:
            groups.setdefault(row.group, []).append(row)
    return [_best(group, members) for group, members in groups.items() if len(members) > 1]


def _best(group: str, members: Sequence[Row]) -> Row:
    best = Row(f"{group}, best layer of each column")
    for key in set.intersection(*(set(member.values) for member in members)):
        metric = METRICS[key]
        scores = [metric.better * member.estimate(metric).value for member in members]
        if metric.better and not np.isnan(scores).all():
            chosen = members[int(np.nanargmax(scores))]
            best.values[key] = chosen.values[key]
            best.layers[key] = chosen.name
    return best
