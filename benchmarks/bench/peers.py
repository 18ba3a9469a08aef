"""Other methods, as captum and pytorch-grad-cam offer them, and two that look at nothing.

Each takes (model, images (N, C, H, W), targets (N,)) and returns heatmaps (N, H, W), float32, ≥ 0, on the CPU or
the images' device. Models are in eval mode; ``.grad``, which some fill, is empty afterwards. Scores are logits, which
is what these libraries take by default.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial

import pytorch_grad_cam
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]

_ROWS = 8  # so many images go through the network at once; more take longer on a CPU, whose caches they leave


def centre(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A Gaussian in the middle of the image, whatever is on it; its standard deviation is a quarter of each side."""
    height, width = images.shape[2:]
    rows, columns = (torch.linspace(-2, 2, size).square() for size in (height, width))
    return torch.exp(-0.5 * (rows[:, None] + columns)).expand(len(images), height, width).clone()


def uniform(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str) -> Tensor:
    """The sum of a layer's feature maps, less its minimum: guided feature inversion's mask before any optimisation."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    total = outputs[-1].sum(1, keepdim=True)
    return _upsampled(total - total.amin((2, 3), keepdim=True), images)


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) by captum, its positive part, upsampled bilinearly."""
    explainer = LayerGradCam(model, model.get_submodule(layer))
    maps = explainer.attribute(images, targets, relu_attributions=True).detach()
    model.zero_grad(set_to_none=True)
    return _upsampled(maps, images)


def cam_of_library(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str, kind: str) -> Tensor:
    """A class activation map by pytorch-grad-cam, as the library scales it: least 0, largest 1."""
    cam = getattr(pytorch_grad_cam, kind)(model, [model.get_submodule(layer)])
    cam.batch_size = _ROWS
    try:
        # Not as a context, which swallows IndexErrors; and ScoreCAM draws progress bars.
        with redirect_stderr(io.StringIO()):
            maps = cam(images, [ClassifierOutputTarget(target) for target in targets.tolist()])
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
    return torch.from_numpy(maps)


def score_cam(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str) -> Tensor:
    """ScoreCAM (Wang et al. 2020), image by image: all masked copies of one are held at once."""
    explain = partial(cam_of_library, model, layer=layer, kind="ScoreCAM")
    with torch.no_grad():
        return torch.cat([explain(*pair) for pair in zip(images.split(1), targets.split(1), strict=True)])


def integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017) from 0, 50 steps: the sum of |.| over channels."""
    explainer = IntegratedGradients(model)
    attributions = explainer.attribute(images, target=targets, n_steps=50, internal_batch_size=_ROWS)
    return attributions.detach().abs().sum(1).float()


def occlusion(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Occlusion (Zeiler & Fergus 2014) by squares of 1/7 of the side, in steps of half a square, set to 0.

    The positive part: where covering lowers the score.
    """
    channels, side = images.shape[1], max(min(images.shape[2:]) // 7, 1)
    stride = max(side // 2, 1)
    with torch.no_grad():
        attributions = Occlusion(model).attribute(
            images,
            (channels, side, side),
            strides=(channels, stride, stride),
            target=targets,
            perturbations_per_eval=max(_ROWS // len(images), 1),
        )
    return attributions.mean(1).relu().float()


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps.float(), size=images.shape[2:], mode="bilinear", align_corners=False).squeeze(1)
