"""How far apart float32 maps are when the same weights explain the same images in other batches.

The optimisation amplifies rounding. This prints, for each recipe, the distance between the maps of batches of 16
and of 16 batches of one, in float32 and in float64, on 64 scattered digits and a network trained on such for
three epochs; and writes the same as JSON.

    python benchmarks/rounding.py [--json rounding.json]
"""

import argparse
import json
import sys
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits import ScatteredDigits, SmallCNN, split_digits

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.recipes import RECIPES
from gfi_lightning.metrics.drift import heatmap_drift

BATCH = 16


def trained_network() -> tuple[SmallCNN, ScatteredDigits]:
    """The demo's network after three epochs, and 64 pictures that it has not seen."""
    L.seed_everything(0)
    (train_digits, val_digits) = split_digits()
    model = SmallCNN()
    trainer = L.Trainer(max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(model, DataLoader(ScatteredDigits(6000, 1, *train_digits), batch_size=64, shuffle=True))
    return model.eval(), ScatteredDigits(64, 2, *val_digits)


def distances(model: torch.nn.Module, images: Tensor, targets: Tensor, recipe: str) -> tuple[np.ndarray, np.ndarray]:
    """For each image 1 − rank correlation and mean absolute difference between its map in a batch and alone."""
    gfi = GuidedFeatureInversion(model, recipe=recipe)
    together, alone = (
        torch.cat([gfi.explain(*part).heatmaps for part in zip(images.split(size), targets.split(size), strict=True)])
        for size in (BATCH, 1)
    )
    return heatmap_drift(together, alone).numpy(), (together - alone).abs().mean((1, 2)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("rounding.json"))
    options = parser.parse_args()
    model, pictures = trained_network()
    targets = torch.tensor(pictures.targets)
    rows = []
    for dtype in (torch.float32, torch.float64):
        for recipe in RECIPES:
            rank, absolute = distances(model.to(dtype), pictures.images.to(dtype), targets, recipe)
            rows.append(
                {
                    "precision": str(dtype).removeprefix("torch."),
                    "recipe": recipe,
                    "1 - rank correlation, median": float(np.median(rank)),
                    "1 - rank correlation, worst": float(rank.max()),
                    "mean absolute difference, median": float(np.median(absolute)),
                    "mean absolute difference, worst": float(absolute.max()),
                }
            )
    options.json.write_text(json.dumps(rows, indent=2))
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{value:.1e}" if isinstance(value, float) else value for value in row.values()))


if __name__ == "__main__":
    main()
