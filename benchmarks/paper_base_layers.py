"""Localisation by base layer (Du et al. 2018, section 4.2): which layer's feature maps make the best mask?

    python benchmarks/paper_base_layers.py --data VOC --ids eval.txt --train train.txt

--data is a folder in VOC's form; α is tuned on the images of --train that are not in --ids.
"""

import argparse
from collections.abc import Mapping, Sequence

import torch
from bench.bootstrap import estimate
from bench.cases import Batch, Case, batches
from bench.experiments import (
    Cell,
    Experiment,
    Findings,
    Values,
    add_train,
    last_layer,
    network_of,
    on_object,
    over_batches,
    parser_of,
    publish,
    right_cases,
)
from bench.networks import Network
from bench.voc import read_ids
from torch import Tensor

from gfi_lightning import GuidedFeatureInversion, metrics
from gfi_lightning.inversion.recipes import RECIPES

LAYERS = ("features.7.conv.0", "features.11.conv.0", "features.14.conv.0", "features.18")
IN_PAPER = ("pool4: 0.540", "conv5_3: 0.492", "conv5_4: 0.382", "pool5: 0.437")
BOTH = "the default's two layers"
ERROR = "localisation error"

EXPERIMENT = Experiment(
    "base_layers",
    "Localisation by base layer",
    """
The mask is built from the feature maps of one layer at a time (`layer=…`), and features are always compared at the last
one. The localisation error is the share of images for which the tightest box around
map > α · mean has an IoU of at most 0.5 with every box of the class; α is tuned for each layer on other images, from
0, 0.5, …, 10.

What differs: the paper has VGG-19 and ImageNet's validation set. Here it is MobileNetV2 on images with objects of one
VOC class, which may be several, for the class that it predicts, where that is right. The layers are no counterparts of
the paper's; both are listed from shallow to deep. The paper has no mask of two layers, nor has its recipe here.
""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(EXPERIMENT, __doc__, limit=60)
    add_train(parser, "for α")
    parser.add_argument("--tune-limit", type=int, default=40, help="images for α (%(default)s)")
    parser.add_argument("--layers", nargs="+", default=LAYERS, help="from shallow to deep (%(default)s)")
    options = parser.parse_args(arguments)
    publish(EXPERIMENT, options, measure(options))


def measure(options: argparse.Namespace) -> Findings:
    network, ids = network_of(options), read_ids(options.ids)
    train = [name for name in read_ids(options.train) if name not in set(ids)]
    cases = right_cases(network, options.data, ids, options.limit)
    tuning = right_cases(network, options.data, train, options.tune_limit)
    values: Values = {}
    figures: dict[str, Mapping[str, Cell]] = {}
    alone = RECIPES[options.recipe].resolutions == 1
    for number, layer in enumerate([*options.layers, *[None] * (not alone)]):
        row = layer or BOTH
        gfi = explainer(network, layer, cases, options.recipe)
        maps, boxes = explained(gfi, network, tuning, options)
        alpha = metrics.tune_alpha(maps, boxes)
        values |= over_batches(
            batches(cases, network, options.batch_size),
            lambda batch, gfi=gfi, row=row, alpha=alpha: {row: localized(gfi, batch, alpha)},
        )
        figures[row] = {
            "resolution": "×".join(map(str, gfi.invert(first_image(cases, network)).grid)),
            "tuned α": f"{alpha:g}",
            **{column: estimate(series) for column, series in values[row].items()},
            "paper, VGG-19 (error)": IN_PAPER[number] if tuple(options.layers) == LAYERS and layer else "–",
        }
    return Findings(
        images=[case.photograph.id for case in cases],
        tables={"": figures},
        remarks=[f"α was tuned on {len(tuning)} images of {options.train.name}."],
        values=values,
        reference=options.layers[-1] if alone else BOTH,
    )


def explainer(network: Network, layer: str | None, cases: Sequence[Case], recipe: str) -> GuidedFeatureInversion:
    """With one base layer, or those that the recipe finds."""
    last = None if layer is None else last_layer(network, first_image(cases, network))
    return GuidedFeatureInversion(network.model, layer, inversion_layer=last, recipe=recipe, score=network.score)


def first_image(cases: Sequence[Case], network: Network) -> Tensor:
    return cases[0].photograph.image(network.preprocess)[None].to(network.device)


def explained(
    gfi: GuidedFeatureInversion, network: Network, cases: Sequence[Case], options: argparse.Namespace
) -> tuple[Tensor, list[Tensor]]:
    """The maps of all images, (N, H, W), and their boxes."""
    maps, boxes = [], []
    for batch in batches(cases, network, options.batch_size):
        maps.append(gfi.explain(batch.images, batch.targets).heatmaps.cpu())
        boxes += batch.boxes
    return torch.cat(maps), boxes


def localized(gfi: GuidedFeatureInversion, batch: Batch, alpha: float) -> dict[str, Tensor]:
    maps = gfi.explain(batch.images, batch.targets).heatmaps.cpu()
    return {ERROR: ~metrics.localization_hits(maps, batch.boxes, alpha), **on_object(maps, batch)}


if __name__ == "__main__":
    main()
