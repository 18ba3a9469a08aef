"""Which layer? The same network and the same pictures, explained by base layers of different depth.

The pictures are those of digits.py. The network is trained once. Then the map of the label is made from each of its
layers, and from the two that are chosen where none is named.

    python examples/layer_choice.py [--epochs 5] [--train-size 6000] [--log-dir layer_logs] [--out docs/pictures]
"""

import argparse
from pathlib import Path

import torch
from digits import ScatteredDigits, SmallCNN
from PIL import Image
from scattered import (
    boxes_of,
    by_column,
    collections,
    fit,
    new_model,
    print_table,
    probabilities,
    save_numbers,
    save_picture,
)

from gfi_lightning import Explanation, GuidedFeatureInversion
from gfi_lightning.metrics import energy_in_region, insertion_deletion
from gfi_lightning.recording.pictures import Panel, compose, enlarged, overlay

LAYERS = ("features.2", "features.5", "features.8", "features.12")  # the ReLUs
CHOSEN = "by default"
EXPLAINED, SHOWN = 100, 3


def layers_and_grids(model: SmallCNN, images: torch.Tensor) -> dict[str, str]:
    """The resolution of each layer's feature maps."""
    grids, features = {}, images[:1]
    for number, module in enumerate(model.features):
        features = module(features)
        grids[f"features.{number}"] = f"{features.shape[2]} × {features.shape[3]}"
    return {layer: grids[layer] for layer in LAYERS}


def explain_all(model: SmallCNN, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Explanation]:
    """The label's maps, by layer."""
    named = {layer: GuidedFeatureInversion(model, layer=layer).explain(images, labels) for layer in LAYERS}
    chooser = GuidedFeatureInversion(model)
    chosen = chooser.explain(images, labels)
    print(f"Chosen by itself: {chooser.layer}")
    return named | {CHOSEN: chosen}


def draw(images: torch.Tensor, explained: dict[str, Explanation], grids: dict[str, str]) -> Image.Image:
    rows = []
    for number in range(SHOWN):
        image = images[number]
        maps = [
            Panel(overlay(image, one.heatmaps[number], 128), layer, [grids.get(layer, "two layers")])
            for layer, one in explained.items()
        ]
        rows.append([Panel(enlarged(image, 128), "image"), *maps])
    return Image.fromarray(compose(rows, "the same network, the same class: maps from layers of different depth"))


def right_ones(model: SmallCNN, pictures: ScatteredDigits) -> torch.Tensor:
    """The numbers of the first pictures that the network gets right."""
    right = probabilities(model, pictures.images).argmax(1) == torch.tensor(pictures.targets)
    return right.nonzero()[:EXPLAINED, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=6000)
    parser.add_argument("--log-dir", type=Path, default=Path("layer_logs"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()

    train, val = collections(options.train_size)
    model = new_model()
    history = fit(model, train, val, options.epochs, options.log_dir, "layers", layers=list(LAYERS))
    print("layers= in the history:", history.depth_layers)
    evaluate(model, val, options)


def evaluate(model: SmallCNN, val: ScatteredDigits, options: argparse.Namespace) -> None:
    """Print and keep the figures and the picture of a model that is trained."""
    numbers = right_ones(model, val)
    images, labels = val.images[numbers], torch.tensor(val.targets)[numbers]
    explained, grids = explain_all(model, images, labels), layers_and_grids(model, images)
    large, small = boxes_of(val, 0)[numbers], boxes_of(val, 1)[numbers]
    rows = {}
    for layer, one in explained.items():
        curves = insertion_deletion(model, images, one.heatmaps, labels)
        rows[f"{layer} {grids.get(layer, '')}".strip()] = [
            energy_in_region(one.heatmaps, large).mean().item(),
            energy_in_region(one.heatmaps, small).mean().item(),
            one.preserved.mean().item(),
            one.removed.mean().item(),
            (curves.insertion_area - curves.deletion_area).mean().item(),
        ]
    columns = ["large digit", "small digit", "kept", "removed", "ins − del"]
    print_table(f"means of {len(images)} pictures", columns, rows)
    areas = [large.float().mean().item(), small.float().mean().item()]
    print(f"Shares of the area: large digit {areas[0]:.2f}, small digit {areas[1]:.2f}.")
    measured = {
        "epochs": options.epochs,
        "pictures": len(images),
        "shares of the area": dict(zip(columns[:2], areas, strict=True)),
        "means": by_column(columns, rows),
    }
    save_numbers(measured, options.out / "layer_choice.json")
    save_picture(draw(images, explained, grids), options.out / "layer_choice.png")


if __name__ == "__main__":
    main()
