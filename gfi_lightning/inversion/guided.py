"""Guided feature inversion over a batch of images (Du, Liu, Song, Hu: KDD 2018, arXiv 1804.00506)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError
from gfi_lightning.guard import undisturbed
from gfi_lightning.inversion.backgrounds import Background, background_function
from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.network import Forward, Network
from gfi_lightning.inversion.optimizer import Adam
from gfi_lightning.inversion.recipes import Recipe, find_recipe
from gfi_lightning.inversion.results import Chunk, Explanation, Inversion, concatenate
from gfi_lightning.inversion.scores import (
    ScoreFunction,
    check_score,
    check_targets,
    describe,
    log_odds,
    predicted_classes,
    scores_of_rows,
    target_scores,
)

_LARGEST_CHUNK = 32
# On two CPU cores MobileNetV2 at 224 × 224 takes twice as long for 16 images at once as for twice 8.
_LARGEST_CHUNK_ON_CPU = 400_000  # pixels


class GuidedFeatureInversion:
    """Explains a classifier's decisions by the part of the image that its feature maps hold on to.

    A mask is built from the base layer's own feature maps, m = Σ_k ω_k A_k (equations 6 and 7), and only the
    channel weights ω ≥ 0 are optimised. Stage 1 (equation 8) finds the part of the image that yields the
    same features at the inversion layer; stage 2 (equation 9) refines it until it alone makes the target
    score high, and what is left makes it score low.

    Images are independent of each other, and the model is left as it was found: modes, parameters, gradients,
    buffers and random states.

    Args:
        model: any classifier; it is explained in eval mode.
        layer: the base layer, whose feature maps make up the mask: a dotted module name or a module. None:
            the last feature map with more than one position before pooling or flattening, found by the first
            forward pass and announced in one log line.
        inversion_layer: where stage 1 compares features; None: the base layer.
        recipe: "default", "paper", "release" or a :class:`Recipe`.
        background: what replaces the removed parts: "blur", "mean", "noise" or a callable from images
            (N, C, H, W) to images of the same shape. See :mod:`gfi_lightning.inversion.backgrounds`.
        score: "softmax", "sigmoid" (independent labels; or a single logit, class 1 against class 0), or a
            callable from the model's output and the targets (N,) to one number each (N,).
        chunk_size: images, or pairs of image and target, that are optimised at once; None: at most 32, and on
            a CPU no more than 400,000 pixels.
            In float32 the optimisation amplifies rounding, which differs between chunk sizes: compare maps
            that were made with the same one.
        generator: for the "noise" background; the same seed gives the same map.
        forward: how to call the model, (model, images) → output; None: ``model(images)``.

    Raises:
        UsageError: an argument is unknown or out of range.

    Example:
        >>> import torch
        >>> from torchvision.models import squeezenet1_1
        >>> gfi = GuidedFeatureInversion(squeezenet1_1(), layer="features.12")
        >>> explanation = gfi.explain(torch.rand(2, 3, 64, 64), torch.tensor([[3, 5], [3, 7]]))
        >>> explanation.heatmaps.shape
        torch.Size([2, 2, 64, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        inversion_layer: str | nn.Module | None = None,
        recipe: str | Recipe = "default",
        background: str | Background = "blur",
        score: str | ScoreFunction = "softmax",
        chunk_size: int | None = None,
        generator: torch.Generator | None = None,
        forward: Forward | None = None,
    ) -> None:
        check_score(score)
        if chunk_size is not None and chunk_size < 1:
            raise UsageError(f"chunk_size={chunk_size} must be at least 1, or None.")
        self.recipe = find_recipe(recipe)
        self.score = score
        self._network = Network(model, layer, inversion_layer, forward)
        self._background = background_function(background, generator)
        self.chunk_size = chunk_size

    @property
    def layer(self) -> str | None:
        """The name of the base layer; None until the first explanation has found it."""
        return self._network.layer

    def explain(self, images: Tensor, targets: Tensor | int | None = None) -> Explanation:
        """Explain why the model gives each image's targets their scores.

        Args:
            images: shape (N, C, H, W), floating point, as the model sees them.
            targets: class indices, shape (N,), (N, T), or one for all; None: the predicted class.

        Returns:
            The maps and scores, on the images' device.

        Raises:
            UsageError: images, targets, layers or the model's output cannot be used.
        """
        inversion = self.invert(images)
        if targets is None:
            targets = inversion.predicted
        if targets is None:
            raise UsageError("targets=None needs logits to predict the class from, and the model's output has none.")
        return self.refine(inversion, targets)

    def attribute(self, inputs: Tensor, target: Tensor | int | None = None) -> Tensor:
        """The heatmaps in Captum's calling convention: one target per image, shape (N, 1, H, W)."""
        heatmaps = self.explain(inputs, target).heatmaps
        if heatmaps.ndim != 3:
            raise UsageError(f"attribute() takes one target per image, and target has shape {heatmaps.shape[:-2]}.")
        return heatmaps[:, None]

    def invert(self, images: Tensor) -> Inversion:
        """Stage 1 (equation 8): the smallest part of each image that yields the same features.

        Args:
            images: shape (N, C, H, W), floating point, as the model sees them.

        Raises:
            UsageError: images, layers or the model's output cannot be used.
        """
        _check_images(images)
        with undisturbed(self._network.model):
            images = images.detach().clone()  # autograd refuses inference tensors, which Lightning's loops hand out
            background = self._background_of(images)
            chunk_size = self.chunk_size_for(images)
            parts = zip(images.split(chunk_size), background.split(chunk_size), strict=True)
            chunks = tuple(self._invert_chunk(*part) for part in parts)
            foreground = torch.cat([self._heatmaps(chunk, chunk.weights) for chunk in chunks])
            predicted, score = self._predicted(chunks)
            return Inversion(foreground, predicted, score, chunks)

    def refine(self, inversion: Inversion, targets: Tensor | int) -> Explanation:
        """Stage 2 (equation 9): the part that makes each target's score high, and without which it is low.

        Args:
            inversion: what :meth:`invert` returned.
            targets: class indices, shape (N,), (N, T), or one for all.

        Raises:
            UsageError: the targets have another shape, or are none of the model's classes.
        """
        with undisturbed(self._network.model):
            targets = _as_targets(targets, inversion.foreground)
            columns = targets.reshape(len(targets), -1).split(inversion.chunk_sizes)
            pairs = [
                self._refine_pairs(chunk[rows], pair_targets)
                for chunk, chunk_targets in zip(inversion.chunks, columns, strict=True)
                for rows, pair_targets in self._pairs(chunk, chunk_targets)
            ]
        fields = {name: part.reshape(targets.shape + part.shape[1:]) for name, part in concatenate(pairs).items()}
        return Explanation(foreground=inversion.foreground, targets=targets, **fields)

    def chunk_size_for(self, images: Tensor) -> int:
        """How many images of this size, (N, C, H, W), are optimised at once."""
        if self.chunk_size is not None:
            return self.chunk_size
        height, width = image_size(images)
        most = _LARGEST_CHUNK_ON_CPU // (height * width) if images.device.type == "cpu" else _LARGEST_CHUNK
        return min(max(most, 1), _LARGEST_CHUNK)

    def _background_of(self, images: Tensor) -> Tensor:
        # Autocast would blur in half precision.
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            background = self._background(images)
        if not isinstance(background, Tensor) or background.shape != images.shape:
            raise UsageError(
                f"background= returned {describe(background)}; expected are images of shape {tuple(images.shape)}."
            )
        return background.to(images)

    def _invert_chunk(self, images: Tensor, background: Tensor) -> Chunk:
        recipe = self.recipe
        maps, reference, output = self._network.look(images)
        maps = _without_dead(maps, reference)
        weights = maps.new_full(maps.shape[:2], recipe.initial_weight)
        rows = torch.arange(len(images), device=images.device)
        chunk = Chunk(images, background, maps, output, len(images), rows, weights, Adam.start(weights))
        optimizer = chunk.optimizer
        for _ in range(recipe.inversion_steps):
            weights.requires_grad_()
            mask = self._mask(chunk, weights)
            kept, _ = _blend(chunk, mask)
            loss = recipe.error(self._network.features(kept), reference)
            loss = loss + recipe.inversion_penalty * recipe.penalty(weights)
            loss = loss + recipe.inversion_area_penalty * mask.mean((1, 2, 3))
            weights, optimizer = self._descend(loss, weights, optimizer)
        return replace(chunk, weights=weights, optimizer=optimizer)

    def _pairs(self, chunk: Chunk, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the chunk and a target for each, at most a chunk of them at once; targets: (n, T)."""
        check_targets(targets, chunk.output, self.score)
        owners = torch.arange(len(targets), device=targets.device).repeat_interleave(targets.shape[1])
        chunk_size = self.chunk_size_for(chunk.images)
        return zip(owners.split(chunk_size), targets.flatten().split(chunk_size), strict=True)

    def _refine_pairs(self, chunk: Chunk, targets: Tensor) -> dict[str, Tensor]:
        recipe, weights = self.recipe, chunk.weights
        optimizer = chunk.optimizer if recipe.one_optimizer else Adam.start(weights)
        objective = log_odds if recipe.log_odds else target_scores
        both = torch.cat([targets, targets])
        for _ in range(recipe.target_steps):
            weights.requires_grad_()
            mask = self._mask(chunk, weights)
            output = self._network.output(torch.cat(_blend(chunk, mask)))
            kept, removed = objective(output, both, self.score).chunk(2)
            loss = recipe.removed_weight * removed - kept
            loss = loss + self._target_penalty * recipe.penalty(weights)
            loss = loss + recipe.target_area_penalty * mask.mean((1, 2, 3))
            weights, optimizer = self._descend(loss, weights, optimizer)
        if recipe.target_steps == 0:
            with torch.no_grad():
                output = self._network.output(torch.cat(_blend(chunk, self._mask(chunk, weights))))
        preserved, removed = target_scores(output, both, self.score).detach().chunk(2)
        score = scores_of_rows(chunk.output, chunk.count, chunk.rows, targets, self.score)
        return _cleaned(self._heatmaps(chunk, weights), weights, score, preserved, removed)

    @property
    def _target_penalty(self) -> float:
        multilabel = self.recipe.multilabel_target_penalty
        return multilabel if self.score == "sigmoid" and multilabel is not None else self.recipe.target_penalty

    def _descend(self, loss: Tensor, weights: Tensor, optimizer: Adam) -> tuple[Tensor, Adam]:
        # The SUM of the images' losses: each row of ω then gets its own image's gradient and nothing else.
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        learning_rate = self.recipe.learning_rate * 0.5 ** (optimizer.steps // self.recipe.halve_every)
        optimizer, weights = optimizer.step(weights.detach(), gradient, learning_rate)
        return weights.clamp(min=0), optimizer

    def _mask(self, chunk: Chunk, weights: Tensor) -> Tensor:
        return self.recipe.mask(_weighted_sum(chunk, weights), image_size(chunk.images))

    def _heatmaps(self, chunk: Chunk, weights: Tensor) -> Tensor:
        """The mask as a picture: (N, H, W), float32 in [0, 1], zero where it means nothing."""
        heatmaps = self._mask(chunk, weights).squeeze(1)
        finite = torch.isfinite(heatmaps).flatten(1).all(1) & torch.isfinite(weights).all(1)
        return torch.where(finite[:, None, None], heatmaps, 0.0).clamp(0, 1).float()

    def _predicted(self, chunks: tuple[Chunk, ...]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        try:
            predicted = [predicted_classes(chunk.output, self.score) for chunk in chunks]
        except UsageError:
            if callable(self.score):  # which may need no logits
                return None, None
            raise
        pairs = zip(chunks, predicted, strict=True)
        scores = [target_scores(chunk.output, classes, self.score) for chunk, classes in pairs]
        return torch.cat(predicted), torch.cat(scores)


def _weighted_sum(chunk: Chunk, weights: Tensor) -> Tensor:
    """Σ_k ω_k A_k (equation 6), shape (N, 1, h, w)."""
    # Not a matrix product, which autocast would round to half precision.
    return (weights[:, :, None, None] * chunk.maps).sum(1, keepdim=True)


def _blend(chunk: Chunk, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The kept image Φ (equation 2) and the removed image Φ_bg (equation 4)."""
    kept = chunk.images * mask + chunk.background * (1 - mask)
    removed = chunk.images * (1 - mask) + chunk.background * mask
    return kept.to(chunk.images.dtype), removed.to(chunk.images.dtype)


def _cleaned(heatmaps: Tensor, weights: Tensor, score: Tensor, preserved: Tensor, removed: Tensor) -> dict[str, Tensor]:
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


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise UsageError(
            f"images are {describe(images)}; expected is a floating point tensor (N, C, H, W), as the model sees it."
        )


def _as_targets(targets: Tensor | int, foreground: Tensor) -> Tensor:
    given = torch.as_tensor(targets, device=foreground.device)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise UsageError(f"targets are {describe(given)}; expected are class indices (integers).")
    if given.ndim == 0:
        given = given.expand(len(foreground))
    if given.ndim not in (1, 2) or len(given) != len(foreground) or given.numel() == 0:
        raise UsageError(
            f"targets have shape {tuple(given.shape)} for {len(foreground)} images: "
            f"expected is ({len(foreground)},) or ({len(foreground)}, T)."
        )
    return given.long().clone()
