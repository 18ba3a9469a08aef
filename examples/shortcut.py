"""Catch a shortcut: the same network, once where a coloured patch gives away the class, and once where it does not.

The pictures are those of digits.py, with a translucent patch beside the digits, after the decoy MNIST of Ross et al.
(2017), "Right for the right reasons". In the decoy collection the patch's colour tells the class, in training and in
validation alike, so that the validation accuracy looks splendid. In the clean one the colour says nothing; all else is
the same. The patch's place is known, so that the callback can follow how much the maps lie there and raise the alarm.
Only when both runs are over do pictures from elsewhere tell whether it was right.

    python examples/shortcut.py [--epochs 5] [--train-size 6000] [--seed 0] [--log-dir shortcut_logs]
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import matplotlib
import numpy as np
import torch
from digits import SIDE, ScatteredDigits, SmallCNN, split_digits
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader
from torchmetrics.functional import accuracy

from gfi_lightning import GFICallback, History
from gfi_lightning.recording.film import film_strip
from gfi_lightning.recording.pictures import Panel, compose

PATCH, OPACITY = 12, 0.5  # px
ALARM = 0.6  # of a map's energy
SHOWN = 3  # samples in the film strips: those with the most energy on the patch when the alarm is raised
DECOY, CLEAN = "decoy", "clean"
INK = {DECOY: "C3", CLEAN: "C0"}
VALIDATION, NO_PATCH, RANDOM_PATCH = "validation", "test, no patch", "test, patch of any colour"


class PatchedDigits(ScatteredDigits):
    """Scattered digits, and beside them a translucent patch in one of ten colours.

    With the same seed the pictures differ in nothing but the patch's colour, whatever it tells.

    Attributes:
        patches: (N, 4): x0, y0, x1, y1 (exclusive) of the patch.
    """

    def __init__(self, size: int, seed: int, digits: np.ndarray, labels: np.ndarray, tells_class: bool) -> None:
        super().__init__(size, seed, digits, labels)
        rng = np.random.default_rng([seed, PATCH])
        self.patches = np.array([place_beside(rng, boxes) for boxes in self.boxes])
        anything = rng.integers(10, size=size)
        colors = matplotlib.colormaps["hsv"](np.arange(10) / 10)[self.targets if tells_class else anything, :3]
        for image, (x0, y0, x1, y1), color in zip(self.images, self.patches, torch.from_numpy(colors), strict=True):
            image[:, y0:y1, x0:x1].lerp_(color.float()[:, None, None], OPACITY)


def place_beside(rng: np.random.Generator, boxes: np.ndarray) -> tuple[int, int, int, int]:
    """A box for the patch that overlaps none of the boxes."""
    while True:
        x0, y0 = (int(edge) for edge in rng.integers(SIDE - PATCH + 1, size=2))
        x1, y1 = x0 + PATCH, y0 + PATCH
        if all(x1 <= box[0] or box[2] <= x0 or y1 <= box[1] or box[3] <= y0 for box in boxes):
            return x0, y0, x1, y1


@dataclass
class Run:
    """A training that is over.

    Attributes:
        name: of the collection.
        log_dir: of the training.
        history: what the callback kept.
        accuracies: by the pictures on which they were measured.
    """

    name: str
    log_dir: Path
    history: History
    accuracies: dict[str, float]

    @property
    def energy(self) -> np.ndarray:
        """Share of each map's energy on the patch: (steps, samples)."""
        return self.history.curve("energy/patch")

    @property
    def alarm(self) -> int | None:
        """The step at which the callback raised the alarm."""
        trained = zip(self.history.steps[1:], self.energy[1:], strict=True)
        return next((step for step, energy in trained if (energy > ALARM).any()), None)


def train(name: str, options: argparse.Namespace) -> Run:
    """Train on one of the two collections, then measure where the patch says nothing."""
    L.seed_everything(options.seed, verbose=False)
    train_digits, (images, labels) = split_digits()
    half = len(images) // 2
    val_digits, test_digits = (images[:half], labels[:half]), (images[half:], labels[half:])
    train = PatchedDigits(options.train_size, 1, *train_digits, tells_class=name == DECOY)
    val = PatchedDigits(500, 2, *val_digits, tells_class=name == DECOY)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        logger=TensorBoardLogger(options.log_dir, name=name),
        callbacks=[
            GFICallback(
                schedule="log",  # a shortcut is learned early
                regions={"patch": val.patches},
                alarm={"patch": ALARM},
                max_overhead=1,  # no frame is left out, however slow the machine
            )
        ],
        enable_model_summary=False,
    )
    model = SmallCNN()
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=250))
    elsewhere = {
        VALIDATION: val,
        NO_PATCH: ScatteredDigits(1000, 3, *test_digits),
        RANDOM_PATCH: PatchedDigits(1000, 3, *test_digits, tells_class=False),
    }
    log_dir = Path(trainer.log_dir)
    accuracies = {where: accuracy_on(pictures, model) for where, pictures in elsewhere.items()}
    return Run(name, log_dir, History.load(log_dir), accuracies)


@torch.inference_mode()
def accuracy_on(pictures: ScatteredDigits, model: SmallCNN) -> float:
    model.eval()
    logits = torch.cat([model(images) for images in pictures.images.split(250)])
    return float(accuracy(logits, torch.tensor(pictures.targets), "multiclass", num_classes=10))


def draw_films(runs: list[Run]) -> Image.Image:
    """Some samples' film strips, one run below the other: the same steps in the same columns."""
    samples = suspects(runs[0])
    strips = [film_strip(run.history, samples) for run in runs]
    titles = {
        DECOY: "decoy: the patch's colour gives away the class",
        CLEAN: "clean: the same pictures, but the colour says nothing",
    }
    rows = [[Panel(Image.fromarray(strip), titles[run.name])] for run, strip in zip(runs, strips, strict=True)]
    pixels = compose(rows, f"samples {', '.join(map(str, samples))} of both runs", color_bar=False)
    return Image.fromarray(pixels)


def suspects(run: Run) -> list[int]:
    """The samples with the most energy on the patch when the alarm is raised, or at the end."""
    at = -1 if run.alarm is None else run.history.steps.index(run.alarm)
    return np.argsort(-run.energy[at])[:SHOWN].tolist()


def draw_energy(runs: list[Run]) -> Figure:
    """Energy on the patch in both runs, when the alarm was raised, and the patch's share of the area."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        steps, energy, color = run.history.steps, run.energy, INK[run.name]
        axes.plot(
            steps, energy.mean(1), color=color, marker=".", label=f"{run.name}: mean of {energy.shape[1]} samples"
        )
        axes.fill_between(steps, energy.min(1), energy.max(1), color=color, alpha=0.15, linewidth=0)
        axes.fill(np.nan, np.nan, color=color, alpha=0.15, label=f"{run.name}: from the least to the most")
        if run.alarm is not None:
            axes.axvline(run.alarm, color="0.3", linewidth=1, label=f"the alarm is raised: step {run.alarm}")
    axes.axhline(ALARM, color="0.3", linestyle="--", linewidth=1, label=f"the alarm's threshold ({ALARM:g})")
    axes.axhline(
        area_share(runs[0]), color="0.3", linestyle=":", label=f"share of the area ({area_share(runs[0]):.3f})"
    )
    axes.set_xscale("symlog", base=2, linthresh=1)
    steps = runs[0].history.steps
    ticks = [step for step in steps if step.bit_count() <= 1 or step == steps[-1]]  # of the others, no room
    axes.set_xticks(ticks, map(str, ticks))
    axes.set(xlabel="training step", ylabel="share of the maps' energy on the patch", xlim=(0, None), ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    return figure


def draw_accuracies(runs: list[Run]) -> Figure:
    """What validation said of both runs, and what is true where the patch's colour says nothing."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        places = np.arange(len(run.accuracies)) + (number - (len(runs) - 1) / 2) * width
        bars = axes.bar(places, run.accuracies.values(), width, color=INK[run.name], label=f"{run.name} run")
        axes.bar_label(bars, fmt="{:.2f}", fontsize="small")
    axes.axhline(0.1, color="0.3", linestyle=":", label="by chance")
    axes.set_xticks(range(len(runs[0].accuracies)), runs[0].accuracies)
    axes.set(ylabel="accuracy", ylim=(0, 1.1), yticks=np.linspace(0, 1, 6))
    figure.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    return figure


def area_share(run: Run) -> float:
    """Of the patch."""
    return float(run.history.regions["patch"].mean())


def tell(run: Run) -> None:
    """What the callback found, with nothing but the training and its own validation set."""
    start, end = run.energy.mean(1)[[0, -1]]
    print(f"Share of the maps' energy on the patch: {start:.3f} untrained, {end:.3f} trained.")
    if run.alarm is None:
        print("No alarm.")
        return
    at = run.history.steps.index(run.alarm)
    count, samples = int((run.energy[at] > ALARM).sum()), run.energy.shape[1]
    print(f"Alarm at step {run.alarm} of {run.history.steps[-1]}, in epoch {run.history.epochs[at] + 1}: ", end="")
    print(f"the maps of {count} of {samples} samples have more than {ALARM:g} of their energy on the patch.")


def print_table(runs: list[Run]) -> None:
    """A row for each figure, a column for each run."""
    rows = [("", [run.name for run in runs])]
    rows += [(f"accuracy, {where}", [f"{run.accuracies[where]:.2f}" for run in runs]) for where in runs[0].accuracies]
    rows += [
        ("energy on the patch, untrained", [f"{run.energy[0].mean():.3f}" for run in runs]),
        ("energy on the patch, trained", [f"{run.energy[-1].mean():.3f}" for run in runs]),
        ("the patch's share of the area", [f"{area_share(run):.3f}" for run in runs]),
        ("alarm", ["none" if run.alarm is None else f"step {run.alarm}" for run in runs]),
    ]
    print()
    for name, values in rows:
        print(f"{name:36}" + "".join(f"{value:>10}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=6000, help="number of training pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the pictures")
    parser.add_argument("--log-dir", default="shortcut_logs")
    options = parser.parse_args()

    print("First the decoy collection: a patch gives away the class, in training and in validation.")
    decoy = train(DECOY, options)
    tell(decoy)
    print("\nThen the clean one: the same pictures, but the patch's colour says nothing.")
    clean = train(CLEAN, options)
    tell(clean)

    runs = [decoy, clean]
    print("\nNow the test pictures, on which the patch's colour says nothing or there is none:")
    print_table(runs)
    folder = Path(options.log_dir)
    draw_films(runs).save(folder / "shortcut_films.png", optimize=True)
    draw_energy(runs).savefig(folder / "shortcut_energy.png", dpi=120)
    draw_accuracies(runs).savefig(folder / "shortcut_accuracies.png", dpi=120)
    print(f"\nPictures: {folder}/shortcut_films.png, shortcut_energy.png and shortcut_accuracies.png")
    command = Path(sys.executable).parent / "gfi-lightning"
    print(f"Both runs side by side: {command} report {decoy.log_dir} {clean.log_dir} -o shortcut.html")


if __name__ == "__main__":
    main()
