"""Stage 1 against stage 2 (Du et al. 2018, sections 4.3 and 4.4): what does the target add?

    python benchmarks/paper_stages.py --data VOC --ids eval.txt

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
from bench.measures import CURVE_STEPS
from bench.networks import Network
from bench.peers import centre
from torch import Tensor

from gfi_lightning import GuidedFeatureInversion, metrics

EXPERIMENT = Experiment(
    "stages",
    "Stage 1 against stage 2",
    f"""
Stage 1 knows no class: its map shows what the features preserve. Stage 2 starts from it and refines it for the target.
Both maps are from one run; "centre" looks at nothing. Insertion and deletion are areas under the
probability in {CURVE_STEPS} steps, blurred baseline. The other columns are of salient object detection: precision,
recall and F_β (β² = 0.3) of what exceeds twice the map's mean, averaged over images, and the mean absolute error of the
map.

What differs: the paper scores stage 1 as a salient object detector against objects' masks. There are none here, so
**boxes stand in for masks**: a box holds background, too, and a map that keeps to the object's outline loses recall and
has a larger error by it. So these columns serve to compare the rows; the paper's figures (sec. 4.4) are of masks, and
not quoted beside them. The network is MobileNetV2, and the class is the one that it predicts, where that is right.
""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(EXPERIMENT, __doc__, limit=60).parse_args(arguments)
    publish(EXPERIMENT, options, measure(options))


def measure(options: argparse.Namespace) -> Findings:
    network = network_of(options)
    images, batches = reported_batches(network, options)
    values = over_batches(batches, lambda batch: measured(network, batch, options.recipe))
    return Findings(images, {"": estimates(values)}, values=values, reference="stage 1")


def measured(network: Network, batch: Batch, recipe: str) -> Mapping[str, Mapping[str, Tensor]]:
    gfi = GuidedFeatureInversion(network.model, recipe=recipe, score=network.score)
    explanation = gfi.explain(batch.images, batch.targets)
    maps = {
        "stage 1": explanation.foreground,
        "stage 2": explanation.heatmaps,
        "centre": centre(network.model, batch.images, batch.targets),
    }
    return {name: scores(network, of_images, batch) for name, of_images in maps.items()}


def scores(network: Network, maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    curves = metrics.insertion_deletion(
        network.model, batch.images, maps.to(batch.images.device), batch.targets, steps=CURVE_STEPS, score=network.score
    )
    salient = metrics.salient_object_scores(maps.cpu(), batch.regions)
    return {
        **on_object(maps, batch),
        "insertion − deletion": curves.difference,
        "precision": salient.precision,
        "recall": salient.recall,
        "F_β": salient.f_beta,
        "MAE": salient.mae,
    }


if __name__ == "__main__":
    main()
