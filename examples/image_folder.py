"""Train a torchvision model on any folder of images and watch what it looks at.

    python examples/image_folder.py --data DIR --model resnet18 --epochs 10
    tensorboard --logdir image_folder_logs --samples_per_plugin images=1000

DIR holds ``train/<class>/*.jpg`` and ``val/<class>/*.jpg`` (torchvision's ImageFolder). The model starts from
scratch, or, with --weights, from a state dict whose last layer may have another number of classes.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional import accuracy
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from gfi_lightning import GFICallback

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Classifier(L.LightningModule):
    """A torchvision classifier, trained with AdamW and a one-cycle schedule."""

    def __init__(self, model: str, classes: int, learning_rate: float, weights: Path | None = None) -> None:
        super().__init__()
        self.model = models.get_model(model, weights=None, num_classes=classes)
        self.classes, self.learning_rate = classes, learning_rate
        if weights is not None:
            self.load_fitting(torch.load(weights, map_location="cpu"))

    def load_fitting(self, state: dict[str, Tensor]) -> None:
        """Load the weights whose shapes fit; the others, those of the head, stay random."""
        own = self.model.state_dict()
        fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
        print(f"{len(fitting)} of {len(own)} tensors loaded.")
        self.model.load_state_dict(fitting, strict=False)

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        return output if isinstance(output, Tensor) else output.logits  # Inception and GoogLeNet in training

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", accuracy(logits, labels, "multiclass", num_classes=self.classes), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def image_folders(data: Path, size: int) -> tuple[ImageFolder, ImageFolder]:
    """Training images, augmented, and validation images, of one size, normalised."""
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augment = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1)), v2.RandomHorizontalFlip(), *finish])
    center = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *finish])
    return ImageFolder(data / "train", augment), ImageFolder(data / "val", center)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("--model", default="resnet18", help="name of a torchvision classification model")
    parser.add_argument("--weights", type=Path, help="state dict to start from")
    parser.add_argument("--layer", help="base layer, say model.layer3 where images are small; else the last one")
    parser.add_argument("--size", type=int, default=64, help="side of the images in px")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log-dir", default="image_folder_logs")
    options = parser.parse_args()

    L.seed_everything(0)
    train, val = image_folders(options.data, options.size)
    model = Classifier(options.model, len(train.classes), options.learning_rate, options.weights)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        logger=TensorBoardLogger(options.log_dir, name=options.model),
        callbacks=[GFICallback(layer=options.layer)],
        log_every_n_steps=10,
    )
    workers = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    train_loader = DataLoader(train, options.batch_size, shuffle=True, **workers)
    trainer.fit(model, train_loader, DataLoader(val, options.batch_size, **workers))
    print(f"\nLook at it: tensorboard --logdir {options.log_dir} --samples_per_plugin images=1000")


if __name__ == "__main__":
    main()
