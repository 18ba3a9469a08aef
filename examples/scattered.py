"""What the examples about a training that goes wrong share: one training on scattered digits, and its pictures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from digits import ScatteredDigits, SmallCNN, split_digits
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfi_lightning import GFICallback, History
from gfi_lightning.metrics import regions_of_boxes

COLORS = (192, 128, 64)  # of a picture: the first number with which the file is small
SMALL = 150_000  # bytes
SEED = 0


def collections(train_size: int, val_size: int = 500) -> tuple[ScatteredDigits, ScatteredDigits]:
    """Pictures for training and for validation; no digit is in both."""
    train_digits, val_digits = split_digits()
    return ScatteredDigits(train_size, 1, *train_digits), ScatteredDigits(val_size, 2, *val_digits)


def fit(
    model: SmallCNN, train: Dataset, val: Dataset, epochs: int, folder: Path, name: str, **explained: object
) -> History:
    """Train, and explain as GFICallback is told to; the logs lie in a folder of that name."""
    L.seed_everything(SEED, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        logger=TensorBoardLogger(folder, name=name),
        callbacks=[GFICallback(max_overhead=1, **explained)],  # so that figures do not hang on the machine's speed
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=250))
    model.eval()
    return History.load(trainer.log_dir)


def new_model() -> SmallCNN:
    """The same weights every time."""
    L.seed_everything(SEED, verbose=False)
    return SmallCNN()


def boxes_of(pictures: ScatteredDigits, which: int) -> Tensor:
    """Where the large (0) or the small (1) digits are: (N, 64, 64), bool."""
    height, width = pictures.images.shape[2:]
    return regions_of_boxes([torch.tensor(boxes[which : which + 1]) for boxes in pictures.boxes], (height, width))


@torch.inference_mode()
def probabilities(model: SmallCNN, images: Tensor) -> Tensor:
    """Of all classes, (N, classes)."""
    return torch.cat([model(part).softmax(1) for part in images.split(250)])


def print_table(title: str, columns: list[str], rows: Mapping[str, list[object]]) -> None:
    """A row for each name."""
    width = max(map(len, (title, *rows)))
    print(f"\n{title:{width}}" + "".join(f"{column:>16}" for column in columns))
    for name, values in rows.items():
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        print(f"{name:{width}}" + "".join(f"{cell:>16}" for cell in cells))


def by_column(columns: list[str], rows: Mapping[str, list[object]]) -> dict[str, dict[str, object]]:
    """A table as :func:`save_numbers` takes it: by the names of the rows, then of the columns."""
    return {name: dict(zip(columns, values, strict=True)) for name, values in rows.items()}


def save_numbers(numbers: Mapping[str, object], path: Path) -> None:
    """As JSON, to four digits; what is not finite is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded({"seed": SEED, **numbers}), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, float):
        return round(float(value), 4) if math.isfinite(value) else None
    return value


def save_picture(picture: Image.Image, path: Path) -> None:
    """As a small file: with few colours, dithered, as else there would be steps where a map fades."""
    path.parent.mkdir(parents=True, exist_ok=True)
    full = picture.convert("RGB")
    for colors in COLORS:
        few = full.quantize(palette=full.quantize(colors), dither=Image.Dither.FLOYDSTEINBERG)
        few.save(path, optimize=True)
        if path.stat().st_size <= SMALL:
            return


def save_figure(figure: Figure, path: Path) -> None:
    """Likewise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    save_picture(small, path)
