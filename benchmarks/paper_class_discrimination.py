"""Class discrimination (Du et al. 2018, figure 3): one image with objects of two classes, one map for each.

    python benchmarks/paper_class_discrimination.py --data VOC --ids train.txt

--data is a folder in VOC's form; the last layer is trained on the images of --ids that are not reported.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench.experiments import (
    Experiment,
    Findings,
    estimates,
    last_layer,
    network_of,
    over_batches,
    parser_of,
    publish,
)
from bench.multilabel import retrain_last_layer
from bench.networks import Network
from bench.peers import grad_cam
from bench.voc import Photograph, read_ids, read_photographs, stack_images
from torch import Tensor

from gfi_lightning import GuidedFeatureInversion, UsageError, metrics

SMALLEST_SHARE = 0.02  # of the image, that each class must have to itself

EXPERIMENT = Experiment(
    "class_discrimination",
    "Class discrimination",
    f"""
One photograph with objects of two classes, one map for each class: does each lie on its own class? Own share is the
energy in boxes of the map's class alone, divided by that in boxes of either class alone (what lies in boxes of both, or
of none, is left out), the mean over both maps. A map that is the same for both classes has an own share of exactly
0.5. Only photographs are taken in which each class has at least {SMALLEST_SHARE:.0%} of the image to itself. Own hit:
the maximum lies in a box of the map's class; other hit: in one of the other class and none of its own. Similarity is
the rank correlation between the two maps. "Rather than the other" is the contrast of the classes (`against=`).

What differs: the paper shows photographs (an African elephant at 95.3 % and a zebra at 0.2 %), with VGG-19 and
ImageNet's classes, and there are no figures of it to put beside these. Here many photographs are measured, with
MobileNetV2 and a new last layer for VOC's classes with a sigmoid score, trained as in the pointing game on those images
of the same list that are not reported. In most of them a person is one of the two.
""",
)


@dataclass(frozen=True)
class Pairs:
    """Photographs of two classes each, ready to be explained.

    Attributes:
        images: (N, C, H, W).
        targets: (N, 2).
        regions: (N, 2, H, W), bool: the boxes of each class.
    """

    images: Tensor
    targets: Tensor
    regions: Tensor

    def __len__(self) -> int:
        return len(self.images)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(EXPERIMENT, __doc__, limit=60)
    options = parser.parse_args(arguments)
    publish(EXPERIMENT, options, measure(options))


def measure(options: argparse.Namespace) -> Findings:
    network, photographs = network_of(options), read_photographs(options.data, read_ids(options.ids))
    reported = [photograph for photograph in photographs if is_apart(photograph)][: options.limit]
    if not reported:
        raise UsageError(f"{options.ids} holds no photograph of two classes whose boxes lie apart.")
    retrained = retrain_last_layer(network, [photograph for photograph in photographs if photograph not in reported])
    network = retrained.network
    known = set(network.class_names.values())
    reported = [photograph for photograph in reported if known.issuperset(photograph.classes)]
    starts = range(0, len(reported), options.batch_size)
    parts = (pairs(network, reported[start : start + options.batch_size]) for start in starts)
    values = over_batches(parts, lambda part: measured(network, part, options.recipe))
    both = values.pop("network")["both found"]
    return Findings(
        images=[photograph.id for photograph in reported],
        tables={"": estimates(values)},
        remarks=[retrained.described(), f"It gives both classes a probability above 0.5 in {np.mean(both):.0%}."],
        values=values,
        reference="Grad-CAM",
    )


def is_apart(photograph: Photograph) -> bool:
    """Whether it has objects of two classes, and each class has some of the image to itself."""
    if len(photograph.classes) != 2:
        return False
    first, second = regions_of(photograph, (100, 100))
    return min(float(alone.float().mean()) for alone in (first & ~second, second & ~first)) >= SMALLEST_SHARE


def regions_of(photograph: Photograph, size: tuple[int, int]) -> Tensor:
    """The boxes of each of its classes, (classes, H, W), bool."""
    return metrics.regions_of_boxes([photograph.boxes(size, name) for name in photograph.classes], size)


def pairs(network: Network, photographs: Sequence[Photograph]) -> Pairs:
    images = stack_images(photographs, network.preprocess).to(network.device)
    indices = {name: index for index, name in network.class_names.items()}
    targets = torch.tensor([[indices[name] for name in photograph.classes] for photograph in photographs])
    regions = torch.stack([regions_of(photograph, (images.shape[2], images.shape[3])) for photograph in photographs])
    return Pairs(images, targets.to(images.device), regions)


def measured(network: Network, part: Pairs, recipe: str) -> Mapping[str, Mapping[str, Tensor]]:
    gfi = GuidedFeatureInversion(network.model, recipe=recipe, score=network.score)
    inversion = gfi.invert(part.images)
    explanation = gfi.refine(inversion, part.targets)
    contrast = gfi.refine(inversion, part.targets, part.targets.flip(1))
    layer = last_layer(network, part.images)
    cam = [grad_cam(network.model, part.images, targets, layer=layer) for targets in part.targets.unbind(1)]
    maps = {
        f"GFI, {recipe}": explanation.heatmaps,
        f"GFI, {recipe}, rather than the other": contrast.heatmaps,
        "Grad-CAM": torch.stack(cam, 1),
    }
    found = {"network": {"both found": (explanation.score > 0.5).all(1)}}
    return found | {name: discrimination(pair.cpu(), part.regions) for name, pair in maps.items()}


def discrimination(maps: Tensor, regions: Tensor) -> dict[str, Tensor]:
    """How far two maps of an image lie each on its own class.

    Args:
        maps: (N, 2, H, W), at least 0.
        regions: (N, 2, H, W), bool.
    """
    own, other = regions, regions.flip(1)
    on_own, on_other = ((maps * alone).sum((2, 3)) for alone in (own & ~other, other & ~own))
    # A map that is empty on both says nothing: as much as one that is the same for both.
    share = torch.where(on_own + on_other > 0, on_own / (on_own + on_other), 0.5)
    flat = maps.flatten(0, 1)
    own_hits, other_hits = (
        metrics.pointing_hits(flat, region.flatten(0, 1)).view(-1, 2).float().mean(1) for region in (own, other & ~own)
    )
    return {
        "own share": share.mean(1),
        "own hit": own_hits,
        "other hit": other_hits,
        "similarity of the two maps": 1 - metrics.heatmap_drift(maps[:, 0], maps[:, 1]),
    }


if __name__ == "__main__":
    main()
