"""The pointing game with a multi-label network (Du et al. 2018, section 4.3): is the map's maximum on the object?

    python benchmarks/paper_pointing_game.py --data VOC --ids eval.txt --train train.txt

--data is a folder in VOC's form; the last layer is trained on the images of --train that are not in --ids.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from bench.bootstrap import LEVEL, RESAMPLES, Estimate, estimate
from bench.cases import Batch, Case, batches, hits, predicted_cases
from bench.experiments import (
    Experiment,
    Figures,
    Findings,
    Values,
    add_train,
    last_layer,
    network_of,
    on_object,
    over_batches,
    parser_of,
    publish,
)
from bench.methods import explain_ours
from bench.multilabel import retrain_last_layer
from bench.networks import Network
from bench.peers import Explain, centre, grad_cam
from bench.voc import Photograph, of_one_class, read_ids, read_photographs

HIT = "pointing hit"
IN_PAPER = {"Grad-CAM": "0.550", "centre": "0.483"}
GFI_IN_PAPER = "0.547"

EXPERIMENT = Experiment(
    "pointing_game",
    "The pointing game",
    """
A hit is a map whose maximum lies in a box of its class, without tolerance. As in the paper, a pretrained network gets a
new last layer, and only that is trained (binary cross-entropy, Adam with 1e-4, batches of 64), and the score is a
sigmoid. The mean over classes counts every class alike.

What differs: the paper has VGG-19, trained on VOC's training set, all 4,952 test images, and a map for every class in
them. Here it is MobileNetV2, trained on a few hundred of the *test* set's images, and others of them are reported,
with objects of one class each, so that there is one map for each image. Rare classes have an image or two, which the
intervals of the mean over classes show (images are resampled).
""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(EXPERIMENT, __doc__, limit=60)
    add_train(parser, "for the last layer")
    options = parser.parse_args(arguments)
    publish(EXPERIMENT, options, measure(options))


def measure(options: argparse.Namespace) -> Findings:
    ids = read_ids(options.ids)
    train = [name for name in read_ids(options.train) if name not in set(ids)]
    retrained = retrain_last_layer(network_of(options), read_photographs(options.data, train))
    network = retrained.network
    cases = annotated_cases(network, of_one_class(read_photographs(options.data, ids)))[: options.limit]
    right = len(hits(predicted_cases(network, [case.photograph for case in cases]), network.class_names))
    values = measured(network, cases, options)
    classes = np.array([case.target for case in cases])
    return Findings(
        images=[case.photograph.id for case in cases],
        tables={"": summary(values, classes), "Hits by class": by_class(values, classes, network.class_names)},
        remarks=[retrained.described(), f"The class it scores highest is the right one in {right / len(cases):.0%}."],
        values=values,
        reference="Grad-CAM",
    )


def annotated_cases(network: Network, photographs: Sequence[Photograph]) -> list[Case]:
    """Photographs of one class that the network knows, with that class."""
    indices = {name: index for index, name in network.class_names.items()}
    known = [photograph for photograph in photographs if photograph.classes[0] in indices]
    return [Case(photograph, indices[photograph.classes[0]]) for photograph in known]


def measured(network: Network, cases: Sequence[Case], options: argparse.Namespace) -> Values:
    def measure_batch(batch: Batch) -> dict:
        methods = explainers(network, batch, options.recipe)
        explained = {name: explain(network.model, batch.images, batch.targets) for name, explain in methods.items()}
        return {name: {HIT: on_object(maps, batch)[HIT]} for name, maps in explained.items()}

    return over_batches(batches(cases, network, options.batch_size), measure_batch)


def explainers(network: Network, batch: Batch, recipe: str) -> dict[str, Explain]:
    return {
        f"GFI, {recipe}": partial(explain_ours, options={"score": network.score, "recipe": recipe}),
        "Grad-CAM": partial(grad_cam, layer=last_layer(network, batch.images)),
        "centre": centre,
    }


def summary(values: Values, classes: np.ndarray) -> Figures:
    return {
        row: {
            "mean over classes": mean_over_classes(cells[HIT], classes),
            "mean over images": estimate(cells[HIT]),
            "paper, VGG-19 (mean over classes)": IN_PAPER.get(row, GFI_IN_PAPER),
        }
        for row, cells in values.items()
    }


def mean_over_classes(values: np.ndarray, classes: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of the classes' means, over the classes that were seen, in each resample likewise."""
    measured = ~np.isnan(values)
    values, one_hot = values[measured], np.eye(classes.max() + 1)[classes[measured]]
    every = np.arange(len(values))[None]
    resampled = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(_means_of_classes(values, one_hot, resampled), [tail, 100 - tail])
    return Estimate(float(_means_of_classes(values, one_hot, every)[0]), float(low), float(high), len(values))


def _means_of_classes(values: np.ndarray, one_hot: np.ndarray, rows: np.ndarray) -> np.ndarray:
    counts, sums = one_hot[rows].sum(1), (values[:, None] * one_hot)[rows].sum(1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.nanmean(means, axis=1)


def by_class(values: Values, classes: np.ndarray, names: dict[int, str]) -> Figures:
    """Hits of images, for each class."""
    return {
        names[index]: {row: _hits_of(cells[HIT][classes == index]) for row, cells in values.items()}
        for index in sorted(set(classes.tolist()))
    }


def _hits_of(values: np.ndarray) -> str:
    measured = values[~np.isnan(values)]
    return f"{measured.sum():.0f} of {len(measured)}" if len(measured) else "–"


if __name__ == "__main__":
    main()
