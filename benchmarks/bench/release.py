"""The authors' algorithm as they released it, in our own words: what guided feature inversion costs without care.

One image at a time; three forward passes in each of 80 steps, whether the loss needs them or not, and two before the
first; back-propagated into the network's weights as well. The library's recipe "release" gives the same maps.

Two things differ from the release: the background is blurred in the size that the network sees, not before resizing,
and one network is run up to its layer, where the release cuts a second one off there.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gfi_lightning.inversion.backgrounds import blur
from gfi_lightning.inversion.scores import target_scores

_STAGE_1, _STEPS = 11, 80
_LEARNING_RATE, _START = 0.01, 0.1
_PENALTIES = (5.0, 2.0)  # on ‖ω‖² in the two stages


def as_released(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str, score: str = "softmax") -> Tensor:
    """Heatmaps (N, H, W).

    Args:
        model: in eval mode; ``.grad`` of its parameters, which all require one meanwhile, is empty afterwards.
        images: (N, C, H, W).
        targets: (N,).
        layer: base and inversion layer.
        score: "softmax" or "sigmoid".
    """
    with _trainable(model):
        pairs = zip(images.split(1), targets.split(1), strict=True)
        return torch.cat([_explain_one(model, image, target, layer, score) for image, target in pairs])


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(True)
        yield
    finally:
        for parameter, required_grad in before:
            parameter.requires_grad_(required_grad)
        model.zero_grad(set_to_none=True)


def _explain_one(model: nn.Module, image: Tensor, target: Tensor, layer: str, score: str) -> Tensor:
    background = blur(image)
    features = _features(model, image, layer).detach()
    model(image)  # for the class that is predicted
    energy = features.square().sum()
    weights = image.new_full((1, features.shape[1], 1, 1), _START).requires_grad_()
    optimizer = torch.optim.Adam([weights], _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    for step in range(_STEPS):
        mask = _mask(weights, features, image)
        kept, removed = (image * one + background * (1 - one) for one in (mask, 1 - mask))
        error = (_features(model, kept, layer) - features).square().sum() / energy
        preserved, lost = (target_scores(model(one), target, score).sum() for one in (kept, removed))
        loss = error if step < _STAGE_1 else lost - preserved
        optimizer.zero_grad()
        (loss + _PENALTIES[step >= _STAGE_1] * weights.square().sum()).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            weights.clamp_(min=0)
    return _mask(weights, features, image).detach().squeeze(1)


def _mask(weights: Tensor, features: Tensor, image: Tensor) -> Tensor:
    total = (weights * features).sum(1, keepdim=True)
    upsampled = F.interpolate(total, size=image.shape[2:], mode="bilinear", align_corners=True)
    return (upsampled - upsampled.min()) / upsampled.max()


class _ReachedError(Exception):
    """The features are there, and nothing behind them is run."""


def _features(model: nn.Module, image: Tensor, layer: str) -> Tensor:
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(output)
        raise _ReachedError

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with suppress(_ReachedError):
            model(image)
    finally:
        handle.remove()
    return found[0]
