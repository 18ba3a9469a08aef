"""The effect of the background (Du et al. 2018, section 3.2): blur, mean colour, or noise?

    python benchmarks/paper_backgrounds.py --data VOC --ids eval.txt

--data is a folder in VOC's form; those images are taken whose class is predicted right.
"""

import argparse
from collections.abc import Mapping, Sequence

from bench.cases import Batch
from bench.experiments import (
    Experiment,
    Findings,
    estimates,
    network_of,
    on_object,
    over_batches,
    parser_of,
    publish,
    reported_batches,
)
from bench.networks import Network
from torch import Tensor

from gfi_lightning import GuidedFeatureInversion, metrics

BACKGROUNDS = ("blur", "mean", "noise")
BASELINES = ("blur", "mean")
STEPS = 7

EXPERIMENT = Experiment(
    "backgrounds",
    "The effect of the background",
    f"""
What replaces the removed parts of the image while the mask is optimised: a Gaussian blur (11 px at 224 px), the image's
mean colour, or Gaussian white noise of the image's mean and spread. Insertion and
deletion are areas under the probability in {STEPS} steps, with two baselines, because each flatters the background that
is like it. Similarity is the rank correlation with the map of the blur.

What differs: the paper names the three and takes the blur; there are no figures of it to put beside these. Its authors
blur by PIL with radius 11 before resizing, and the mean colour is the data set's; here it is the image's own. The
network is MobileNetV2, and the class is the one that it predicts, where that is right.
""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(EXPERIMENT, __doc__, limit=60).parse_args(arguments)
    publish(EXPERIMENT, options, measure(options))


def measure(options: argparse.Namespace) -> Findings:
    network = network_of(options)
    images, batches = reported_batches(network, options)
    values = over_batches(batches, lambda batch: measured(network, batch, options.recipe))
    return Findings(images, {"": estimates(values)}, values=values, reference="blur")


def measured(network: Network, batch: Batch, recipe: str) -> Mapping[str, Mapping[str, Tensor]]:
    maps = {name: explained(network, batch, recipe, name) for name in BACKGROUNDS}
    found = {name: {**on_object(one, batch), **faithfulness(network, one, batch)} for name, one in maps.items()}
    for name in BACKGROUNDS[1:]:
        found[name]["similarity"] = 1 - metrics.heatmap_drift(maps[name], maps["blur"])
    return found


def explained(network: Network, batch: Batch, recipe: str, background: str) -> Tensor:
    gfi = GuidedFeatureInversion(network.model, recipe=recipe, background=background, score=network.score)
    return gfi.explain(batch.images, batch.targets).heatmaps


def faithfulness(network: Network, maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {
        f"insertion − deletion, {baseline} baseline": metrics.insertion_deletion(
            network.model, batch.images, maps, batch.targets, steps=STEPS, baseline=baseline, score=network.score
        ).difference
        for baseline in BASELINES
    }


if __name__ == "__main__":
    main()
