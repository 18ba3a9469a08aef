"""Recipes: every constant of guided feature inversion, as data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError, check_count
from gfi_lightning.inversion.masks import Size, normalize_then_upsample, upsample_then_divide_by_maximum
from gfi_lightning.inversion.optimizer import Adam, Multiplicative, Optimizer

Schedule = Callable[[int, int], float]
if TYPE_CHECKING:
    OptimizerClass = type[Optimizer]
else:
    OptimizerClass = type  # LightningCLI cannot ask a class whether it follows a protocol


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


def halved_every_10(step: int, steps: int) -> float:
    """1, halved after every ten steps."""
    return 0.5 ** (step // 10)


def cosine(step: int, steps: int) -> float:
    """From 1 towards 0 along a cosine."""
    return 0.5 + 0.5 * math.cos(math.pi * step / steps)


_SMALLEST = {"resolutions": 1, "inversion_steps": 0, "target_steps": 0, "evidence_passes": 0}
_POSITIVE, _NOT_NEGATIVE, _ANY = "a positive number", "a number, at least 0", "a finite number"
_NUMBERS = {
    **dict.fromkeys(("initial_weight", "learning_rate", "largest_learning_rate", "coarsest_power"), _POSITIVE),
    **dict.fromkeys(("evidence_noise", "evidence_against", "tolerance"), _NOT_NEGATIVE),
    **dict.fromkeys(("reference_signal_to_noise", "reference_agreement"), _NOT_NEGATIVE),
    **dict.fromkeys(("inversion_penalty", "target_penalty", "multilabel_target_penalty"), _NOT_NEGATIVE),
    **dict.fromkeys(("removed_weight", "inversion_area_penalty", "target_area_penalty"), _ANY),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the channel weights ω are optimised. Change one with :func:`dataclasses.replace`.

    Stage 1 minimises ``error + γ · penalty(ω) + α · mean(m)`` (equations 8 and 3), stage 2
    ``−f_c(Φ) + λ · f_c(Φ_bg) + δ · penalty(ω) + β · mean(m)`` (equations 9 and 5), both with ω ≥ 0.
    (With ``evidence_passes``, some ω_k A_k are subtracted in the mask.)

    Attributes:
        resolutions: how many base layers are looked for where none is given, each of twice the next one's
            resolution. The mask is the product of their masks.
        inversion_steps: steps of stage 1, class-agnostic.
        target_steps: steps of stage 2, for one target class; 0: stage 2 is left where it starts.
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
        unit_range: each feature map is scaled to [0, 1] in each image, so that ω means the same for all.
        initial_weight: ω of every channel at the start.
        evidence_passes: stage 2 starts from the evidence for the target: ω is multiplied by the mean over
            positions of the gradient of f_c with respect to A_k, weighed by A_k. In the coarsest layer a feature map
            that speaks against the target is subtracted, in finer ones left out. The gradient is averaged over so
            many passes each way; 0: ω stays as stage 1 left it.
        evidence_noise: of the images in those passes, as a share of each image's range. The noise is Gaussian and
            always the same; it is added in one pass and subtracted in the next (SmoothGrad, Smilkov et al. 2017).
        evidence_by_mask: where the module of some base layer returns patches, as those of transformers do (tokens, or
            maps with the channels last), attention has mixed what positions know. There the mask is asked for evidence
            as well: for each feature map the mean of the gradient of f_c with respect to a mask that keeps half of
            everything, weighed by the map, less that gradient's mean over all positions. That takes one more pass each
            way, and a forward pass over the kept and the removed images that either kind of evidence leads to. Both
            kinds are scaled to norm 1 in each layer, and weighed by e^−L, with L, stage 2's loss (without the penalty
            on ω) where it would begin with the one or the other. Where one tells nothing, the other stands alone. Needs
            ``evidence_passes``.
        evidence_against: how much evidence against the target counts in the coarsest layer, beside that for it.
        coarsest_power: the power of the coarsest layer's mask in the product of several.
        optimizer: of ω, :class:`~gfi_lightning.inversion.optimizer.Adam` or
            :class:`~gfi_lightning.inversion.optimizer.Multiplicative`.
        learning_rate: of the optimiser.
        reference_signal_to_noise: the signal-to-noise ratio r of the feature maps' evidence at which stage 2 takes
            steps of learning_rate. For an image and target of another ratio they are √(r / this) times as large, so
            none at all where r is 0, and at most largest_learning_rate; r is that of
            :func:`~gfi_lightning.inversion.evidence.signal_to_noise` in the layer where it is lowest. All take the same
            steps where this is 0 or the passes are without noise; with one base layer, as then r may tell of nothing
            but the network's head; for images of one value, which get no noise; for those without evidence in some
            layer; and for those that start in all layers from an earlier ω, so that none depends on the others of its
            batch.
        reference_agreement: with one base layer, how far the kept and the removed image have to agree about the mask
            for stage 2 to take larger steps than those of learning_rate. With a, the
            :func:`~gfi_lightning.inversion.stages.agreement` of the gradients of f_c(Φ) and of −f_c(Φ_bg) by the mask
            at the first step, they are a / this times as large, if that is more than 1, and at most
            largest_learning_rate. All take the same steps where this is 0, and those that start from an earlier ω.
        largest_learning_rate: that these may lead to.
        schedule: by what the learning rate is multiplied, from the steps taken and the steps of the stage.
        one_optimizer: stage 2 goes on with the optimiser of stage 1, its state and its learning rate;
            otherwise it starts afresh.
        tolerance: a stage ends for an image as soon as a step has moved its mask, in [0, 1], by less than this on
            average; the others go on without it. 0: all steps are taken, as they always are among several ranks.

    Raises:
        UsageError: an attribute is out of range.
    """

    resolutions: int = 1
    inversion_steps: int
    target_steps: int
    mask: Callable[[Tensor, Size], Tensor] = normalize_then_upsample
    error: Callable[[Tensor, Tensor], Tensor] = relative_squared_error
    penalty: Callable[[Tensor], Tensor] = squared_l2
    inversion_penalty: float = 0.0
    target_penalty: float = 0.0
    multilabel_target_penalty: float | None = None
    removed_weight: float = 1.0
    inversion_area_penalty: float = 0.0
    target_area_penalty: float = 0.0
    log_odds: bool = False
    unit_range: bool = False
    initial_weight: float = 0.1
    evidence_passes: int = 0
    evidence_noise: float = 0.0
    evidence_by_mask: bool = False
    evidence_against: float = 1.0
    coarsest_power: float = 1.0
    optimizer: OptimizerClass = Adam
    learning_rate: float = 0.01
    reference_signal_to_noise: float = 0.0
    reference_agreement: float = 0.0
    largest_learning_rate: float = 1.0
    schedule: Schedule = halved_every_10
    one_optimizer: bool = False
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name, smallest in _SMALLEST.items():
            check_count(f"Recipe: {name}", getattr(self, name), smallest)
        for name, wanted in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name == "multilabel_target_penalty":
                continue
            is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or (wanted != _ANY and value < 0) or (wanted == _POSITIVE and value == 0):
                raise UsageError(f"Recipe: {name}={value!r} must be {wanted}.")
        if self.evidence_noise > 0 and self.evidence_passes % 2 == 1:
            raise UsageError(
                f"Recipe: evidence_passes={self.evidence_passes} must be even where evidence_noise is not 0, because "
                "noise is added in one pass and subtracted in the next. One pass without noise: evidence_passes=1, "
                "evidence_noise=0."
            )
        by_image = self.reference_signal_to_noise > 0 or self.reference_agreement > 0
        if by_image and self.largest_learning_rate < self.learning_rate:
            raise UsageError(
                f"Recipe: largest_learning_rate={self.largest_learning_rate} is below "
                f"learning_rate={self.learning_rate}: raise the first or lower the second."
            )


PAPER = Recipe(
    inversion_steps=10,
    target_steps=70,
    error=squared_error,
    penalty=l1,
    inversion_penalty=10.0,
    target_penalty=1.0,
    multilabel_target_penalty=10.0,
)
"""Algorithms 1 and 2 of the paper, with the constants of its section 4.1."""

RELEASE = Recipe(
    inversion_steps=11,
    target_steps=69,
    mask=upsample_then_divide_by_maximum,
    inversion_penalty=5.0,
    target_penalty=2.0,
    one_optimizer=True,
)
"""What the authors' released code does."""

DEFAULT = Recipe(
    resolutions=2,
    inversion_steps=2,
    target_steps=3,
    inversion_area_penalty=1.0,
    target_area_penalty=15.0,
    log_odds=True,
    unit_range=True,
    evidence_passes=4,
    evidence_noise=0.1,
    evidence_by_mask=True,
    evidence_against=0.95,
    coarsest_power=2.0,
    optimizer=Multiplicative,
    learning_rate=0.16,
    reference_signal_to_noise=2.5,
    reference_agreement=0.15,
    schedule=cosine,
)
"""The method without what ties the other two to one network: errors and steps are relative, the objective does not
saturate, and it is the mask's area that is kept small, not ω, which min-max makes meaningless. (Penalties on ω drive it
to 0, and the map with it, wherever the scores hardly depend on the image, as in an untrained network.) The coarse base
layer says which object, the finer one where it ends. Where a gradient changes with a little noise in the image, as it
does in large networks, many or large steps follow the noise; where it does not, as in small ones, they follow the
target. With one base layer it is the kept and the removed image that tell how far a step leads. And where attention has
mixed what positions know, the gradient by a mask tells as well which feature maps matter. docs/quality.md has the
figures."""

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
