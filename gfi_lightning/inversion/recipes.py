"""Recipes: every constant of guided feature inversion, as data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gfi_lightning.errors import UsageError

Size = tuple[int, int]


def normalize_then_upsample(weighted_sum: Tensor, size: Size) -> Tensor:
    """Min-max normalise per image, then upsample (equations 6 and 7): a mask in [0, 1].

    Args:
        weighted_sum: Σ_k ω_k A_k, shape (N, 1, h, w).
        size: (H, W) of the image.

    Returns:
        Shape (N, 1, H, W); all zero for an image whose weighted sum is constant.
    """
    low, high = weighted_sum.amin((2, 3), keepdim=True), weighted_sum.amax((2, 3), keepdim=True)
    mask = _divide_or_zero(weighted_sum - low, high - low, evident=has_range(weighted_sum))
    return F.interpolate(mask, size=size, mode="bilinear", align_corners=False)


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
    upsampled = F.interpolate(weighted_sum, size=size, mode="bilinear", align_corners=True)
    low, high = upsampled.amin((2, 3), keepdim=True), upsampled.amax((2, 3), keepdim=True)
    return _divide_or_zero(upsampled - low, high, evident=has_range(weighted_sum) & (high > 0))


def has_range(weighted_sum: Tensor) -> Tensor:
    """Whether a map differs over its positions by more than rounding does: shape (N, 1, 1, 1), bool."""
    low, high = weighted_sum.amin((2, 3), keepdim=True), weighted_sum.amax((2, 3), keepdim=True)
    rounding = 64 * torch.finfo(weighted_sum.dtype).eps * torch.maximum(low.abs(), high.abs())
    return high - low > rounding


def _divide_or_zero(numerator: Tensor, denominator: Tensor, evident: Tensor) -> Tensor:
    # The denominator is replaced before dividing: a NaN that `where` discards still poisons the gradient.
    quotient = numerator / torch.where(evident, denominator, 1.0)
    return torch.where(evident, quotient, 0.0)


def squared_error(features: Tensor, reference: Tensor) -> Tensor:
    """‖f(Φ) − f(x)‖² per image (equation 8); (N, ...) twice → (N,)."""
    return (features - reference).flatten(1).square().sum(1)


def relative_squared_error(features: Tensor, reference: Tensor) -> Tensor:
    """‖f(Φ) − f(x)‖² / ‖f(x)‖² per image, free of the layer's scale; (N, ...) twice → (N,)."""
    energy = reference.flatten(1).square().sum(1)
    return squared_error(features, reference) / torch.where(energy > 0, energy, 1.0)


def l1(weights: Tensor) -> Tensor:
    """‖ω‖₁ per image; (N, K) → (N,)."""
    return weights.abs().sum(1)


def squared_l2(weights: Tensor) -> Tensor:
    """‖ω‖₂² per image; (N, K) → (N,)."""
    return weights.square().sum(1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the channel weights ω are optimised. Change one with :func:`dataclasses.replace`.

    Both stages minimise with Adam, ω is clamped at 0 after each step, and the learning rate is halved after
    every ``halve_every`` steps. Stage 1 minimises ``error + γ · penalty(ω) + α · mean(m)`` (equations 8 and 3),
    stage 2 ``−f_c(Φ) + λ · f_c(Φ_bg) + δ · penalty(ω) + β · mean(m)`` (equations 9 and 5).

    Attributes:
        inversion_steps: steps of stage 1, class-agnostic.
        target_steps: steps of stage 2, for one target class; 0: the map of stage 1 is the heatmap.
        mask: from Σ_k ω_k A_k, shape (N, 1, h, w), and the image's (H, W) to the mask, shape (N, 1, H, W).
        error: from features of the kept image and of the image to the inversion error, shape (N,).
        penalty: from ω, shape (N, K), to its size, shape (N,).
        inversion_penalty: γ.
        target_penalty: δ.
        multilabel_target_penalty: δ where the score is a sigmoid; None: the same.
        removed_weight: λ.
        inversion_area_penalty: α.
        target_area_penalty: β.
        log_odds: f_c is the log-odds of the target, log p / (1 − p), instead of its probability p, whose
            gradient vanishes where the network is sure. A callable score is taken as it is.
        initial_weight: ω of every channel at the start.
        learning_rate: of Adam.
        halve_every: steps after which the learning rate is halved.
        one_optimizer: stage 2 goes on with the optimiser of stage 1, its moments and its learning rate;
            otherwise it starts afresh.
    """

    inversion_steps: int
    target_steps: int
    mask: Callable[[Tensor, Size], Tensor] = normalize_then_upsample
    error: Callable[[Tensor, Tensor], Tensor] = relative_squared_error
    penalty: Callable[[Tensor], Tensor] = squared_l2
    inversion_penalty: float
    target_penalty: float
    multilabel_target_penalty: float | None = None
    removed_weight: float = 1.0
    inversion_area_penalty: float = 0.0
    target_area_penalty: float = 0.0
    log_odds: bool = False
    initial_weight: float = 0.1
    learning_rate: float = 0.01
    halve_every: int = 10
    one_optimizer: bool = True

    def __post_init__(self) -> None:
        for name, smallest in (("inversion_steps", 0), ("target_steps", 0), ("halve_every", 1)):
            if getattr(self, name) < smallest:
                raise UsageError(f"Recipe({name}={getattr(self, name)}) must be at least {smallest}.")
        if self.learning_rate <= 0:
            raise UsageError(f"Recipe(learning_rate={self.learning_rate}) must be positive.")


PAPER = Recipe(
    inversion_steps=10,
    target_steps=70,
    mask=normalize_then_upsample,
    error=squared_error,
    penalty=l1,
    inversion_penalty=10.0,
    target_penalty=1.0,
    multilabel_target_penalty=10.0,
    one_optimizer=False,
)
"""Algorithms 1 and 2 of the paper, with the constants of its section 4.1."""

RELEASE = Recipe(
    inversion_steps=11,
    target_steps=69,
    mask=upsample_then_divide_by_maximum,
    error=relative_squared_error,
    penalty=squared_l2,
    inversion_penalty=5.0,
    target_penalty=2.0,
    one_optimizer=True,
)
"""What the authors' released code does."""

DEFAULT = Recipe(
    inversion_steps=5,
    target_steps=12,
    inversion_penalty=0.0,
    target_penalty=0.0,
    inversion_area_penalty=1.0,
    target_area_penalty=15.0,
    log_odds=True,
    learning_rate=0.05,
    one_optimizer=False,
)
"""The method without what ties the other two to one network: errors are relative, the objective does not saturate,
and it is the mask's area that is kept small, not ω, which min-max makes meaningless. (Penalties on ω drive it to 0,
and the map with it, wherever the scores hardly depend on the image, as in an untrained network.)"""

RECIPES = {"default": DEFAULT, "paper": PAPER, "release": RELEASE}


def find_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of that name, or the recipe itself.

    Raises:
        UsageError: there is none of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise UsageError(f"recipe={recipe!r} is unknown: use one of {', '.join(RECIPES)}, or a Recipe.")
    return RECIPES[recipe]
