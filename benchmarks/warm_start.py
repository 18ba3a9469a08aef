"""Do maps depend on starting from those of the run before? Warm and cold starts along one training.

Trains the demo's network on scattered digits, and stops at several points of the training, closer together at its
beginning. At each, the same pictures are explained: cold, as ever; and warm, each way of it from its own explanation of
the point before. The distance between a way's maps and the cold ones with all steps, 1 − rank correlation, is to be
seen beside the distance between these cold maps and those of the point before, which is what the drift curve shows; and
beside that of two cold explanations of pictures that differ by rounding, the noise floor.

    python benchmarks/warm_start.py [--json benchmarks/results/warm_start.json]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits import ScatteredDigits, SmallCNN, split_digits

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.recipes import RECIPES, Recipe
from gfi_lightning.inversion.results import Explanation
from gfi_lightning.inversion.start import Start
from gfi_lightning.metrics import energy_in_region, heatmap_drift, regions_of_boxes
from gfi_lightning.training.share import nudged

DEFAULT = RECIPES["default"]
SHORT = replace(DEFAULT, inversion_steps=1, target_steps=2)
ALL = f"{DEFAULT.inversion_steps} + {DEFAULT.target_steps} steps"
COLD = f"cold, {ALL}"
Numbers = dict[str, float]


@dataclass(frozen=True)
class Way:
    """How the pictures are explained.

    Attributes:
        recipe: with its steps.
        warm: from what was found at the point before.
        targets_too: so does stage 2, and not stage 1 alone.
    """

    recipe: Recipe = DEFAULT
    warm: bool = False
    targets_too: bool = True


WAYS = {
    COLD: Way(),
    "cold, 1 + 2 steps": Way(SHORT),
    f"warm, {ALL}": Way(warm=True),
    "warm, 1 + 2 steps": Way(SHORT, warm=True),
    f"warm stage 1, {ALL}": Way(warm=True, targets_too=False),
    "warm stage 1, 1 + 2 steps": Way(SHORT, warm=True, targets_too=False),
}


class Explained:
    """Pictures that are explained in one way, again and again.

    Args:
        model: as it is at the time.
        way: how.
        pictures: with their classes.
    """

    def __init__(self, model: nn.Module, way: Way, pictures: ScatteredDigits) -> None:
        self.seen = 0
        self._way = way
        self._images = pictures.images
        self._targets = torch.tensor(pictures.targets)
        self._gfi = GuidedFeatureInversion(model, recipe=way.recipe, forward=self._counted)
        self._start: Start | None = None

    def explain(self) -> Explanation:
        """Where the model is now; how many pictures went through it is in ``seen``."""
        self.seen = 0
        inversion = self._gfi.invert(self._images, self._start)
        explanation = self._gfi.refine(inversion, self._targets, start=self._start)
        if self._way.warm:
            start = Start.of(inversion, explanation)
            self._start = start if self._way.targets_too else Start(start.foreground)
        return explanation

    def explain_nudged(self) -> Explanation:
        """As if cold, of pictures that differ by rounding."""
        return self._gfi.explain(nudged(self._images), self._targets)

    def _counted(self, model: nn.Module, images: Tensor) -> Tensor:
        self.seen += len(images)
        return model(images)


def points_of(steps: int, points: int) -> list[int]:
    """The optimiser steps after which is looked, from 0 to the last one, closer together at the beginning."""
    return sorted({round(steps * (point / (points - 1)) ** 2) for point in range(points)})


def trained(model: SmallCNN, pictures: ScatteredDigits, epochs: int, points: int) -> Iterator[int]:
    """Trains as the demo does, but by hand, to stop at some points; the steps taken so far."""
    loader = DataLoader(pictures, batch_size=64, shuffle=True)
    steps = epochs * len(loader)
    stops = points_of(steps, points)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    yield 0
    taken = 0
    for _ in range(epochs):
        for images, labels in loader:
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
            taken += 1
            if taken in stops:
                model.eval()
                with torch.random.fork_rng():
                    yield taken


def distances(explanation: Explanation, other: Explanation) -> Tensor:
    """1 − rank correlation between the maps, at the resolution that they come from, as the curve of drift takes it."""
    maps = (F.adaptive_avg_pool2d(one.heatmaps, one.grid) for one in (explanation, other))
    return heatmap_drift(*maps)


def judged(explanation: Explanation, cold: Explanation, boxes: Tensor) -> Numbers:
    """How far maps are from the cold ones, where their energy lies, and what they keep and remove."""
    distance = distances(explanation, cold)
    return {
        "distance, median": float(distance.median()),
        "distance, worst": float(distance.max()),
        "energy": float(energy_in_region(explanation.heatmaps, boxes).mean()),
        "preserved": float(explanation.preserved.mean()),
        "removed": float(explanation.removed.mean()),
        "area": float(explanation.heatmaps.mean()),
    }


def measure(train: ScatteredDigits, val: ScatteredDigits, epochs: int, points: int) -> list[dict]:
    """A row for each point of the training and each way to explain."""
    model = SmallCNN().eval()
    boxes = regions_of_boxes([torch.tensor(both[:1]) for both in val.boxes], tuple(val.images.shape[2:]))
    ways = {name: Explained(model, way, val) for name, way in WAYS.items()}
    rows, before = [], {}
    for step in trained(model, train, epochs, points):
        with torch.inference_mode():
            correct = (model.eval()(val.images).argmax(1) == torch.tensor(val.targets)).float().mean()
        found = {name: way.explain() for name, way in ways.items()}
        seen = {name: way.seen for name, way in ways.items()}
        floor = distances(ways[COLD].explain_nudged(), found[COLD])
        for name, explanation in found.items():
            moved = distances(explanation, before[name]) if before else None
            rows.append(
                {
                    "step": step,
                    "accuracy": float(correct),
                    "way": name,
                    **judged(explanation, found[COLD], boxes),
                    "drift, median": None if moved is None else float(moved.median()),
                    "drift, worst": None if moved is None else float(moved.max()),
                    "noise floor, median": float(floor.median()),
                    "noise floor, worst": float(floor.max()),
                    "images through the network, of the cold way's": seen[name] / seen[COLD],
                }
            )
        before = found
    return rows


def print_points(rows: Sequence[dict]) -> None:
    """By point: how far the maps of each way are from the cold ones, beside how far these have moved."""
    others = [name for name in WAYS if name != COLD]
    print("1 − rank correlation, median / worst picture\n")
    print(" | ".join(["step", "accuracy", "noise floor", "drift of cold", *(f"{name} ↔ cold" for name in others)]))
    for step in dict.fromkeys(row["step"] for row in rows):
        here = {row["way"]: row for row in rows if row["step"] == step}
        cold = here[COLD]
        cells = [pair(cold, "noise floor"), pair(cold, "drift"), *(pair(here[name], "distance") for name in others)]
        print(" | ".join([f"{step:4}", f"{cold['accuracy']:.2f}", *cells]))
    for key in ("energy", "preserved", "removed", "area"):
        print(f"\n{key}: " + " | ".join(["step", *WAYS]))
        for step in dict.fromkeys(row["step"] for row in rows):
            print(" | ".join([f"{step:4}", *(f"{row[key]:.2f}" for row in rows if row["step"] == step)]))


def pair(row: dict, what: str) -> str:
    """Median and worst; nothing at the first point."""
    median, worst = row[f"{what}, median"], row[f"{what}, worst"]
    return "–" if median is None else f"{median:.3f} / {worst:.3f}"


def means(rows: Sequence[dict]) -> dict[str, Numbers]:
    """Of each way over all points but the first, where nothing is warm."""
    columns = ("distance, median", "drift, median", "energy", "preserved", "removed", "area")
    columns += ("images through the network, of the cold way's",)
    later = {name: [row for row in rows if row["way"] == name and row["step"] > 0] for name in WAYS}
    return {name: {key: sum(row[key] for row in of) / len(of) for key in columns} for name, of in later.items()}


def print_means(by_way: dict[str, Numbers]) -> None:
    print("\nMeans over the points but the first\n")
    print(" | ".join(["way", *next(iter(by_way.values()))]))
    for name, numbers in by_way.items():
        print(" | ".join([name, *(f"{value:.3f}" for value in numbers.values())]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-size", type=int, default=6000, help="pictures to train with")
    parser.add_argument("--samples", type=int, default=32, help="pictures to explain")
    parser.add_argument("--points", type=int, default=10, help="of the training at which is explained")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/warm_start.json"))
    options = parser.parse_args(arguments)
    L.seed_everything(0)
    train_digits, val_digits = split_digits()
    train = ScatteredDigits(options.train_size, 1, *train_digits)
    rows = measure(train, ScatteredDigits(options.samples, 2, *val_digits), options.epochs, options.points)
    by_way = means(rows)
    print_points(rows)
    print_means(by_way)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"means": by_way, "points": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
