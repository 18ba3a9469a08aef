"""What hidden code on the pages of the documentation uses: a model, its data and a training that take no time."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

SIZE, CLASSES = 16, 3


def pictures(count=12, seed=0):
    """Images (count, 3, 16, 16) of a bright square in one of three places, and the place as class, (count,)."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
    labels = torch.arange(count) % CLASSES
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2:7, 5 * label : 5 * label + 5] += 0.6
    return images, labels


def loader(count=12, seed=0):
    return DataLoader(TensorDataset(*pictures(count, seed)), batch_size=6)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader(24, seed=1)

    def val_dataloader(self):
        return loader()


class Classifier(L.LightningModule):
    """Whose training is over after two epochs, however many the Trainer would allow."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.current_epoch >= 1

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)
