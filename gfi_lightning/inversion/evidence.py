"""Where stage 2 begins: what each feature map has to say about the target, and how far its word can be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from gfi_lightning.inversion.backgrounds import with_noise
from gfi_lightning.inversion.blending import (
    at_once,
    blend,
    gradient_by_mask,
    gradients_by_images,
    mask_of,
    objective,
)
from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.masks import has_range
from gfi_lightning.inversion.network import Network
from gfi_lightning.inversion.optimizer import unit_norm
from gfi_lightning.inversion.recipes import Recipe
from gfi_lightning.inversion.results import Chunk
from gfi_lightning.inversion.scores import Question, ScoreFunction, at_least_float32
from gfi_lightning.inversion.separable import upsample_backward

Evidence = list[Tensor]
"""For each base layer, what each of its feature maps has to say about the target: (N, K)."""
Wanted = Callable[[Tensor], Tensor]
"""From any number of versions of some images, one behind the other, to what is to be high for each image of each."""


def with_evidence(
    network: Network, recipe: Recipe, score: str | ScoreFunction, chunk: Chunk, question: Question, most: int
) -> Chunk:
    """Stage 1's ω, multiplied by what each feature map has to say about the target; see :class:`Recipe`.

    Args:
        network: to be explained.
        recipe: how.
        score: of a target.
        chunk: the images after stage 1, one for each target.
        question: the targets.
        most: images that may go through the network at once; one version of all does in any case.
    """
    passes = _from_features(network, recipe, score, chunk, question, most)
    evidence = [one.mean(0) for one in passes]
    if _asks_the_mask(recipe, network.gives_patches):

        def wanted(images: Tensor) -> Tensor:
            copies = len(images) // len(chunk.images)
            values = objective(recipe, score, question.repeated(copies), network.output(images))
            return at_least_float32(values)

        evidence = _mixed(recipe, chunk, evidence, _from_mask(chunk, wanted), wanted, most)
    return replace(_started(recipe, chunk, evidence), pace=pace_by_noise(recipe, passes, chunk.images))


def forward_passes(recipe: Recipe, pairs: int, most: int, gives_patches: bool) -> int:
    """How many are made for the evidence.

    Args:
        recipe: how.
        pairs: of image and target, that are optimised together.
        most: images that may go through the network at once.
        gives_patches: see :class:`~gfi_lightning.inversion.network.Network`.
    """
    by_features = len(at_once(recipe.evidence_passes, pairs, most))
    return by_features + (1 + len(at_once(4, pairs, most)) if _asks_the_mask(recipe, gives_patches) else 0)


def _asks_the_mask(recipe: Recipe, gives_patches: bool) -> bool:
    return recipe.evidence_by_mask and recipe.evidence_passes > 0 and gives_patches


def _started(recipe: Recipe, chunk: Chunk, evidence: Evidence) -> Chunk:
    """Stage 1's ω, multiplied by the evidence."""
    evidence = list(map(_or_all_alike, evidence))
    # The coarsest layer says which class; in a finer one evidence against it is mostly noise.
    evidence[:-1] = [one.clamp(min=0) for one in evidence[:-1]]
    evidence[-1] = torch.where(evidence[-1] < 0, recipe.evidence_against * evidence[-1], evidence[-1])
    signs = [one.sign() for one in evidence]
    return replace(
        chunk,
        maps=tuple(maps * sign[:, :, None, None] for maps, sign in zip(chunk.maps, signs, strict=True)),
        signs=tuple(sign.to(torch.int8) for sign in signs),
        weights=tuple(unit_norm(weights * one.abs()) for weights, one in zip(chunk.weights, evidence, strict=True)),
    )


def _from_features(
    network: Network, recipe: Recipe, score: str | ScoreFunction, chunk: Chunk, question: Question, most: int
) -> list[Tensor]:
    """The evidence in each of several noisy copies, (P, N, K) for each layer; what is chance cancels out in the mean.

    Few images do not fill a processor: so many copies go through the network at once as may.
    """
    noisy = with_noise(chunk.images, recipe.evidence_passes, recipe.evidence_noise)
    found: list[list[Tensor]] = []
    for some in at_once(recipe.evidence_passes, len(chunk.images), most):
        copies = some.stop - some.start
        wanted = partial(objective, recipe, score, question.repeated(copies))
        gradients = network.gradients(torch.cat(list(islice(noisy, copies))), wanted)
        layers = zip(chunk.maps, chunk.ranges, gradients, strict=True)
        found.append([_mean(maps, one.unflatten(0, (copies, -1)), ranges) for maps, ranges, one in layers])
    return [torch.cat(one) for one in zip(*found, strict=True)]


def _from_mask(chunk: Chunk, wanted: Wanted) -> Evidence:
    """The evidence in the gradient by a mask that keeps half of everything, less what it is everywhere.

    There the kept and the removed image are the same: it is the first step of a descent from no mask at all. What is
    the same everywhere moves no mask, as that is normalised. Zero, so that it tells nothing, for images of one colour,
    and where the gradient is the same everywhere but for rounding.
    """
    half = torch.full_like(chunk.images[:, :1], 0.5)
    (gradient,) = gradients_by_images(wanted, [blend(chunk, half)[0]])
    by_mask, evidence = gradient_by_mask(chunk, gradient), []
    for maps in chunk.maps:
        by_position = upsample_backward(by_mask.to(maps), image_size(maps), align_corners=False)
        relative = by_position - by_position.mean((2, 3), keepdim=True)
        relative = torch.where(_varies(chunk.images) & has_range(by_position), relative, 0.0)
        evidence.append(_mean(maps, relative[None], torch.ones_like(maps[:, :, :1, :1]))[0])
    return evidence


def _varies(images: Tensor) -> Tensor:
    """Whether each image has more than one colour, (N, 1, 1, 1), bool: else only rounding tells it from its blur."""
    return (images.amax((2, 3), keepdim=True) > images.amin((2, 3), keepdim=True)).any(1, keepdim=True)


def _mixed(
    recipe: Recipe, chunk: Chunk, by_features: Evidence, by_mask: Evidence, wanted: Wanted, most: int
) -> Evidence:
    """The mean of two kinds of evidence, each weighed by e to the power of minus the loss that stage 2 has from it.

    Where one kind tells nothing about an image in a layer, the other stands for both.
    """
    pairs = [
        (torch.where(_tells(ours), ours, others), torch.where(_tells(others), others, ours))
        for ours, others in zip(by_features, by_mask, strict=True)
    ]
    kinds = [[_unit(_or_all_alike(one)) for one in kind] for kind in zip(*pairs, strict=True)]
    losses = _losses(recipe, [_started(recipe, chunk, kind) for kind in kinds], wanted, most)
    # NaN is as bad as it can be, and where both are the difference tells nothing.
    loss, loss_by_mask = (one.nan_to_num(torch.inf, torch.inf, -torch.inf) for one in losses)
    share = (loss - loss_by_mask).nan_to_num(0.0).sigmoid()[:, None]  # of that by the mask
    return [torch.lerp(ours, others, share.to(ours)) for ours, others in zip(*kinds, strict=True)]


def _losses(recipe: Recipe, starts: Sequence[Chunk], wanted: Wanted, most: int) -> list[Tensor]:
    """Stage 2's loss (equation 9) where it begins, without the penalty on ω: (N,) for each start of the same images."""
    with torch.no_grad():
        masks = [mask_of(start, recipe, start.weights) for start in starts]
        versions = [image for start, mask in zip(starts, masks, strict=True) for image in blend(start, mask)]
        parts = [versions[some] for some in at_once(len(versions), len(versions[0]), most)]
        values = [value for part in parts for value in wanted(torch.cat(part)).chunk(len(part))]
        areas = [recipe.target_area_penalty * mask.mean((1, 2, 3)) for mask in masks]
    return [
        area - kept + recipe.removed_weight * removed
        for kept, removed, area in zip(values[::2], values[1::2], areas, strict=True)
    ]


def pace_by_noise(recipe: Recipe, passes: Sequence[Tensor], images: Tensor) -> Tensor:
    """By what the learning rate is multiplied for each image, (N, 1), from the evidence of each layer, (P, N, K).

    That of the feature maps alone, which is what the passes tell.
    """
    # Behind a single layer there may be no more than pooling and a linear layer; without noise all passes agree.
    if len(passes) == 1 or recipe.evidence_noise == 0 or recipe.reference_signal_to_noise == 0:
        return torch.ones_like(passes[0][0, :, :1])
    ratio = torch.stack([signal_to_noise(one) for one in passes]).amin(0)
    most = recipe.largest_learning_rate / recipe.learning_rate
    pace = (ratio / recipe.reference_signal_to_noise).sqrt().clamp(max=most)
    flat = images.flatten(1)
    silent = pace.isnan() | (flat.amax(1) == flat.amin(1))  # the noise is a share of the image's range
    return torch.where(silent, 1.0, pace)[:, None]


def signal_to_noise(evidence: Tensor) -> Tensor:
    """The power of what several passes have in common, over that of what differs from pass to pass.

    It is (‖mean‖² − s² / P) / s², where that is positive, with s², the variance of a pass, summed over the channels.
    Were the passes independent, the numerator would be the signal's power without bias. The noise of ours comes in
    pairs of opposite sign, which leave less of it in the mean: so the ratio, if anything, is too low.

    Args:
        evidence: of each pass, (P, N, K), P at least 2.

    Returns:
        (N,), 0 or positive; infinite where the passes are equal, NaN where there is no evidence at all.
    """
    largest = evidence.abs().amax((0, 2), keepdim=True)
    relative = evidence / largest  # whose squares do not vanish
    noise = relative.var(0).sum(1)
    signal = relative.mean(0).square().sum(1) - noise / len(evidence)
    return signal.clamp(min=0) / noise


def _mean(maps: Tensor, gradients: Tensor, ranges: Tensor) -> Tensor:
    """The mean over the positions of each map of each of P gradients, weighed by the map: (P, N, K).

    Args:
        maps: (N, K, h, w), as they are in the mask.
        gradients: (P, N, K, h, w), or (P, N, 1, h, w) where all maps share one.
        ranges: what the maps were divided by, (N, K, 1, 1), where gradients are by the undivided ones; else ones.
    """
    mass = maps.sum((2, 3))
    return ranges[:, :, 0, 0] * (gradients * maps).sum((3, 4)) / torch.where(mass > 0, mass, 1.0)


def _tells(evidence: Tensor) -> Tensor:
    """Whether there is any, and all of it finite: (N, 1), bool, from (N, K)."""
    return torch.isfinite(evidence).all(1, keepdim=True) & (evidence != 0).any(1, keepdim=True)


def _or_all_alike(evidence: Tensor) -> Tensor:
    """Evidence (N, K); where a layer has none, in an untrained model say, every map counts as it is."""
    return torch.where(_tells(evidence), evidence, 1.0)


def _unit(evidence: Tensor) -> Tensor:
    """Evidence (N, K), not all zero, with norm 1."""
    return unit_norm(evidence / evidence.abs().amax(1, keepdim=True))  # whose squares do not vanish
