"""Adversarial input (Du et al. 2018, figure 4): when the network is fooled, where is the map of the true class?

    python benchmarks/paper_adversarial.py --data VOC --ids eval.txt

--data is a folder in VOC's form; those images are taken whose class is predicted right.
"""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from bench.cases import Batch
from bench.experiments import (
    Experiment,
    Findings,
    Values,
    estimates,
    last_layer,
    network_of,
    on_object,
    over_batches,
    parser_of,
    publish,
    reported_batches,
)
from bench.networks import Network
from bench.peers import grad_cam
from bench.voc import Preprocess
from PIL import Image
from torch import Tensor

from gfi_lightning import Explanation, GuidedFeatureInversion, metrics
from gfi_lightning.inversion.scores import ScoreFunction, log_odds, predicted_classes

GREY_LEVELS = 8.0

EXPERIMENT = Experiment(
    "adversarial",
    "Adversarial input",
    """
The fast gradient sign method (Goodfellow et al. 2015) moves every pixel by ε against the true class, once. Is the map
of the true class still on the object when the network no longer gives this class the highest score? Rows "fooled" hold
only the images for which it does not, before and after. Similarity is the rank correlation with the map before.

The default recipe explains the log-odds of a class, that is, the class against all others, and in a fooled network one
of these is far ahead: its map shows where the true class still holds against that one. Rows "of the logit" are the same
recipe with `score=` the class's logit alone, which is also what Grad-CAM explains.

What differs: the paper shows photographs, with VGG-19, and there are no figures of it, nor its ε, to put beside these.
Here many are measured, with MobileNetV2, and the true class is the ImageNet class that it predicts for the untouched
image, where that is right.
""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(EXPERIMENT, __doc__, limit=60)
    parser.add_argument("--epsilon", type=float, default=GREY_LEVELS, help="in grey levels of 255 (%(default)s)")
    options = parser.parse_args(arguments)
    publish(EXPERIMENT, options, measure(options))


def measure(options: argparse.Namespace) -> Findings:
    network = network_of(options)
    images, batches = reported_batches(network, options)
    values = over_batches(batches, lambda batch: measured(network, batch, options))
    flags = values.pop("network")
    fooled = flags["fooled"].astype(bool)
    remarks = [
        f"ε is {options.epsilon:g} of 255 grey levels, which takes the true class off the top in {fooled.mean():.0%}"
    ]
    if network.class_names:
        remarks[0] += f", and puts a class of another kind there in {flags['another kind'].mean():.0%}"
    remarks[0] += f"; its mean probability falls from {flags['before'].mean():.2f} to {flags['after'].mean():.2f}."
    return Findings(images, {"": estimates(with_fooled(values, fooled))}, remarks, values)


def measured(network: Network, batch: Batch, options: argparse.Namespace) -> Mapping[str, Mapping[str, Tensor]]:
    attacked = fast_gradient_sign(network, batch.images, batch.targets, options.epsilon)
    ours = f"GFI, {options.recipe}"
    layer = last_layer(network, batch.images)
    before, after = explained(network, options.recipe, network.score, batch, attacked)
    of_logit = explained(network, options.recipe, logit, batch, attacked)
    cams = [grad_cam(network.model, images, batch.targets, layer=layer) for images in (batch.images, attacked)]
    with torch.no_grad():
        predicted = predicted_classes(network.model(attacked), network.score)
    return {
        "network": {
            "fooled": predicted != batch.targets,
            "another kind": another_kind(network, batch.targets, predicted),
            "before": before.score,
            "after": after.score,
        },
        **compared(ours, before.heatmaps, after.heatmaps, batch),
        **compared(f"{ours}, of the logit", *(one.heatmaps for one in of_logit), batch),
        **compared("Grad-CAM", *cams, batch),
    }


def explained(
    network: Network, recipe: str, score: str | ScoreFunction, batch: Batch, attacked: Tensor
) -> list[Explanation]:
    """Before and after."""
    gfi = GuidedFeatureInversion(network.model, recipe=recipe, score=score)
    return [gfi.explain(images, batch.targets) for images in (batch.images, attacked)]


def logit(output: Tensor, targets: Tensor) -> Tensor:
    return output.gather(1, targets[:, None]).squeeze(1)


def fast_gradient_sign(network: Network, images: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """The images, each pixel moved by so many of 255 grey levels such that the target's log-odds fall fastest."""
    black, white = bounds(network.preprocess)
    images = images.detach().clone().requires_grad_()
    odds = log_odds(network.model(images), targets, network.score).sum()
    (gradient,) = torch.autograd.grad(odds, images)
    black, white = black.to(images), white.to(images)
    moved = images.detach() - epsilon / 255 * (white - black) * gradient.sign()
    return moved.clamp(black, white)


def bounds(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """What a black and a white pixel are to the network, (C, 1, 1)."""
    black, white = (preprocess(Image.new("RGB", (8, 8), (level,) * 3))[:, :1, :1] for level in (0, 255))
    return black, white


def another_kind(network: Network, targets: Tensor, predicted: Tensor) -> Tensor:
    """Whether the predicted class is none that annotations call by the target's name."""
    names = network.class_names or {}
    pairs = zip(targets.tolist(), predicted.tolist(), strict=True)
    return torch.tensor([names.get(target, target) != names.get(other, other) for target, other in pairs])


def compared(name: str, before: Tensor, after: Tensor, batch: Batch) -> dict[str, dict[str, Tensor]]:
    similarity = 1 - metrics.heatmap_drift(after.cpu(), before.cpu())
    return {
        f"{name}, before": on_object(before, batch),
        f"{name}, after": {**on_object(after, batch), "similarity": similarity},
    }


def with_fooled(values: Values, fooled: np.ndarray) -> Values:
    """The rows, each followed by one of the fooled images alone."""
    return {
        name: {column: np.where(kept, series, np.nan) for column, series in cells.items()}
        for row, cells in values.items()
        for name, kept in ((row, np.ones_like(fooled)), (f"{row}, fooled", fooled))
    }


if __name__ == "__main__":
    main()
