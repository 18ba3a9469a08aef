"""Two small networks for images of 64 px, trained from scratch, as many people's are: a ResNet and a plain CNN.

``benchmarks/small_networks.py`` trains them; the environment variable GFI_SMALL_NETWORKS names its folder.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import Network, resize_and_normalize
from bench.progress import say
from gfi_lightning.errors import UsageError

FOLDER = "GFI_SMALL_NETWORKS"
CLASSES = "classes.json"
BATCH, LARGEST_RATE, MOST_SHIFT = 64, 0.1, 6  # images, of SGD, and px by which images are shifted in training

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


KINDS: dict[str, Callable[[int], nn.Sequential]] = {"resnet": small_resnet, "plain": plain_cnn}


def train(kind: str, images: Tensor, labels: Tensor, classes: int, epochs: int, seed: int = 0) -> nn.Sequential:
    """A network of this kind after so many epochs of SGD with one cycle of the learning rate, flips and shifts.

    Args:
        kind: of KINDS.
        images: (N, 3, H, W), as :data:`preprocess` gives them.
        labels: (N,).
        classes: how many.
        epochs: of all images that fill a batch.
        seed: of weights, order, flips and shifts.
    """
    torch.manual_seed(seed)
    model = KINDS[kind](classes).train()
    optimizer = torch.optim.SGD(model.parameters(), LARGEST_RATE, momentum=0.9, weight_decay=5e-4)
    batches = max(len(images) // BATCH, 1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LARGEST_RATE, epochs * batches)
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


def _trained(kind: str) -> Network:
    folder = Path(os.environ.get(FOLDER, ""))
    if FOLDER not in os.environ or not (folder / f"{kind}.pt").is_file():
        raise UsageError(f"Run benchmarks/small_networks.py --out FOLDER, and set {FOLDER} to that folder.")
    names = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    model = KINDS[kind](len(names))
    model.load_state_dict(torch.load(folder / f"{kind}.pt", weights_only=True))
    return Network(model.eval(), preprocess, dict(enumerate(names)))
