"""The kept and the removed image of a mask, what is wanted of them, and the gradient by the mask."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.masks import mask_from
from gfi_lightning.inversion.network import gradients_by
from gfi_lightning.inversion.recipes import Recipe
from gfi_lightning.inversion.results import Chunk
from gfi_lightning.inversion.scores import Question, ScoreFunction, at_least_float32, log_odds, target_scores


def mask_of(chunk: Chunk, recipe: Recipe, weights: Sequence[Tensor]) -> Tensor:
    """The mask, (N, 1, H, W), that the weights ω of each base layer, (N, K), make."""
    return mask_from(weights, chunk.maps, image_size(chunk.images), recipe.mask, recipe.coarsest_power)


def blend(chunk: Chunk, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The kept image Φ (equation 2) and the removed image Φ_bg (equation 4)."""
    dtype = torch.promote_types(chunk.images.dtype, mask.dtype)
    images, background, mask = (one.to(dtype) for one in (chunk.images, chunk.background, mask))
    kept, removed = torch.lerp(background, images, mask), torch.lerp(images, background, mask)
    return kept.to(chunk.images.dtype), removed.to(chunk.images.dtype)


def objective(recipe: Recipe, score: str | ScoreFunction, question: Question, output: Any) -> Tensor:
    """What stage 2 wants to be high for the kept images, and low for the removed ones."""
    scored = log_odds if recipe.log_odds else target_scores
    return scored(output, question.targets, score, question.against)


def gradients_by_images(wanted: Callable[[Tensor], Tensor], versions: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of what is wanted by each version of some images, at least float32.

    Args:
        wanted: from all versions, one behind the other, to one number for each image of each.
        versions: shapes (N, C, H, W).
    """
    leaves = [version.detach().requires_grad_() for version in versions]
    values = wanted(torch.cat(leaves))  # no leaf, as a model may work in place
    return list(map(at_least_float32, gradients_by(leaves, values)))


def gradient_by_mask(chunk: Chunk, gradient: Tensor) -> Tensor:
    """The gradient by the masks, (N, 1, H, W), from that by the kept images; of the removed ones it is the negative."""
    difference = chunk.images.to(gradient) - chunk.background.to(gradient)
    return difference.mul_(gradient).sum(1, keepdim=True)


def at_once(versions: int, images: int, most: int) -> list[slice]:
    """Which versions of some images go through the network together, of which no more than so many may."""
    count = max(most // images, 1)
    return [slice(start, min(start + count, versions)) for start in range(0, versions, count)]
