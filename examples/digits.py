"""Two handwritten digits on a photograph: the class is the larger one. Watch the model find it.

Everything comes with scikit-learn, nothing is downloaded: its handwritten digits (UCI, 8 × 8 pixels) are
enlarged, coloured and scattered over crops of its two photographs. The boxes of both digits are known, so
that it can be checked whether the maps lie where they should.

    python examples/digits.py [--epochs 10] [--log-dir demo_logs]
"""

import argparse
import sys
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional import accuracy

from gfi_lightning import GFICallback, History
from gfi_lightning.recording.film import film_strip

SIDE = 64
LARGE, SMALL = (26, 32), (14, 18)  # px, from and to
LARGER, SMALLER = "larger digit", "smaller digit"  # the regions that are followed


class ScatteredDigits(Dataset):
    """64 × 64 colour pictures with a large and a small digit; the class is the large one.

    Attributes:
        images: (N, 3, 64, 64), float32 in [0, 1].
        targets: class of each picture.
        others: which digit the small one is.
        boxes: (N, 2, 4): x0, y0, x1, y1 (exclusive) of the large and the small digit.
        classes: names of the classes.
    """

    classes = [f"digit {digit}" for digit in range(10)]

    def __init__(self, size: int, seed: int, digits: np.ndarray, labels: np.ndarray) -> None:
        rng = np.random.default_rng(seed)
        photographs = load_sample_images().images
        drawn = [scatter(rng, photographs, digits, labels) for _ in range(size)]
        self.images = torch.from_numpy(np.stack([image for image, _, _ in drawn])).permute(0, 3, 1, 2).float() / 255
        self.targets, self.others = ([both[place] for _, both, _ in drawn] for place in (0, 1))
        self.boxes = np.array([boxes for _, _, boxes in drawn])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def split_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Digits (n, 8, 8) and labels (n,) for training and for validation; none is in both."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    train, val = ((bunch.images[part], bunch.target[part]) for part in (order[:1400], order[1400:]))
    return train, val


def scatter(rng: np.random.Generator, photographs: list, digits: np.ndarray, labels: np.ndarray) -> tuple:
    """One picture (64, 64, 3), and the classes and the boxes of the large and the small digit."""
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (rng.integers(edge - SIDE) for edge in photograph.shape[:2])
    picture = photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)
    chosen = rng.integers(len(digits), size=2)
    sides = rng.integers(*LARGE), rng.integers(*SMALL)
    boxes = place(rng, *sides)
    for index, (x0, y0, x1, y1) in zip(chosen, boxes, strict=True):
        ink = Image.fromarray((digits[index] / 16 * 255).astype(np.uint8)).resize((x1 - x0, y1 - y0), Image.BICUBIC)
        alpha = np.asarray(ink, dtype=np.float32)[..., None] / 255
        color = rng.uniform(140, 255, size=3)
        picture[y0:y1, x0:x1] = (1 - alpha) * picture[y0:y1, x0:x1] + alpha * color
    return picture.round().astype(np.uint8), labels[chosen].tolist(), boxes


def place(rng: np.random.Generator, large: int, small: int) -> list[tuple[int, int, int, int]]:
    """Boxes for both digits that do not overlap."""
    while True:
        corners = [rng.integers(SIDE - side + 1, size=2) for side in (large, small)]
        boxes = [(x, y, x + side, y + side) for (x, y), side in zip(corners, (large, small), strict=True)]
        first, second = boxes
        if first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]:
            return [tuple(int(edge) for edge in box) for box in boxes]


class SmallCNN(L.LightningModule):
    """Four convolutions down to 8 × 8 positions, global average pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(3, 32, stride=2),
            *convolution(32, 64, stride=2),
            *convolution(64, 96),
            nn.MaxPool2d(2),
            *convolution(96, 128),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        self.log("val_accuracy", accuracy(self(images), labels, "multiclass", num_classes=10), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A 3 × 3 convolution, normalisation, ReLU."""
    weights = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [weights, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def draw_curve(history: History, accuracies: list[tuple[int, float]], path: Path) -> None:
    """Energy in the right digit's box and in the other's, against their area, beside the accuracy."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    left = figure.subplots()
    for region, name, color in ((LARGER, "the larger digit (the class)", "C0"), (SMALLER, "the smaller digit", "C1")):
        energy, area = history.curve(f"energy/{region}").mean(1), history.regions[region].mean()
        left.plot(history.steps, energy, color=color, marker=".", label=f"energy in {name}")
        left.axhline(area, color=color, linestyle=":", label=f"its share of the area ({area:.2f})")
    left.set(xlabel="training step", ylabel="share of the map's energy", ylim=(0, None))
    right = left.twinx()
    right.plot(*zip(*accuracies, strict=True), color="0.5", linewidth=1, label="validation accuracy")
    right.set(ylabel="validation accuracy", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)


def read_accuracy(log_dir: str) -> list[tuple[int, float]]:
    """(step, validation accuracy), from TensorBoard's file."""
    events = EventAccumulator(log_dir).Reload()
    return [(event.step, event.value) for event in events.Scalars("val_accuracy")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=6000, help="number of training pictures")
    parser.add_argument("--log-dir", default="demo_logs")
    options = parser.parse_args()

    L.seed_everything(0)
    train_digits, val_digits = split_digits()
    print("Scattering digits over photographs ...")
    train = ScatteredDigits(options.train_size, 1, *train_digits)
    val = ScatteredDigits(500, 2, *val_digits)

    trainer = L.Trainer(
        max_epochs=options.epochs,
        logger=TensorBoardLogger(options.log_dir, name=None),
        callbacks=[
            GFICallback(
                num_samples=16,
                layers=["features.2", "features.5", "features.8", "features.12"],  # the ReLUs: what each still sees
                regions={LARGER: val.boxes[:, 0], SMALLER: val.boxes[:, 1]},
                max_overhead=1,  # a film of every epoch, however slow the machine
            )
        ],
        enable_model_summary=False,
    )
    trainer.fit(SmallCNN(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=250))

    log_dir = Path(trainer.log_dir)
    history = History.load(log_dir)
    Image.fromarray(film_strip(history, range(8))).save(log_dir / "film_strip.png")
    draw_curve(history, read_accuracy(str(log_dir)), log_dir / "energy.png")
    energy = history.curve(f"energy/{LARGER}").mean(1)
    print(f"\nShare of the maps' energy in the right digit's box: {energy[0]:.2f} untrained, {energy[-1]:.2f} trained.")
    print(f"Film strip, a row per sample and a column per step: {log_dir / 'film_strip.png'}")
    print(f"The curve of that share: {log_dir / 'energy.png'}")
    print(f"All pictures: {Path(sys.executable).parent / 'tensorboard'} --logdir {options.log_dir}", end=" ")
    print("--samples_per_plugin images=1000")


if __name__ == "__main__":
    main()
