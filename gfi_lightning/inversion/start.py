"""Where ω starts, if not from nothing: what was found before for the same images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.recipes import Recipe
from gfi_lightning.inversion.results import Chunk, Explanation, Inversion


@dataclass(frozen=True)
class Start:
    """What was found before for N images and their targets, with other weights of the model, say.

    A row of ω that is not finite stands for nothing that was found: its image, or its pair of image and target, starts
    cold. So does, layer by layer, one whose mask the feature maps as they are now leave empty; and everything where
    the number of channels is another one.

    Attributes:
        foreground: (N, K): ω after stage 1, of all base layers together.
        weights: (*, K): ω after stage 2, where the targets have shape *; None: stage 2 starts cold.
        signs: (*, K), int8: of each feature map in the mask; None: all are 1.
        skips_evidence: no passes are made for the evidence where all that are refined together have an earlier ω.
    """

    foreground: Tensor
    weights: Tensor | None = None
    signs: Tensor | None = None
    skips_evidence: bool = True

    @classmethod
    def of(cls, inversion: Inversion, explanation: Explanation) -> "Start":
        """From what both stages have found; where that was no evidence, from nothing."""
        weights = explanation.weights.masked_fill(explanation.degenerate[..., None], torch.nan)
        return cls(inversion.weights, weights, explanation.signs)

    def check_images(self, count: int) -> None:
        """Raise UsageError where it is not about so many images."""
        shape = tuple(self.foreground.shape)
        if len(shape) != 2 or shape[0] != count:
            raise UsageError(f"start.foreground has shape {shape}: expected is ({count}, K), a row for each image.")

    def check_targets(self, targets: Tensor) -> None:
        """Raise UsageError where it is not about such targets, of shape (N,) or (N, T)."""
        shapes = [tuple(one.shape) for one in (self.weights, self.signs) if one is not None]
        if any(shape[:-1] != tuple(targets.shape) or shape != shapes[0] for shape in shapes):
            expected = ", ".join(map(str, (*targets.shape, "K")))
            raise UsageError(
                f"start.weights and start.signs have shapes {' and '.join(map(str, shapes))}: expected is "
                f"({expected}), a row for each target."
            )

    def pairs(self, first: int, count: int) -> "Start":
        """The same for some pairs of image and target, as they come, with weights (P, K)."""
        weights, signs = (
            None if one is None else one.flatten(0, -2)[first : first + count] for one in (self.weights, self.signs)
        )
        return replace(self, weights=weights, signs=signs)


@dataclass(frozen=True)
class Warm:
    """Images that may start from what was found before.

    Attributes:
        chunk: with the ω and the signs that were found.
        known: for each base layer, of which images there are any of use: (N,), bool.
    """

    chunk: Chunk
    known: tuple[Tensor, ...]

    @classmethod
    def of(cls, cold: Chunk, recipe: Recipe, weights: Tensor, signs: Tensor | None) -> "Warm":
        """From a chunk as stage 1 has it, ω (N, K) and signs (N, K)."""
        channels = [maps.shape[1] for maps in cold.maps]
        if weights.shape[1] != sum(channels):
            return cls(cold, tuple(maps.new_zeros(len(maps), dtype=torch.bool) for maps in cold.maps))
        if signs is None:
            signs = torch.ones_like(weights, dtype=torch.int8)
        parts = [one.split(channels, 1) for one in (weights, signs)]
        weights_by_layer = tuple(one.to(maps) for one, maps in zip(parts[0], cold.maps, strict=True))
        signs_by_layer = tuple(one.to(maps.device, torch.int8) for one, maps in zip(parts[1], cold.maps, strict=True))
        signed = tuple(
            maps * sign[:, :, None, None].to(maps) for maps, sign in zip(cold.maps, signs_by_layer, strict=True)
        )
        size = image_size(cold.images)
        known = tuple(_is_known(recipe, *pair, size) for pair in zip(signed, weights_by_layer, strict=True))
        return cls(replace(cold, maps=signed, signs=signs_by_layer, weights=weights_by_layer), known)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left that has to start cold."""
        return bool(torch.stack(self.known).all())

    def or_else(self, cold: Chunk) -> Chunk:
        """What was found before, and where that is of no use the start of another chunk of the same images."""
        warm = self.chunk

        def pick(ours: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(
                torch.where(known.view(-1, *[1] * (one.ndim - 1)), one, other)
                for known, one, other in zip(self.known, ours, others, strict=True)
            )

        return replace(
            cold,
            maps=pick(warm.maps, cold.maps),
            signs=pick(warm.signs, cold.signs),
            weights=pick(warm.weights, cold.weights),
            # Of one that is known in all layers the pace may be unknown, by whether others of its batch are known.
            pace=torch.where(torch.stack(self.known, 1).all(1, keepdim=True), warm.pace, cold.pace),
        )


def _is_known(recipe: Recipe, maps: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Of which images ω is finite, and makes a mask that is not empty: (N,), bool."""
    with torch.no_grad():
        mask = recipe.mask((weights[:, :, None, None] * maps).sum(1, keepdim=True), size).flatten(1)
    return torch.isfinite(weights).all(1) & torch.isfinite(mask).all(1) & (mask != 0).any(1)
