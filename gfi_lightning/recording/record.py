"""What was seen in one run of the callback."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from gfi_lightning.inversion.results import Depths, Explanation, Inversion


@dataclass(frozen=True)
class TargetRecord:
    """One target's map: heatmap (H, W), float32 in [0, 1]; its score untouched, kept and removed; and ω, (K,).

    Where it is contrasted with a class, ``against``, scores are the target's probability if it were one of these two.
    """

    target: int
    heatmap: Tensor
    score: float
    preserved: float
    removed: float
    degenerate: bool
    against: int | None = None
    weights: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class DepthRecord:
    """What a layer preserves: its name, its resolution (h, w), and the map (H, W), float32 in [0, 1]."""

    layer: str
    grid: tuple[int, int]
    heatmap: Tensor


@dataclass(frozen=True)
class SampleRecord:
    """One sample: its image (C, H, W) for display, in [0, 1], and every map that was made for it.

    ``label`` and the prediction are None where they are not known; ``present`` are the labels where there may be
    several, else None. The first target is the one that the curves follow; ``depths`` are there if asked for.
    ``method`` names whoever made the maps; empty: guided feature inversion. Others have no stage 1, and their
    ``foreground`` is empty, (0, 0).
    """

    image: Tensor
    label: int | None
    predicted: int | None
    predicted_score: float | None
    foreground: Tensor
    targets: list[TargetRecord]
    present: tuple[int, ...] | None = None
    depths: Sequence[DepthRecord] = ()
    method: str = ""


@dataclass(frozen=True)
class Record:
    """All samples at one step of the x axis.

    Attributes:
        step: of the x axis.
        grid: the resolution (h, w) that the maps come from, the base layer's.
        samples: in their order.
        epoch: from 0; None outside of a training.
        regions: by name where in each image something lies, (N, H, W), bool; nowhere in an image that lacks it.
    """

    step: int
    grid: tuple[int, int]
    samples: list[SampleRecord]
    epoch: int | None = None
    regions: Mapping[str, Tensor] = field(default_factory=dict)

    def heatmaps(self) -> Tensor:
        """The first target's maps, shape (N, H, W)."""
        return torch.stack([sample.targets[0].heatmap for sample in self.samples])

    def maps(self) -> Tensor:
        """The first target's maps at the base layer's resolution, shape (N, h, w)."""
        return F.adaptive_avg_pool2d(self.heatmaps(), self.grid)


def class_name(index: int, class_names: Sequence[str] | None) -> str:
    """A class's name, or its index where it has none."""
    name = str(class_names[index]) if class_names and 0 <= index < len(class_names) else ""
    return name or f"class {index}"


def sample_records(
    images: Tensor,
    labels: Tensor | None,
    present: Tensor | None,
    inversion: Inversion,
    explanations: list[tuple[list[int], Explanation]],
    method: str = "",
) -> list[SampleRecord]:
    """Sort explanations by sample.

    Args:
        images: for display, shape (N, C, H, W), in [0, 1].
        labels: shape (N,), or None.
        present: which classes are, shape (N, classes), bool; or None.
        inversion: of all N images.
        explanations: each with the numbers of the samples that it is about.
        method: who made them, see :class:`SampleRecord`.
    """
    targets: list[list[TargetRecord]] = [[] for _ in images]
    for numbers, explanation in explanations:
        for number, records in zip(numbers, target_records(explanation), strict=True):
            targets[number] += records
    return [
        SampleRecord(
            image=images[number].float().cpu(),
            label=None if labels is None else int(labels[number]),
            predicted=None if inversion.predicted is None else int(inversion.predicted[number]),
            predicted_score=None if inversion.predicted_score is None else float(inversion.predicted_score[number]),
            foreground=inversion.foreground[number].cpu(),
            targets=targets[number],
            present=tuple(present[number].nonzero().flatten().tolist()) if present is not None else None,
            depths=_depth_records(inversion.depths, number),
            method=method,
        )
        for number in range(len(images))
    ]


def _depth_records(depths: Depths, number: int) -> list[DepthRecord]:
    parts = zip(depths.layers, depths.grids, depths.heatmaps, strict=True)
    return [DepthRecord(layer, grid, heatmaps[number].cpu()) for layer, grid, heatmaps in parts]


def target_records(explanation: Explanation) -> list[list[TargetRecord]]:
    """For each sample the records of its targets."""
    targets = explanation.targets.reshape(len(explanation.targets), -1)  # (N,) and (N, T) alike as (N, T)
    count, each = targets.shape

    def column(values: Tensor) -> Tensor:
        return values.detach().cpu().reshape(count, each, *values.shape[explanation.targets.ndim :])

    names = ("targets", "heatmaps", "score", "preserved", "removed", "degenerate", "weights")
    columns = {name: column(getattr(explanation, name)) for name in names}
    against = None if explanation.against is None else column(explanation.against)
    return [
        [
            TargetRecord(
                target=int(columns["targets"][place]),
                heatmap=columns["heatmaps"][place],
                score=float(columns["score"][place]),
                preserved=float(columns["preserved"][place]),
                removed=float(columns["removed"][place]),
                degenerate=bool(columns["degenerate"][place]),
                against=None if against is None else int(against[place]),
                weights=columns["weights"][place],
            )
            for place in product([row], range(each))
        ]
        for row in range(count)
    ]
