"""Explain networks that are no classifiers, by a score of one's own: a regression, and a segmentation.

    python examples/own_score.py --out own_score.png

Both networks are trained in a few seconds on drawings of a disc and a square. The first one tells the radius of the
disc: what makes this number high? The second one tells for each pixel what it belongs to: what makes it call these
pixels a disc, or those a square? Where the maps should lie is known, and is checked.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.recording.pictures import Panel, compose, enlarged, overlay

SIZE, SHOWN = 48, 4  # px, images
BACKGROUND, DISC, SQUARE = range(3)
SMALLEST, LARGEST = 4.0, 10.0  # radius of a disc, px


@dataclass
class Drawings:
    """N drawings of a disc and a square that do not touch, on a noisy ground.

    Attributes:
        images: (N, 3, 48, 48), in [0, 1].
        radii: of the discs, (N,), px.
        classes: of each pixel, (N, 48, 48), int64.
    """

    images: Tensor
    radii: Tensor
    classes: Tensor


def draw(count: int, seed: int) -> Drawings:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    radii, half = uniform(SMALLEST, LARGEST), uniform(4, 8)
    # The disc lies in the upper left half, the square in the lower right one, or the other way round.
    corner = torch.where(uniform(0, 1) < 0.5, 1.0, -1.0)
    disc_row, disc_column, square_row, square_column = (
        SIZE / 2 - sign * corner * uniform(11, 13) for sign in (1, 1, -1, -1)
    )
    disc = (rows - disc_row) ** 2 + (columns - disc_column) ** 2 < radii**2
    square = torch.maximum((rows - square_row).abs(), (columns - square_column).abs()) < half
    classes = DISC * disc + SQUARE * (square & ~disc)
    colors = torch.tensor([[0.4, 0.4, 0.4], [0.9, 0.7, 0.2], [0.3, 0.5, 0.9]])[classes].permute(0, 3, 1, 2)
    noise = 0.1 * torch.randn(colors.shape, generator=generator)
    return Drawings((colors + noise).clamp(0, 1), radii.flatten(), classes)


def features() -> nn.Sequential:
    """Feature maps (N, 32, 12, 12)."""
    layers: list[nn.Module] = []
    for channels_in, channels_out, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, stride, 1), nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


class Radius(nn.Module):
    """How large is the disc? One number, 0 for the smallest and 1 for the largest: (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = features(), nn.Linear(32, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))[:, 0]


class Segmentation(nn.Module):
    """What does each pixel belong to? Logits (N, 3, 48, 48)."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = features(), nn.Conv2d(32, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.head(self.features(images)), size=images.shape[2:], mode="bilinear")


def train(model: nn.Module, loss: Callable[[Tensor, Drawings], Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        drawings = draw(32, seed=step)
        optimizer.zero_grad()
        loss(model(drawings.images), drawings).backward()
        optimizer.step()


def share(heatmaps: Tensor, region: Tensor) -> Tensor:
    """The share of each map's energy that lies in its region, both (N, H, W)."""
    return (heatmaps * region).sum((1, 2)) / heatmaps.sum((1, 2))


def explain_radius(model: Radius, drawings: Drawings) -> Tensor:
    """What makes this number high? Ten units from the smallest to the largest disc, as log-odds span some units."""
    gfi = GuidedFeatureInversion(model, layer="features", score=lambda output, targets: 10 * output)
    return gfi.explain(drawings.images, 0).heatmaps  # a regression knows no classes: the target is not used


def explain_region(model: Segmentation, drawings: Drawings, wanted: int) -> Tensor:
    """What makes the network call these pixels so? The mean log-odds of the class over the region."""
    regions, others = drawings.classes == wanted, [index for index in range(3) if index != wanted]

    def log_odds_in_region(output: Tensor, numbers: Tensor) -> Tensor:
        # Targets are handed on as they are: these are the numbers of the images, which tell the regions.
        odds = output[:, wanted] - output[:, others].logsumexp(1)
        return (odds * regions[numbers]).sum((1, 2)) / regions[numbers].sum((1, 2))

    gfi = GuidedFeatureInversion(model, layer="features", score=log_odds_in_region)
    return gfi.explain(drawings.images, torch.arange(len(regions))).heatmaps


def report(question: str, heatmaps: Tensor, drawings: Drawings, wanted: int) -> None:
    """Print where the maps lie, and fail where that is not on the object."""
    other = DISC + SQUARE - wanted
    energy, area, elsewhere = (
        part.mean().item()
        for part in (
            share(heatmaps, drawings.classes == wanted),
            (drawings.classes == wanted).float(),
            share(heatmaps, drawings.classes == other),
        )
    )
    print(f"{question}: {energy:.2f} of the energy on {area:.2f} of the area; on the other object {elsewhere:.2f}")
    if energy < 2 * area or energy < elsewhere:
        raise SystemExit("The maps do not lie where they should.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("own_score.png"))
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    options = parser.parse_args()

    torch.manual_seed(0)
    radius, segmentation = Radius(), Segmentation()
    train(
        radius, lambda output, true: F.mse_loss(output, (true.radii - SMALLEST) / (LARGEST - SMALLEST)), options.steps
    )
    train(segmentation, lambda output, true: F.cross_entropy(output, true.classes), options.steps)

    drawings = draw(16, seed=10_000)
    maps = {
        "what makes the radius large": (explain_radius(radius, drawings), DISC),
        "what makes these pixels a disc": (explain_region(segmentation, drawings, DISC), DISC),
        "what makes those a square": (explain_region(segmentation, drawings, SQUARE), SQUARE),
    }
    rows = [
        [Panel(enlarged(drawings.images[number]), f"radius {drawings.radii[number]:.1f} px")]
        + [Panel(overlay(drawings.images[number], heatmaps[number]), title) for title, (heatmaps, _) in maps.items()]
        for number in range(SHOWN)
    ]
    Image.fromarray(compose(rows, "explained by a score of one's own")).save(options.out)
    for question, (heatmaps, wanted) in maps.items():
        report(question, heatmaps, drawings, wanted)
    print(f"The pictures are in {options.out}.")


if __name__ == "__main__":
    main()
