"""What comes out of guided feature inversion."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.inversion.optimizer import Adam
from gfi_lightning.inversion.scores import logits_of


@dataclass(frozen=True)
class Explanation:
    """What guided feature inversion found, for N images and their targets.

    ``*`` stands for the shape of the targets, (N,) or (N, T); K is the number of channels of the base layer.

    Attributes:
        heatmaps: (*, H, W), float32 in [0, 1]: what the target needs (stage 2); zero where degenerate.
        foreground: (N, H, W), float32 in [0, 1]: what the features preserve, whatever the class (stage 1).
        targets: (*), int64: the explained classes.
        score: (*): the target's score on the untouched image.
        preserved: (*): its score on the kept image Φ, as the last step's forward pass saw it.
        removed: (*): its score on the removed image Φ_bg, likewise.
        weights: (*, K): the channel weights ω ≥ 0.
        degenerate: (*), bool: no evidence was found, because feature maps are constant, zero or not finite.
            Scores that are not finite are given as 0 there.
    """

    heatmaps: Tensor
    foreground: Tensor
    targets: Tensor
    score: Tensor
    preserved: Tensor
    removed: Tensor
    weights: Tensor
    degenerate: Tensor

    def select(self, chosen: Tensor) -> "Explanation":
        """The same for some of the images: chosen has shape (N,), bool."""
        return Explanation(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True)
class Chunk:
    """Images that are optimised together, and what is known about each after stage 1.

    Attributes:
        images: (N, C, H, W).
        background: (N, C, H, W).
        maps: feature maps A_k of the base layer, (N, K, h, w); zero where there is no evidence.
        output: the model's output for ``count`` untouched images.
        count: their number.
        rows: which of them these images are, (N,).
        weights: ω, (N, K).
        optimizer: Adam's state.
    """

    images: Tensor
    background: Tensor
    maps: Tensor
    output: Any
    count: int
    rows: Tensor
    weights: Tensor
    optimizer: Adam

    def __getitem__(self, rows: Tensor) -> "Chunk":
        return Chunk(
            images=self.images[rows],
            background=self.background[rows],
            maps=self.maps[rows],
            output=self.output,
            count=self.count,
            rows=self.rows[rows],
            weights=self.weights[rows],
            optimizer=self.optimizer[rows],
        )


@dataclass(frozen=True)
class Inversion:
    """The result of stage 1 for N images, from which stage 2 starts for any number of targets.

    Attributes:
        foreground: (N, H, W), float32 in [0, 1]: what the features preserve, whatever the class.
        predicted: (N,), int64: the class with the highest score; None under a callable score where the
            model's output holds no logits.
        predicted_score: (N,): that score; None likewise.
        chunks: what stage 2 needs.
    """

    foreground: Tensor
    predicted: Tensor | None
    predicted_score: Tensor | None
    chunks: tuple[Chunk, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """The base layer's resolution (h, w)."""
        height, width = self.chunks[0].maps.shape[2:]
        return height, width

    @property
    def chunk_sizes(self) -> list[int]:
        """How many images were optimised together, and then together."""
        return [len(chunk.images) for chunk in self.chunks]

    def logits(self) -> Tensor:
        """The model's logits for the untouched images, shape (N, classes).

        Raises:
            UsageError: the model's output holds none.
        """
        return torch.cat([logits_of(chunk.output)[chunk.rows] for chunk in self.chunks])

    def select(self, chosen: Tensor) -> "Inversion":
        """The same for some of the images: chosen has shape (N,), bool."""
        parts = zip(self.chunks, chosen.split(self.chunk_sizes), strict=True)
        return Inversion(
            foreground=self.foreground[chosen],
            predicted=None if self.predicted is None else self.predicted[chosen],
            predicted_score=None if self.predicted_score is None else self.predicted_score[chosen],
            chunks=tuple(chunk[rows] for chunk, rows in parts if rows.any()),
        )


def concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Named tensors of several chunks, joined along the first axis."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
