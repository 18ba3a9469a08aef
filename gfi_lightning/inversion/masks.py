"""Masks, made from weighted sums of feature maps (equations 6 and 7 of Du et al. 2018)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.separable import upsample, upsample_backward

Size = tuple[int, int]


def normalize_then_upsample(weighted_sum: Tensor, size: Size) -> Tensor:
    """Min-max normalise per image, then upsample (equations 6 and 7): a mask in [0, 1].

    Args:
        weighted_sum: Σ_k ω_k A_k, shape (N, 1, h, w).
        size: (H, W) of the image.

    Returns:
        Shape (N, 1, H, W); all zero for an image whose weighted sum is constant.
    """
    return upsample(minmax(weighted_sum), size, align_corners=False)


def upsample_then_divide_by_maximum(weighted_sum: Tensor, size: Size) -> Tensor:
    """Upsample, then (m − min m) / max m, as the authors' code does it.

    The divisor is the maximum, not the range, so the mask stays below 1 by min m / max m; where feature maps
    are negative it can leave [0, 1].

    Args:
        weighted_sum: Σ_k ω_k A_k, shape (N, 1, h, w).
        size: (H, W) of the image.

    Returns:
        Shape (N, 1, H, W); all zero for an image whose weighted sum is constant or nowhere positive.
    """
    upsampled = upsample(weighted_sum, size, align_corners=True)
    low, high = _limits(upsampled)
    return _divide_or_zero(upsampled - low, high, evident=has_range(weighted_sum) & (high > 0))


def mask_from(
    weights: Sequence[Tensor],
    maps: Sequence[Tensor],
    size: Size,
    mask: Callable[[Tensor, Size], Tensor] = normalize_then_upsample,
    coarsest_power: float = 1.0,
) -> Tensor:
    """The mask that base layers make up: of several layers the product of their masks, min-max normalised.

    A layer whose weighted sum is constant tells nothing, and is left out where another one tells something.

    Args:
        weights: ω of each layer, (N, K), the coarsest last.
        maps: its feature maps A_k, (N, K, h, w).
        size: (H, W) of the image.
        mask: from one layer's weighted sum to its mask.
        coarsest_power: the power of the coarsest layer's mask in the product.

    Returns:
        Shape (N, 1, H, W).
    """
    if len(maps) > 1 and mask is normalize_then_upsample:
        return cast(Tensor, _NormalizedProduct.apply(size, coarsest_power, *weights, *maps))
    *finer, coarsest = [mask(_weighted_sum(*one), size) for one in zip(weights, maps, strict=True)]
    if not finer:
        return coarsest
    first, *others = [torch.where(_tells(one), one, 1.0) for one in (*finer, coarsest**coarsest_power)]
    return minmax(math.prod(others, start=first))


def _weighted_sum(weights: Tensor, maps: Tensor) -> Tensor:
    # Not a matrix product, which a GPU may be set to round, to TF32.
    return (weights[:, :, None, None] * maps).sum(1, keepdim=True)


def _tells(mask: Tensor) -> Tensor:
    """Whether each mask (N, 1, H, W) is not zero everywhere: (N, 1, 1, 1), bool."""
    return mask.detach().amax((2, 3), keepdim=True) > 0


class _NormalizedProduct(torch.autograd.Function):
    """:func:`mask_from` of several layers' normalised masks, in half the operations that its parts would take.

    Few images cost mostly by the number of operations, whatever they do. Min-max of a product does not depend on the
    factors' scale: no gradient flows through the range that a factor was divided by.
    """

    @staticmethod
    def forward(ctx: Any, size: Size, power: float, *weights_and_maps: Tensor) -> Tensor:
        layers = len(weights_and_maps) // 2
        weights, maps = weights_and_maps[:layers], weights_and_maps[layers:]
        sums = [_scaled(_weighted_sum(*one), if_constant=1.0) for one in zip(weights, maps, strict=True)]
        *finer, coarsest = [upsample(scaled, size, align_corners=False) for scaled, _ in sums]
        factors = [*finer, coarsest**power]
        product, span = _scaled(math.prod(factors[1:], start=factors[0]), if_constant=0.0)
        ctx.power, ctx.layers = power, layers
        ctx.save_for_backward(product, span, coarsest, *factors, *maps, *(one for pair in sums for one in pair))
        return product

    @staticmethod
    @once_differentiable  # else a gradient of the gradient would be wrong, or fail at what works in place
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        product, span, coarsest, *saved = ctx.saved_tensors
        factors, maps, sums = saved[: ctx.layers], saved[ctx.layers : 2 * ctx.layers], saved[2 * ctx.layers :]
        gradient = _through_minmax(gradient, product, span)
        by_masks = [math.prod(factors[:one] + factors[one + 1 :], start=gradient) for one in range(ctx.layers)]
        by_masks[-1] = by_masks[-1] * (ctx.power * coarsest ** (ctx.power - 1))
        by_weights = []
        for by_mask, one, scaled, its_span in zip(by_masks, maps, sums[::2], sums[1::2], strict=True):
            by_sum = upsample_backward(by_mask, image_size(one), align_corners=False)
            by_weights.append((_through_shift(by_sum, scaled, its_span) * one).sum((2, 3)))
        return None, None, *by_weights, *[None] * ctx.layers


def minmax(maps: Tensor) -> Tensor:
    """Each map of (N, K, h, w) scaled to [0, 1]; a constant one is all zero."""
    return cast(Tensor, _MinMax.apply(maps))


class _MinMax(torch.autograd.Function):
    """y = (x − low) / (high − low), with a way back in half the operations that its parts would take.

    As theirs, it shares the gradient of low, and of high, among all positions where that is attained.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        scaled, span = _scaled(maps, if_constant=0.0)
        ctx.save_for_backward(scaled, span)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _through_minmax(gradient, *ctx.saved_tensors)


def _scaled(maps: Tensor, if_constant: float) -> tuple[Tensor, Tensor]:
    """Each map of (N, K, h, w) scaled to [0, 1], and its range (N, K, 1, 1), infinite for a constant one."""
    low, high = _limits(maps)
    span = high - low
    constant = _is_more_than_rounding(span, low, high).logical_not_()  # which also holds where one is not finite
    span.masked_fill_(constant, math.inf)
    return (maps - low).div_(span).masked_fill_(constant, if_constant), span


def _through_minmax(gradient: Tensor, scaled: Tensor, span: Tensor) -> Tensor:
    """The gradient by maps, from that by what :func:`_scaled` made of them."""
    lowest, highest = _where_it_is(0, scaled), _where_it_is(1, scaled)
    gradient = (gradient / span).masked_fill_(span == math.inf, 0.0)
    by_span = _sum(gradient * scaled)
    gradient.addcmul_(lowest, (_sum(gradient) - by_span).div_(_sum(lowest)), value=-1)
    # A constant map attains its highest value nowhere.
    return gradient.addcmul_(highest, by_span.div_(_sum(highest).clamp_(min=1)), value=-1)


def _through_shift(gradient: Tensor, scaled: Tensor, span: Tensor) -> Tensor:
    """As :func:`_through_minmax`, where nothing depends on the range."""
    lowest = _where_it_is(0, scaled)
    gradient = (gradient / span).masked_fill_(span == math.inf, 0.0)
    return gradient.addcmul_(lowest, _sum(gradient).div_(_sum(lowest).clamp_(min=1)), value=-1)


def _where_it_is(value: float, scaled: Tensor) -> Tensor:
    """1 where a scaled map is lowest (0) or highest (exactly 1, as a number divided by itself is), else 0."""
    return torch.eq(scaled, value, out=torch.empty_like(scaled))


def _sum(maps: Tensor) -> Tensor:
    return maps.sum((2, 3), keepdim=True)


def has_range(maps: Tensor) -> Tensor:
    """Whether each map of (N, K, h, w) differs over its positions by more than rounding does: (N, K, 1, 1), bool."""
    low, high = _limits(maps.detach())
    return _is_more_than_rounding(high - low, low, high)


def _limits(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)


def _is_more_than_rounding(span: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return span > 64 * torch.finfo(span.dtype).eps * torch.hypot(low, high)


def _divide_or_zero(numerator: Tensor, denominator: Tensor, evident: Tensor) -> Tensor:
    # The denominator is replaced before dividing: a NaN that `where` discards still poisons the gradient.
    quotient = numerator / torch.where(evident, denominator, 1.0)
    return torch.where(evident, quotient, 0.0)
