"""Small networks for the tests, seeded, in eval mode unless said otherwise."""

import torch
from torch import nn


class ToyCNN(nn.Module):
    """Two resolutions, BatchNorm with statistics of its own, dropout, and ReLUs in place.

    The gains make features large and decisions sure, so that the recipes' penalties, which were made for
    VGG, do not simply drive every ω to 0.
    """

    def __init__(self, classes: int = 5, channels: int = 6, gain: float = 3.0, seed: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.fine = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)
            )
            self.pool = nn.MaxPool2d(2)
            self.coarse = nn.Sequential(
                nn.Conv2d(8, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
            )
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels, classes)
            )
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.2, 0.2)
                    module.running_var.uniform_(0.2, 0.5)
                    module.weight.data.fill_(gain)
                if isinstance(module, nn.Linear):
                    module.weight.data.mul_(gain)
        self.eval()

    def forward(self, images):
        return self.head(self.coarse(self.pool(self.fine(images))))


class ToyPatches(ToyCNN):
    """The same function, whose feature maps also come as patches: channels last where fine, as tokens where coarse."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.fine_patches, self.coarse_patches = nn.Sequential(), nn.Sequential()

    def forward(self, images):
        fine = self.fine_patches(self.fine(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        coarse = self.coarse(self.pool(fine))
        tokens = self.coarse_patches(coarse.flatten(2).transpose(1, 2))
        return self.head(tokens.transpose(1, 2).unflatten(2, coarse.shape[2:]))


def random_images(count: int, size: int = 16, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Smooth random images, shape (count, 3, size, size), roughly in [-2, 2]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 4, size // 4, generator=generator, dtype=dtype)
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
