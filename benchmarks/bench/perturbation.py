"""A mask of meaningful perturbation, after Fong & Vedaldi (ICCV 2017, arXiv 1704.03296): the nearest kin.

Like guided feature inversion it looks for the part of the image that the score hangs on, by gradient descent on a
mask; but on the mask's own pixels, kept smooth by penalties, not on weights of feature maps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gfi_lightning.inversion.backgrounds import blur
from gfi_lightning.inversion.scores import target_scores


@dataclass(frozen=True)
class MeaningfulPerturbation:
    """The smallest smooth part of the image without which the score falls (the paper's deletion game, equation 5).

    Each image's mask minimises ``f_c(x kept where m = 1, blurred where m = 0) + l1 · Σ|1 − m| + tv · Σ|∇m|^β`` by
    Adam. It starts at 0.5; the paper starts from a disc that depends on the score.

    Attributes:
        grid: side of the mask, upsampled bilinearly.
        steps: one forward and one backward pass each.
        learning_rate: of Adam.
        l1: λ₁, by pixel of the mask.
        total_variation: λ₂.
        exponent: β.
        jitter: in each step the image is shifted by up to this many pixels, against artefacts; the same for all
            images of a batch, and the same every time.
        score: "softmax" or "sigmoid".
    """

    grid: int = 28
    steps: int = 300
    learning_rate: float = 0.1
    l1: float = 1e-4
    total_variation: float = 1e-2
    exponent: float = 3.0
    jitter: int = 4
    score: str = "softmax"

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """What must go: 1 − m, shape (N, H, W) in [0, 1]."""
        background = blur(images)
        mask = images.new_full((len(images), 1, self.grid, self.grid), 0.5).requires_grad_()
        optimizer = torch.optim.Adam([mask], self.learning_rate)
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            shift = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=generator).tolist()
            perturbed = self.perturbed(images, background, mask).roll(shift, (2, 3))
            score = target_scores(model(perturbed), targets, self.score)
            loss = (score + self.penalty(mask)).sum()  # of independent images
            (mask.grad,) = torch.autograd.grad(loss, mask)
            optimizer.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        return 1 - self.upsampled(mask.detach(), images).squeeze(1)

    def upsampled(self, mask: Tensor, images: Tensor) -> Tensor:
        """The mask in the images' resolution, shape (N, 1, H, W)."""
        return F.interpolate(mask, size=images.shape[2:], mode="bilinear", align_corners=False)

    def perturbed(self, images: Tensor, background: Tensor, mask: Tensor) -> Tensor:
        """The images where the mask is 1, the background where it is 0."""
        return torch.lerp(background, images, self.upsampled(mask, images))

    def penalty(self, mask: Tensor) -> Tensor:
        """What a mask (N, 1, h, w) costs, shape (N,): nothing where it is 1 everywhere."""
        area = (1 - mask).abs().sum((1, 2, 3))
        # The exponent's derivative at 0 is 0 only above 1, which β = 3 is.
        rough = mask.diff(dim=2).abs().pow(self.exponent).sum((1, 2, 3))
        rough = rough + mask.diff(dim=3).abs().pow(self.exponent).sum((1, 2, 3))
        return self.l1 * area + self.total_variation * rough
