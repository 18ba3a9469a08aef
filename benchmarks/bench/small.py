"""Small networks for images of 64 px, trained from scratch, as many people's are: a ResNet, a plain CNN, a ViT, a Swin.

``benchmarks/small_networks.py`` trains them; the environment variable GFI_SMALL_NETWORKS names its folder.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer

from bench.networks import Network, resize_and_normalize
from bench.progress import say
from gfi_lightning.errors import UsageError

FOLDER = "GFI_SMALL_NETWORKS"
CLASSES = "classes.json"
BATCH, MOST_SHIFT = 64, 6  # images, and px by which they are shifted in training

preprocess = resize_and_normalize(64, 0.5, 0.25)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(inputs, outputs, stride), *_convolution(outputs, outputs)[:-1])
        same = inputs == outputs and stride == 1
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else projection

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def small_resnet(classes: int) -> nn.Sequential:
    """Five residual blocks; feature maps of 32, 16 and 8 px."""
    blocks = [Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 64, 1), Residual(64, 128, 2)]
    return nn.Sequential(*_convolution(3, 32, 2), *blocks, Residual(128, 128, 1), *_head(128, classes))


def plain_cnn(classes: int) -> nn.Sequential:
    """Six convolutions with maximum pooling; feature maps of 64, 32, 16 and 8 px."""
    parts: list[nn.Module] = []
    for inputs, *outputs in ([3, 32], [32, 64], [64, 96, 96]):
        for output in outputs:
            parts += _convolution(inputs, output)
            inputs = output
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, *_convolution(96, 160), *_convolution(160, 160), *_head(160, classes))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class AsGrid(nn.Module):
    """A part of a transformer, whose patches pass another module as feature maps (N, K, h, w), and go on as they were.

    Other methods know no tokens, and ask this module for its maps.

    Args:
        part: gives tokens (N, 1 + h · w, K), the first of them the class token, or maps with the channels last.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.grid = part, nn.Sequential()  # no nn.Identity, which no search takes for a layer

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.part(images)
        if output.ndim == 4:
            return self.grid(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        patches = output[:, 1:].transpose(1, 2)
        grid = self.grid(patches.unflatten(2, (math.isqrt(patches.shape[2]), -1)))
        return torch.cat([output[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def small_vit(classes: int) -> nn.Module:
    """Six blocks of 64 patches and a class token, 128 channels."""
    sizes = {"image_size": 64, "patch_size": 8, "hidden_dim": 128, "mlp_dim": 256}
    model = VisionTransformer(num_layers=6, num_heads=4, num_classes=classes, **sizes)
    blocks = model.encoder.layers
    for name, block in list(blocks.named_children()):
        setattr(blocks, name, AsGrid(block))
    return model


def small_swin(classes: int) -> nn.Module:
    """Three stages of two blocks, of 48 to 192 channels; 16, 8 and 4 patches a side."""
    sizes = {"patch_size": [4, 4], "embed_dim": 48, "window_size": [4, 4]}
    model = SwinTransformer(depths=[2, 2, 2], num_heads=[2, 4, 8], num_classes=classes, **sizes)
    for stage in (1, 3, 5):  # between them patches are merged
        model.features[stage] = AsGrid(model.features[stage])
    return model


@dataclass(frozen=True)
class Kind:
    """A network and how it is trained.

    Attributes:
        build: from the number of classes to the network.
        epochs: of training.
        optimizer: of its parameters, with the largest learning rate.
        layers: that other methods explain by, the coarsest last; empty: what comes last, as of every network.
    """

    build: Callable[[int], nn.Module]
    epochs: int
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    layers: tuple[str, ...] = ()


_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
_ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
_VIT_LAYERS = (
    "encoder.layers.encoder_layer_3.grid",
    "encoder.layers.encoder_layer_4.grid",
)  # of block 5 the head reads no patch

KINDS = {
    "resnet": Kind(small_resnet, 14, _SGD),
    "plain": Kind(plain_cnn, 14, _SGD),
    "vit": Kind(small_vit, 30, _ADAMW, _VIT_LAYERS),
    "swin": Kind(small_swin, 25, _ADAMW, ("features.3.grid", "features.5.grid")),
}


def train(
    kind: str, images: Tensor, labels: Tensor, classes: int, epochs: int | None = None, seed: int = 0
) -> nn.Module:
    """A network of this kind after some epochs with one cycle of the learning rate, flips and shifts.

    Args:
        kind: of KINDS.
        images: (N, 3, H, W), as :data:`preprocess` gives them.
        labels: (N,).
        classes: how many.
        epochs: of all images that fill a batch; None: those of its kind.
        seed: of weights, order, flips and shifts.
    """
    torch.manual_seed(seed)
    epochs = KINDS[kind].epochs if epochs is None else epochs
    model = KINDS[kind].build(classes).train()
    optimizer = KINDS[kind].optimizer(model.parameters())
    batches = max(len(images) // BATCH, 1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], epochs * batches)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH)[:batches]:
            loss = F.cross_entropy(model(_augmented(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
        say(f"{kind}: epoch {epoch + 1} of {epochs}, loss {loss.item():.2f}")
    return model.eval()


def _augmented(images: Tensor) -> Tensor:
    flipped = torch.where((torch.rand(len(images)) < 0.5)[:, None, None, None], images.flip(3), images)
    down, right = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (2,)).tolist()
    return torch.roll(flipped, (down, right), (2, 3))


def resnet() -> Network:
    """The ResNet that small_networks.py has trained."""
    return _trained("resnet")


def plain() -> Network:
    """The plain CNN that it has trained."""
    return _trained("plain")


def vit() -> Network:
    """The ViT that it has trained."""
    return _trained("vit")


def swin() -> Network:
    """The Swin that it has trained."""
    return _trained("swin")


def _trained(kind: str) -> Network:
    folder = Path(os.environ.get(FOLDER, ""))
    if FOLDER not in os.environ or not (folder / f"{kind}.pt").is_file():
        raise UsageError(f"Run benchmarks/small_networks.py --out FOLDER, and set {FOLDER} to that folder.")
    names = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    model = KINDS[kind].build(len(names))
    model.load_state_dict(torch.load(folder / f"{kind}.pt", weights_only=True))
    return Network(model.eval(), preprocess, dict(enumerate(names)), KINDS[kind].layers)
