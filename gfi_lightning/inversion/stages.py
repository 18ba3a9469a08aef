"""The two stages of guided feature inversion, for images that are optimised together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from gfi_lightning.inversion.blending import (
    at_once,
    blend,
    gradient_by_mask,
    gradients_by_images,
    mask_of,
    objective,
)
from gfi_lightning.inversion.evidence import forward_passes, with_evidence
from gfi_lightning.inversion.masks import minmax
from gfi_lightning.inversion.network import Look, Network, several_ranks
from gfi_lightning.inversion.optimizer import joined
from gfi_lightning.inversion.recipes import Recipe
from gfi_lightning.inversion.results import Chunk
from gfi_lightning.inversion.scores import Question, ScoreFunction, scores_of_rows
from gfi_lightning.inversion.start import Start, Warm

Slope = Callable[[Chunk, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images of a chunk, their numbers in it, and their masks (N, 1, H, W) to the gradient of a stage's loss by these,
and to the pace at which the images go on, (N, 1).

So the network's graph never meets the mask's, and is gone before the next pass begins."""


def invert(
    network: Network, recipe: Recipe, images: Tensor, background: Tensor, look: Look, start: Tensor | None = None
) -> Chunk:
    """Stage 1 (equation 8): the part of each image that yields the same features.

    Args:
        network: to be explained.
        recipe: how.
        images: shape (N, C, H, W).
        background: the same shape.
        look: what the network saw in a forward pass over the images.
        start: an earlier ω, (N, K), see :class:`Start`; None: uniform.
    """
    maps = tuple(_without_dead(one, look.features) for one in look.maps)
    ranges = tuple(_range(one) if recipe.unit_range else torch.ones_like(one[:, :, :1, :1]) for one in maps)
    if recipe.unit_range:
        maps = tuple(map(minmax, maps))
    weights = tuple(one.new_full(one.shape[:2], recipe.initial_weight) for one in maps)
    rows = torch.arange(len(images), device=images.device)
    optimizers = tuple(map(recipe.optimizer.start, weights))
    signs = tuple(torch.ones_like(one, dtype=torch.int8) for one in weights)
    pace = torch.ones_like(weights[0][:, :1])
    chunk = Chunk(images, background, maps, ranges, look.output, len(images), rows, weights, signs, optimizers, pace)
    if start is not None:
        chunk = Warm.of(chunk, recipe, start, None).or_else(chunk)

    def slope(part: Chunk, numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        kept, _ = blend(part, mask)
        (gradient,) = gradients_by_images(
            lambda one: recipe.error(network.features(one), look.features[numbers]), [kept]
        )
        return gradient_by_mask(part, gradient) + recipe.inversion_area_penalty / mask[0].numel(), part.pace

    return _descend(chunk, recipe, slope, recipe.inversion_penalty, recipe.inversion_steps)


def refine(
    network: Network,
    recipe: Recipe,
    score: str | ScoreFunction,
    chunk: Chunk,
    question: Question,
    most: int,
    start: Start | None = None,
) -> dict[str, Tensor]:
    """Stage 2 (equation 9): the part that makes each target's score high, and without which it is low.

    Args:
        network: to be explained.
        recipe: how.
        score: of a target.
        chunk: the images after stage 1, one for each target.
        question: the targets, about the rows of the output that the chunk came from.
        most: images that may go through the network at once; one version of all does in any case.
        start: what was found before for each target; None: stage 1's ω, with the evidence.

    Returns:
        The fields of an :class:`~gfi_lightning.Explanation`, each of shape (P, ...).
    """
    chunk = _at_start(recipe, chunk, start, lambda: with_evidence(network, recipe, score, chunk, question, most))
    if not recipe.one_optimizer:
        chunk = replace(chunk, optimizers=tuple(map(recipe.optimizer.start, chunk.weights)))
    untouched = scores_of_rows(chunk.output, chunk.count, question, score)
    seen = untouched.new_empty(2, len(untouched))  # the scores of kept and removed images

    def wanted(versions: slice, numbers: Tensor, images: Tensor) -> Tensor:
        """What is to be high for the kept images and low for the removed ones, of some or both versions."""
        copies = versions.stop - versions.start
        asked, output = question[numbers].repeated(copies), network.output(images)
        values = objective(recipe, score, asked, output)
        is_score = callable(score) or not recipe.log_odds
        scores = values.detach() if is_score else values.detach().sigmoid()  # the probability of these log-odds
        # Each time, because this may be the last pass of some.
        seen[versions, numbers] = scores.to(seen).unflatten(0, (copies, -1))
        return values

    steps_before = chunk.optimizers[0].steps

    def slope(part: Chunk, numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        versions, gradients = list(blend(part, mask)), list[Tensor]()
        for some in at_once(2, len(numbers), most):
            gradients += gradients_by_images(partial(wanted, some, numbers), versions[some])
        kept, removed = gradients
        pace = part.pace
        if _asks_for_agreement(recipe, part) and part.optimizers[0].steps == steps_before:
            agreed = _pace_by_agreement(recipe, gradient_by_mask(part, kept), gradient_by_mask(part, removed))
            pace = torch.where(pace.isnan(), agreed.to(pace), pace)
        by_mask = gradient_by_mask(part, kept + recipe.removed_weight * removed)
        return recipe.target_area_penalty / mask[0].numel() - by_mask, pace

    chunk = _descend(chunk, recipe, slope, _target_penalty(recipe, score), recipe.target_steps)
    if recipe.target_steps == 0:
        with torch.no_grad():
            everyone = torch.arange(len(untouched), device=untouched.device)
            versions = list(blend(chunk, mask_of(chunk, recipe, chunk.weights)))
            for some in at_once(2, len(everyone), most):
                wanted(some, everyone, torch.cat(versions[some]))
    found = cleaned(heatmaps_of(chunk, recipe, chunk.weights), torch.cat(chunk.weights, 1), untouched, *seen)
    return found | {"signs": torch.cat(chunk.signs, 1)}


def _target_penalty(recipe: Recipe, score: str | ScoreFunction) -> float:
    multilabel = recipe.multilabel_target_penalty
    return multilabel if score == "sigmoid" and multilabel is not None else recipe.target_penalty


def _descend(chunk: Chunk, recipe: Recipe, slope: Slope, penalty: float, steps: int) -> Chunk:
    """Some steps from a chunk's ω; an image whose mask a step has moved by less than the tolerance takes no more."""
    moving, numbers = chunk, torch.arange(len(chunk.images), device=chunk.images.device)
    ended: list[tuple[Tensor, Chunk]] = []
    before: Tensor | None = None
    tolerance = 0.0 if several_ranks() else recipe.tolerance
    for _ in range(steps):
        if tolerance > 0:
            mask = mask_of(moving, recipe, moving.weights)
            if before is not None:
                moved = ~((mask - before).abs().mean((1, 2, 3)) < tolerance)
                if not moved.all():
                    ended.append((numbers[~moved], moving[~moved]))
                    moving, numbers, mask = moving[moved], numbers[moved], mask[moved]
                if len(numbers) == 0:
                    break
            before = mask
        moving = _step(moving, numbers, recipe, slope, penalty, steps)
    return _joined([*ended, (numbers, moving)], chunk, steps)


def _step(chunk: Chunk, numbers: Tensor, recipe: Recipe, slope: Slope, penalty: float, steps: int) -> Chunk:
    """One step of so many."""
    weights = tuple(one.detach().requires_grad_() for one in chunk.weights)
    mask = mask_of(chunk, recipe, weights)
    # Of the SUM of the images' losses: each row of ω then gets its own image's gradient and nothing else.
    by_mask, pace = slope(chunk, numbers, mask.detach())
    outputs, slopes = [mask], [by_mask.to(mask)]
    if penalty > 0:
        penalties = [one for one in map(recipe.penalty, weights) if one.requires_grad]
        outputs += penalties
        slopes += [torch.full_like(one, penalty) for one in penalties]
    gradients = torch.autograd.grad(outputs, weights, slopes)
    learning_rate = recipe.learning_rate * recipe.schedule(chunk.optimizers[0].steps, steps)
    triples = zip(chunk.optimizers, weights, gradients, strict=True)
    moved = [
        optimizer.step(one.detach(), gradient, learning_rate, pace.to(one)) for optimizer, one, gradient in triples
    ]
    optimizers, moved_weights = zip(*moved, strict=True)
    return replace(chunk, weights=moved_weights, optimizers=optimizers, pace=pace)


def _joined(parts: Sequence[tuple[Tensor, Chunk]], chunk: Chunk, steps: int) -> Chunk:
    """The chunk with the ω and the optimisers of its parts.

    These count the steps that were left out as taken, so that no image's stage 2 depends on the others of its batch.
    """
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([numbers for numbers, _ in parts]).argsort()
    layers = range(len(chunk.weights))
    return replace(
        chunk,
        weights=tuple(torch.cat([part.weights[layer] for _, part in parts])[order] for layer in layers),
        pace=torch.cat([part.pace for _, part in parts])[order],
        optimizers=tuple(
            joined([part.optimizers[layer] for _, part in parts], chunk.optimizers[layer].steps + steps)[order]
            for layer in layers
        ),
    )


def heatmaps_of(chunk: Chunk, recipe: Recipe, weights: Sequence[Tensor]) -> Tensor:
    """The mask as a picture: (N, H, W), float32 in [0, 1], zero where it means nothing."""
    with torch.no_grad():
        heatmaps = mask_of(chunk, recipe, weights).squeeze(1)
    finite = torch.isfinite(heatmaps.sum((1, 2)) + torch.cat(list(weights), 1).sum(1))
    return torch.where(finite[:, None, None], heatmaps, 0.0).clamp(0, 1).float()


def _at_start(recipe: Recipe, chunk: Chunk, start: Start | None, with_evidence: Callable[[], Chunk]) -> Chunk:
    """Where stage 2 begins: at what was found before, and else at stage 1's ω, with the evidence."""
    warm = None
    if start is not None and start.weights is not None:
        warm = Warm.of(chunk, recipe, start.weights, start.signs)
        if start.skips_evidence and warm.is_complete:
            return warm.chunk
    cold = with_evidence() if recipe.evidence_passes > 0 else chunk
    if _asks_for_agreement(recipe, cold):
        cold = replace(cold, pace=torch.full_like(cold.pace, torch.nan))  # the first step will tell
    return cold if warm is None else warm.or_else(cold)


def _asks_for_agreement(recipe: Recipe, chunk: Chunk) -> bool:
    return recipe.reference_agreement > 0 and len(chunk.maps) == 1


def _pace_by_agreement(recipe: Recipe, kept: Tensor, removed: Tensor) -> Tensor:
    """By what the learning rate is multiplied for each image, (N, 1), from two gradients by its mask, (N, 1, H, W)."""
    pace = agreement(kept, removed) / recipe.reference_agreement
    most = recipe.largest_learning_rate / recipe.learning_rate
    return torch.where(pace.isnan(), 1.0, pace.clamp(1, most))[:, None]


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """The cotangent of the angle between two gradients, as far as it is below a right one.

    Were both the same vector with noise of their own, much larger than it, this would be the ratio of their powers.

    Args:
        one: shape (N, ...).
        other: the same shape.

    Returns:
        (N,), 0 or positive; infinite, or by rounding very large, where both have the same direction; NaN where one of
        them is zero.
    """
    cosine = F.cosine_similarity(_relative(one), _relative(other)).clamp(0, 1)
    return cosine / (1 - cosine.square()).sqrt()


def _relative(values: Tensor) -> Tensor:
    """Values (N, ...) as (N, M), by the largest of each row: so their squares do not vanish."""
    flat = values.flatten(1)
    return flat / flat.abs().amax(1, keepdim=True)


def passes_of(recipe: Recipe, pairs: int, most: int, gives_patches: bool) -> tuple[int, int]:
    """How many forward passes stage 2 takes for the evidence, and for each of its steps.

    Args:
        recipe: how.
        pairs: of image and target, that are optimised together.
        most: images that may go through the network at once.
        gives_patches: see :class:`~gfi_lightning.inversion.network.Network`.
    """
    return forward_passes(recipe, pairs, most, gives_patches), len(at_once(2, pairs, most))


def cleaned(heatmaps: Tensor, weights: Tensor, score: Tensor, preserved: Tensor, removed: Tensor) -> dict[str, Tensor]:
    """The fields of an explanation; where there is no evidence the map is empty, and nothing is NaN."""
    finite = torch.isfinite(score) & torch.isfinite(preserved) & torch.isfinite(removed)
    heatmaps = torch.where(finite[:, None, None], heatmaps, 0.0)
    degenerate = ~heatmaps.flatten(1).any(1)
    fields = {"score": score, "preserved": preserved, "removed": removed, "weights": weights}
    cleaned = {
        name: torch.where(degenerate.view(-1, *[1] * (values.ndim - 1)), values.nan_to_num(0, 0, 0), values)
        for name, values in fields.items()
    }
    return {"heatmaps": heatmaps, "degenerate": degenerate, **cleaned}


def _without_dead(maps: Tensor, reference: Tensor) -> Tensor:
    """Feature maps, zeroed for the images whose features are not finite, or zero where they are compared."""
    flat = reference.flatten(1)
    alive = torch.isfinite(maps).flatten(1).all(1) & torch.isfinite(flat).all(1) & (flat != 0).any(1)
    return torch.where(alive[:, None, None, None], maps, 0.0)


def _range(maps: Tensor) -> Tensor:
    return maps.amax((2, 3), keepdim=True) - maps.amin((2, 3), keepdim=True)
