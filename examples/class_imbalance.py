"""Class imbalance: three digits are rare in training. What do the curves of each class say, beside a balanced run?

The pictures are those of digits.py. A class may be hard by itself, so the same network is trained a second time on as
many pictures of which no class is rare.

    python examples/class_imbalance.py [--epochs 5] [--train-size 6000] [--log-dir imbalance_logs] [--out docs/pictures]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from digits import LARGER, ScatteredDigits, SmallCNN
from matplotlib.figure import Figure
from scattered import by_column, collections, fit, new_model, print_table, probabilities, save_figure, save_numbers
from torch.utils.data import Subset

from gfi_lightning import History

RARE = (2, 5, 8)
KEPT_OF_RARE = 20  # every 20th
SAMPLES = 60  # six of each class
IMBALANCED, BALANCED = "imbalanced", "balanced"
CURVES = {"preserved": "kept of the label's probability", f"energy/{LARGER}": "energy on the larger digit"}


@dataclass
class Run:
    """A training that is over: its history, and how many of each class it gets right."""

    name: str
    history: History
    recall: np.ndarray  # (classes,)


def imbalanced(pictures: ScatteredDigits) -> list[int]:
    """The numbers of all pictures of the frequent classes, and of few of the rare ones."""
    rare = [number for number, target in enumerate(pictures.targets) if target in RARE]
    return sorted({*range(len(pictures))} - {*rare} | {*rare[::KEPT_OF_RARE]})


def train(name: str, numbers: list[int], options: argparse.Namespace) -> Run:
    pictures, val = collections(options.train_size)
    model = new_model()
    regions = {LARGER: val.boxes[:, 0]}
    history = fit(
        model,
        Subset(pictures, numbers),
        val,
        options.epochs,
        options.log_dir,
        name,
        num_samples=SAMPLES,
        per_class=True,
        regions=regions,
    )
    return evaluated(name, history, model, val)


def evaluated(name: str, history: History, model: SmallCNN, val: ScatteredDigits) -> Run:
    right = probabilities(model, val.images).argmax(1) == torch.tensor(val.targets)
    of_class = [right[torch.tensor(val.targets) == index].float().mean().item() for index in range(10)]
    return Run(name, history, np.array(of_class))


def by_rarity(run: Run, curve: str) -> tuple[np.ndarray, np.ndarray]:
    """The curve's mean over the samples of the rare and of the frequent classes: (steps,) each."""
    rare, values = np.isin(run.history.labels, RARE), run.history.curve(curve)
    return np.nanmean(values[:, rare], 1), np.nanmean(values[:, ~rare], 1)


def draw(runs: list[Run]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (curve, title) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for run, style in zip(runs, ("-", ":"), strict=True):
            for values, group, color in zip(by_rarity(run, curve), ("rare", "frequent"), ("C3", "C0"), strict=True):
                shown = f"{group} classes" if run.name == IMBALANCED else f"the same classes, {run.name} run"
                axes.plot(run.history.steps, values, style, color=color, label=shown)
        axes.set(xlabel="training step", title=title, ylim=(0, 1))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=6000)
    parser.add_argument("--log-dir", type=Path, default=Path("imbalance_logs"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()

    pictures, _ = collections(options.train_size, 1)
    few = imbalanced(pictures)
    report([train(IMBALANCED, few, options), train(BALANCED, list(range(len(few))), options)], pictures, few, options)


def report(runs: list[Run], pictures: ScatteredDigits, few: list[int], options: argparse.Namespace) -> None:
    """Print and keep the figures and the picture of both runs."""
    counts = [np.bincount(np.array(pictures.targets)[numbers], minlength=10) for numbers in (few, range(len(few)))]
    rows: dict[str, list[object]] = {}
    for run, count in zip(runs, counts, strict=True):
        rare = np.isin(np.arange(10), RARE)
        rows |= {
            f"{run.name}: training pictures of a class": [round(count[rare].mean()), round(count[~rare].mean())],
            f"{run.name}: recall": [float(run.recall[rare].mean()), float(run.recall[~rare].mean())],
        }
        for curve in (*CURVES, "removed", "drift", "drift_from_first", "entropy"):
            rows[f"{run.name}: {curve}, at the end"] = [float(values[-1]) for values in by_rarity(run, curve)]
        settled = np.array([one if one is not None else np.inf for one in run.history.settled()])
        group = np.isin(run.history.labels, RARE)
        rows[f"{run.name}: samples whose map has settled"] = [
            f"{int(np.isfinite(settled[chosen]).sum())} of {chosen.sum()}" for chosen in (group, ~group)
        ]
    columns = [", ".join(map(str, RARE)), "the others"]
    print_table("means", columns, rows)
    steps = {
        f"{run.name}: {curve}, at step {step}": [float(value) for value in values]
        for run in runs
        for curve in CURVES
        for step, *values in zip(run.history.steps, *by_rarity(run, curve), strict=True)
    }
    print_table("by step", columns, steps)
    numbers = {"epochs": options.epochs, "means": by_column(columns, rows), "by step": by_column(columns, steps)}
    save_numbers(numbers, options.out / "imbalance.json")
    save_figure(draw(runs), options.out / "imbalance_curves.png")


if __name__ == "__main__":
    main()
