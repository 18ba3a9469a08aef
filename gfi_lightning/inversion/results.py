"""What comes out of guided feature inversion."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.optimizer import Optimizer
from gfi_lightning.inversion.scores import logits_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 16  # images in a picture, unless asked for more: it grows by some 350 px with each
_LISTED = 8  # targets in a line of text


@dataclass(frozen=True)
class Explanation:
    """What guided feature inversion found, for N images and their targets.

    ``*`` stands for the shape of the targets, (N,) or (N, T); K is the number of channels of
    all base layers together. In a notebook it shows itself as a picture, that of :meth:`plot`.

    Attributes:
        heatmaps: (*, H, W), float32 in [0, 1]: what the target needs (stage 2); zero where degenerate.
        foreground: (N, H, W), float32 in [0, 1]: what the features preserve, whatever the class (stage 1).
            (N, 0, 0) where the maps are of a method that has no stage 1.
        targets: (*), int64: the explained classes.
        score: (*): the target's score on the untouched image.
        preserved: (*): its score on the kept image Φ, as the last step's forward pass saw it.
        removed: (*): its score on the removed image Φ_bg, likewise.
        weights: (*, K): the channel weights ω ≥ 0. Where the recipe scales feature maps to [0, 1], they weigh those.
        degenerate: (*), bool: no evidence was found, because feature maps are constant, zero or not finite.
            Scores that are not finite are given as 0 there.
        against: (*), int64: the classes that the targets are contrasted with; None: all others.
        depths: (N, D, H, W), float32 in [0, 1]: what the features at each of D depths preserve (stage 1); None
            where none were asked for, see ``layers`` of :class:`~gfi_lightning.GuidedFeatureInversion`.
        signs: (*, K), int8: what each ω_k A_k is multiplied by in the mask's sum. 1, but −1 for a feature map that
            speaks against the target and 0 for one that is left out, where the recipe starts from the evidence.
        images: (N, C, H, W): what was explained, as the model saw it, for :meth:`plot`; a copy, which stays as it is
            when those that were given are changed in place.
        predicted: (N,), int64: the class with the highest score; None where the output holds no logits, or under a
            callable score a single number for each image.
        predicted_score: (N,): that score; None likewise.
        layers: the names of the D depths.
        grids: their resolutions, (h, w).
        grid: the resolution (h, w) that the maps come from.
    """

    heatmaps: Tensor
    foreground: Tensor
    targets: Tensor
    score: Tensor
    preserved: Tensor
    removed: Tensor
    weights: Tensor
    degenerate: Tensor
    against: Tensor | None = None
    depths: Tensor | None = None
    signs: Tensor | None = None
    images: Tensor | None = None
    predicted: Tensor | None = None
    predicted_score: Tensor | None = None
    layers: tuple[str, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()
    grid: tuple[int, int] | None = None

    def select(self, chosen: Tensor) -> "Explanation":
        """The same for some of the images: chosen has shape (N,), bool."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        selected: dict[str, Any] = {name: one[chosen] for name, one in every.items() if isinstance(one, Tensor)}
        return replace(self, **selected)

    def plot(
        self,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        limit: int | None = _SHOWN,
    ) -> "Figure":
        """A picture: for each image a row of the image, stage 1, and the map of each target, with its scores.

        Below each comes a row of what the depths preserve, if there are any.

        Args:
            class_names: by class index; None: the index is shown.
            mean: of the images' normalisation, per channel, to show images as they were. None: images are shown as
                they are if all values lie in [0, 1], else each by its own range.
            std: likewise.
            limit: images that are shown, from the first one; None: all. :meth:`select` picks others.

        Returns:
            A Matplotlib figure, which shows itself in a notebook, and otherwise has ``savefig``. It needs no display,
            and pyplot does not know it.

        Raises:
            UsageError: mean, std or limit cannot be used.
        """
        # Only now: the method itself knows no Matplotlib, and never waits for its import.
        from gfi_lightning.recording.explained import figure

        return figure(self, class_names, mean, std, limit)

    def save(
        self,
        path: str | PathLike[str],
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        limit: int | None = _SHOWN,
    ) -> None:
        """Write the picture of :meth:`plot` to a file.

        Args:
            path: with the suffix .png, .jpg, .jpeg or .pdf. What is there is replaced.
            class_names: as in :meth:`plot`.
            mean: likewise.
            std: likewise.
            limit: likewise.

        Raises:
            UsageError: the suffix is another one, the folder does not exist, or mean, std or limit cannot be used.
        """
        from gfi_lightning.recording.explained import save

        save(self, path, class_names, mean, std, limit)

    def __repr__(self) -> str:
        count, (height, width) = len(self.foreground), self.heatmaps.shape[-2:]
        each = f"{self.targets.shape[1]} targets each" if self.targets.ndim == 2 else "1 target each"
        listed = f"targets {self.targets.tolist()}" if self.targets.numel() <= _LISTED else each
        means = (
            [f"{name} {getattr(self, name).float().mean():.2f}" for name in ("preserved", "removed")] if count else []
        )
        without = int(self.degenerate.sum())
        parts = [listed, *means, *([f"{without} without evidence"] if without else [])]
        return f"<Explanation of {count} image{'s' * (count != 1)} of {height} × {width}: {', '.join(parts)}>"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; None where it cannot be drawn, for which notebooks have the line of text."""
        with suppress(Exception):  # which would hide the object itself
            from gfi_lightning.recording.explained import png

            return png(self, limit=_SHOWN)
        return None


@dataclass(frozen=True)
class Depths:
    """What layers of the network preserve of N images, in the order in which they were given; there may be none.

    Attributes:
        heatmaps: of each layer, (N, H, W), float32 in [0, 1] (stage 1).
        layers: their names.
        grids: their resolutions, (h, w).
    """

    heatmaps: Sequence[Tensor] = ()
    layers: Sequence[str] = ()
    grids: Sequence[tuple[int, int]] = ()

    @classmethod
    def joined(cls, parts: Sequence["Depths"]) -> "Depths":
        """Of several batches the one."""
        return replace(parts[0], heatmaps=list(map(torch.cat, zip(*(part.heatmaps for part in parts), strict=True))))

    def stacked(self) -> Tensor | None:
        """The maps, (N, D, H, W); None where there are none."""
        return torch.stack(list(self.heatmaps), 1) if self.heatmaps else None

    def select(self, chosen: Tensor) -> "Depths":
        """The same for some of the images: chosen has shape (N,), bool."""
        return replace(self, heatmaps=[heatmaps[chosen] for heatmaps in self.heatmaps])


@dataclass(frozen=True)
class Chunk:
    """Images that are optimised together, and what is known about each after stage 1.

    Attributes:
        images: (N, C, H, W).
        background: (N, C, H, W).
        maps: feature maps A_k of each base layer, (N, K, h, w), the coarsest last; zero where there is no evidence.
        ranges: what each feature map was divided by, (N, K, 1, 1).
        output: the model's output for ``count`` untouched images.
        count: their number.
        rows: which of them these images are, (N,).
        weights: ω of each base layer, (N, K).
        signs: of each feature map in the mask, (N, K), int8; the maps are multiplied by them already.
        optimizers: the optimiser's state for each.
        pace: by what the learning rate is multiplied for each image, and its target, (N, 1); NaN where the first step
            of stage 2 is to tell.
    """

    images: Tensor
    background: Tensor
    maps: tuple[Tensor, ...]
    ranges: tuple[Tensor, ...]
    output: Any
    count: int
    rows: Tensor
    weights: tuple[Tensor, ...]
    signs: tuple[Tensor, ...]
    optimizers: tuple[Optimizer, ...]
    pace: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Chunk":
        return Chunk(
            images=self.images[rows],
            background=self.background[rows],
            maps=tuple(maps[rows] for maps in self.maps),
            ranges=tuple(ranges[rows] for ranges in self.ranges),
            output=self.output,
            count=self.count,
            rows=self.rows[rows],
            weights=tuple(weights[rows] for weights in self.weights),
            signs=tuple(signs[rows] for signs in self.signs),
            optimizers=tuple(optimizer[rows] for optimizer in self.optimizers),
            pace=self.pace[rows],
        )


@dataclass(frozen=True)
class Inversion:
    """The result of stage 1 for N images, from which stage 2 starts for any number of targets.

    Attributes:
        foreground: (N, H, W), float32 in [0, 1]: what the features preserve, whatever the class; or (N, 0, 0).
        predicted: (N,), int64: the class with the highest score; None under a callable score where the model's
            output holds no logits, or a single number for each image.
        predicted_score: (N,): that score; None likewise.
        chunks: what stage 2 needs.
        depths: what other layers preserve.
    """

    foreground: Tensor
    predicted: Tensor | None
    predicted_score: Tensor | None
    chunks: tuple[Chunk, ...]
    depths: Depths = field(default_factory=Depths)

    @property
    def grid(self) -> tuple[int, int]:
        """The resolution (h, w) of the finest base layer."""
        return max((image_size(maps) for maps in self.chunks[0].maps), key=math.prod)

    @property
    def chunk_sizes(self) -> list[int]:
        """How many images were optimised together, and then together."""
        return [len(chunk.images) for chunk in self.chunks]

    @property
    def weights(self) -> Tensor:
        """ω after stage 1, (N, K), of all base layers together."""
        return torch.cat([torch.cat(chunk.weights, 1) for chunk in self.chunks])

    @property
    def images(self) -> Tensor:
        """The images, (N, C, H, W), as the model saw them; a copy."""
        return torch.cat([chunk.images for chunk in self.chunks]).contiguous()

    def logits(self) -> Tensor:
        """The model's logits for the untouched images, shape (N, classes).

        Raises:
            UsageError: the model's output holds none.
        """
        return torch.cat([logits_of(chunk.output)[chunk.rows] for chunk in self.chunks])

    def holds_numbers(self) -> bool:
        """Whether the model's output is a single number for each image."""
        try:
            return self.logits().shape[1] == 1
        except UsageError:
            return False

    def runner_up(self) -> Tensor:
        """The class with the second highest logit, shape (N,), int64; of a single logit the class that it is not.

        Raises:
            UsageError: the model's output holds no logits.
        """
        logits = self.logits().nan_to_num()
        predicted = logits.argmax(1) if self.predicted is None else self.predicted
        if logits.shape[1] == 1:
            return 1 - predicted
        return logits.scatter(1, predicted[:, None], -torch.inf).argmax(1)

    def select(self, chosen: Tensor) -> "Inversion":
        """The same for some of the images: chosen has shape (N,), bool."""
        parts = zip(self.chunks, chosen.split(self.chunk_sizes), strict=True)
        return Inversion(
            foreground=self.foreground[chosen],
            predicted=None if self.predicted is None else self.predicted[chosen],
            predicted_score=None if self.predicted_score is None else self.predicted_score[chosen],
            chunks=tuple(chunk[rows] for chunk, rows in parts if rows.any()),
            depths=self.depths.select(chosen),
        )


def concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Named tensors of several chunks, joined along the first axis."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
