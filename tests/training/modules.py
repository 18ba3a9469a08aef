"""Tiny real modules, data and Trainers."""

from dataclasses import replace
from inspect import signature
from typing import ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from gfi_lightning import GFICallback
from gfi_lightning.inversion.recipes import RELEASE
from tests.networks import ToyCNN, random_images

CLASSES = 5
QUICK = replace(RELEASE, inversion_steps=1, target_steps=2)
# How a resume is told to load no more than that; before 2.6 Lightning loads whatever a checkpoint holds.
WEIGHTS_ONLY = {"weights_only": True} if "weights_only" in signature(L.Trainer.fit).parameters else {}
# How a ModelCheckpoint is told to; Lightning 2.4 never does.
ON_EXCEPTION = {"save_on_exception": True} if "save_on_exception" in signature(ModelCheckpoint).parameters else {}


class Pictures(Dataset):
    """Random pictures with labels, counted when they are read, optionally augmented."""

    classes: ClassVar = [f"kind {number}" for number in range(CLASSES)]

    def __init__(self, size=20, augment=False, seed=0):
        self.images = random_images(size, seed=seed, dtype=torch.float32)
        self.targets = [number // 4 % CLASSES for number in range(size)]
        self.transform = v2.Compose([v2.RandomHorizontalFlip(), v2.GaussianNoise()]) if augment else v2.Identity()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.targets[index]


class ToyModule(L.LightningModule):
    """A classifier with BatchNorm and dropout that logs what Lightning users log."""

    def __init__(self):
        super().__init__()
        self.network = ToyCNN(classes=CLASSES, gain=1.0).train()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = self.unpack(batch)
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = self.unpack(batch)
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def test_step(self, batch, batch_idx):
        images, labels = self.unpack(batch)
        self.log("test_loss", F.cross_entropy(self(images), labels))

    def unpack(self, batch):
        return batch[0], batch[1]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


PRESENT = ([0], [1, 3], [0, 2, 4], [])  # classes of each fourth picture


class SeveralLabels(Pictures):
    """Pictures of which each may show several classes, or none."""

    def __init__(self, size=20, seed=0):
        super().__init__(size, seed=seed)
        present = [PRESENT[number % len(PRESENT)] for number in range(size)]
        self.targets = [torch.tensor([float(index in row) for index in range(CLASSES)]) for row in present]


class TellsEach(ToyModule):
    """Tells each class by itself."""

    def training_step(self, batch, batch_idx):
        images, labels = self.unpack(batch)
        return F.binary_cross_entropy_with_logits(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = self.unpack(batch)
        self.log("val_loss", F.binary_cross_entropy_with_logits(self(images), labels))


class TwoOptimizers(ToyModule):
    """Manual optimisation: two optimiser steps in every batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        parts = (self.network.fine, self.network.head)
        return [torch.optim.SGD(part.parameters(), 0.1) for part in parts]


def loaders(train=None, val=None, batch_size=4):
    """A shuffled training loader of 4 batches, and a validation loader."""
    train = Pictures(16, seed=1) if train is None else train
    val = Pictures() if val is None else val
    return {
        "train_dataloaders": DataLoader(train, batch_size, shuffle=True),
        "val_dataloaders": DataLoader(val, batch_size),
    }


def make_trainer(folder, *callbacks, **options):
    """A quiet Trainer on the CPU that logs every step to TensorBoard."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": TensorBoardLogger(folder, name=None),
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


def quick_callback(**options):
    """A callback that is quick and hides nothing."""
    return GFICallback(**({"recipe": QUICK, "num_samples": 3, "on_error": "raise"} | options))


def read_events(trainer):
    """TensorBoard's own reading of a run."""
    return EventAccumulator(trainer.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()


def image_steps(trainer, tag="gfi/sample_0"):
    """The steps at which a picture was logged."""
    return [event.step for event in read_events(trainer).Images(tag)]


def scalar_steps(trainer, tag):
    """The steps at which a scalar was logged."""
    return [event.step for event in read_events(trainer).Scalars(tag)]
