"""Wrong labels: a part of the pictures is labelled with the small digit, in training and in validation alike.

The pictures are those of digits.py, whose class is the large digit. Where label and prediction are not the same, either
may be wrong, and the probabilities do not say which. The label's map tells what the label may have meant.

    python examples/label_noise.py [--noise other] [--epochs 5] [--train-size 6000] [--log-dir noise_logs]

With ``--noise flipped`` a part of the threes is labelled as eights instead, which is another kind of trouble.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from digits import ScatteredDigits, SmallCNN
from matplotlib.figure import Figure
from PIL import Image
from scattered import (
    boxes_of,
    by_column,
    collections,
    fit,
    new_model,
    print_table,
    probabilities,
    save_figure,
    save_numbers,
    save_picture,
)
from torch import Tensor

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.metrics import energy_in_region
from gfi_lightning.recording.pictures import Panel, compose, enlarged, overlay

OTHER, FLIPPED = "other", "flipped"
SHARE = {OTHER: 0.2, FLIPPED: 0.4}  # of the pictures, or of the threes
TRUE, GIVEN = 3, 8
FOLLOWED = 16  # pictures that the callback explains
SHOWN = 3  # of each kind
RIGHT, WRONG_LABEL, WRONG_MODEL = "label and model right", "label wrong", "model wrong"
INK = {RIGHT: "C0", WRONG_LABEL: "C3", WRONG_MODEL: "C1"}


def mislabel(pictures: ScatteredDigits, noise: str, seed: int) -> Tensor:
    """Change labels in place; which ones are wrong now, (N,), bool."""
    true, drawn = torch.tensor(pictures.targets), torch.tensor(np.random.default_rng(seed).random(len(pictures)))
    given = torch.tensor(pictures.others) if noise == OTHER else torch.where(true == TRUE, GIVEN, true)
    labels = torch.where(drawn < SHARE[noise], given, true)
    pictures.targets = labels.tolist()
    return labels != true


@dataclass
class Found:
    """What is found on N validation pictures after the training; of the label, and of the prediction.

    Attributes:
        predicted: classes, (N,).
        scores: probabilities, (N, 2).
        kept: what the maps keep of them, (N, 2).
        large: share of the maps' energy on the large digit, (N, 2).
        small: on the small one.
        maps: (N, 2, 64, 64).
    """

    predicted: Tensor
    scores: Tensor
    kept: Tensor
    large: Tensor
    small: Tensor
    maps: Tensor


def explain(model: SmallCNN, pictures: ScatteredDigits) -> Found:
    """The maps of the label and of the prediction, for every picture."""
    labels, predicted = torch.tensor(pictures.targets), probabilities(model, pictures.images).argmax(1)
    explained = GuidedFeatureInversion(model).explain(pictures.images, torch.stack([labels, predicted], 1))
    large, small = (
        torch.stack([energy_in_region(maps, boxes_of(pictures, which)) for maps in explained.heatmaps.unbind(1)], 1)
        for which in (0, 1)
    )
    return Found(predicted, explained.score, explained.preserved, large, small, explained.heatmaps)


def kinds(found: Found, pictures: ScatteredDigits, wrong: Tensor) -> dict[str, Tensor]:
    """The numbers of the pictures of each kind; only those where the model holds with the truth about a wrong label."""
    agrees = found.predicted == torch.tensor(pictures.targets)
    return {
        RIGHT: (agrees & ~wrong).nonzero()[:, 0],
        WRONG_LABEL: (~agrees & wrong).nonzero()[:, 0],
        WRONG_MODEL: (~agrees & ~wrong).nonzero()[:, 0],
    }


def panels(kind: str, number: int, found: Found, pictures: ScatteredDigits) -> list[Panel]:
    """A picture, and both maps beside it."""
    image, label, predicted = pictures.images[number], pictures.targets[number], int(found.predicted[number])
    return [
        Panel(enlarged(image, 128), kind, [f"label: {label}", f"predicted: {predicted}"]),
        Panel(overlay(image, found.maps[number, 0], 128), f"for {label}", ["the label"]),
        Panel(overlay(image, found.maps[number, 1], 128), f"for {predicted}", ["the prediction"]),
    ]


def draw_maps(found: Found, pictures: ScatteredDigits, groups: dict[str, Tensor]) -> Image.Image:
    """The first pictures of which label and prediction differ: both maps beside each other."""
    pairs = zip(*(groups[kind][:SHOWN].tolist() for kind in (WRONG_LABEL, WRONG_MODEL)), strict=True)
    rows = [
        panels(WRONG_LABEL, one, found, pictures) + panels(WRONG_MODEL, other, found, pictures) for one, other in pairs
    ]
    return Image.fromarray(compose(rows, "label and prediction differ: which is wrong?"))


def draw_energy(found: Found, groups: dict[str, Tensor]) -> Figure:
    """Where the label's map lies, for all pictures of which label and prediction differ."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind in (WRONG_MODEL, WRONG_LABEL):
        numbers = groups[kind]
        axes.scatter(found.large[numbers, 0], found.small[numbers, 0], 14, color=INK[kind], label=kind, alpha=0.7)
    axes.set(xlabel="energy of the label's map on the large digit", ylabel="on the small digit")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    return figure


def probability_that_first_is_larger(first: Tensor, second: Tensor) -> float:
    """Of a value from the one group and one from the other: 0.5 tells nothing, 1 tells them apart."""
    difference = first[:, None] - second
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--noise", choices=(OTHER, FLIPPED), default=OTHER)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=6000)
    parser.add_argument("--log-dir", type=Path, default=Path("noise_logs"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()

    train, val = collections(options.train_size)
    mislabel(train, options.noise, seed=1)
    wrong = mislabel(val, options.noise, seed=2)
    followed = [*wrong.nonzero()[: FOLLOWED // 2, 0].tolist(), *(~wrong).nonzero()[: FOLLOWED // 2, 0].tolist()]
    regions = {"large digit": val.boxes[:, 0], "small digit": val.boxes[:, 1]}

    model = new_model()
    fit(model, train, val, options.epochs, options.log_dir, options.noise, samples=followed, regions=regions)
    evaluate(model, val, wrong, options)


def evaluate(model: SmallCNN, val: ScatteredDigits, wrong: Tensor, options: argparse.Namespace) -> None:
    """Print and keep the figures and pictures of a model that is trained."""
    found = explain(model, val)
    groups = kinds(found, val, wrong)
    rows: dict[str, list[object]] = {"pictures": [len(numbers) for numbers in groups.values()]}
    for name, values in (("probability", found.scores), ("kept", found.kept)):
        for whose, place in (("label", 0), ("prediction", 1)):
            rows[f"{name}, {whose}"] = [float(values[numbers, place].median()) for numbers in groups.values()]
    for whose, place in (("label", 0), ("prediction", 1)):
        for name, values in (("large digit", found.large), ("small digit", found.small)):
            rows[f"{whose}'s map on the {name}"] = [float(values[one, place].median()) for one in groups.values()]
    print_table("medians", list(groups), rows)

    print("\nHow well a number tells wrong labels from errors of the model (0.5: not at all):")
    tells = {
        "the label's probability, low": -found.scores[:, 0],
        "the prediction's probability, high": found.scores[:, 1],
        "the prediction's map, on the large digit": found.large[:, 1],
        "the label's map, on the small digit": found.small[:, 0],
        "the label's map, not on the large digit": -found.large[:, 0],
        "the label's map, kept": found.kept[:, 0],
    }
    order = {
        name: probability_that_first_is_larger(values[groups[WRONG_LABEL]], values[groups[WRONG_MODEL]])
        for name, values in tells.items()
    }
    for name, share in order.items():
        print(f"  {name:44} {share:.2f}")
    believed = int((wrong & (found.predicted == torch.tensor(val.targets))).sum())
    print(f"Wrong labels that the model predicts, too: {believed} of {int(wrong.sum())}.")
    numbers = {
        "epochs": options.epochs,
        "training pictures": options.train_size,
        "validation pictures": len(val),
        "wrong labels": int(wrong.sum()),
        "wrong labels that the model predicts": believed,
        "medians": by_column(list(groups), rows),
        "wrong labels and errors of the model in the right order": order,
    }
    save_numbers(numbers, options.out / f"label_noise_{options.noise}.json")
    save_picture(draw_maps(found, val, groups), options.out / f"label_noise_{options.noise}_maps.png")
    save_figure(draw_energy(found, groups), options.out / f"label_noise_{options.noise}_energy.png")


if __name__ == "__main__":
    main()
