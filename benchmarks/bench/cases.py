"""Which images are explained, for which class, and in which batches."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.networks import Network
from bench.voc import Photograph, stack_images
from gfi_lightning.inversion.scores import predicted_classes
from gfi_lightning.metrics import regions_of_boxes

_PREDICTION_BATCH = 8


@dataclass(frozen=True)
class Case:
    """A photograph with objects of one class, and the class that the network predicts for it."""

    photograph: Photograph
    target: int


@dataclass(frozen=True)
class Batch:
    """Cases, ready to be explained.

    Attributes:
        images: (N, C, H, W), on the network's device.
        targets: (N,), int64, likewise.
        boxes: N tensors (B, 4) in pixels of these images, on the CPU.
    """

    images: Tensor
    targets: Tensor
    boxes: list[Tensor]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def regions(self) -> Tensor:
        """Where the boxes are, (N, H, W), bool, on the CPU."""
        return regions_of_boxes(self.boxes, self.size)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.images.shape[2], self.images.shape[3]


def predicted_cases(network: Network, photographs: Sequence[Photograph]) -> list[Case]:
    """The photographs with the network's predictions."""
    cases = []
    for start in range(0, len(photographs), _PREDICTION_BATCH):
        part = photographs[start : start + _PREDICTION_BATCH]
        with torch.inference_mode():
            output = network.model(stack_images(part, network.preprocess).to(network.device))
        classes = predicted_classes(output, network.score).tolist()
        cases += [Case(*pair) for pair in zip(part, classes, strict=True)]
    return cases


def hits(cases: Sequence[Case], class_names: Mapping[int, str]) -> list[Case]:
    """The cases whose predicted class bears the name of the objects."""
    return [case for case in cases if (class_names.get(case.target),) == case.photograph.classes]


def names_from_list(path: Path) -> dict[int, str]:
    """Class index to annotation name, from a JSON list of {"id", "voc", "imagenet"}."""
    return {int(entry["imagenet"]): entry["voc"] for entry in json.loads(path.read_text(encoding="utf-8"))}


def batches(cases: Sequence[Case], network: Network, size: int) -> Iterator[Batch]:
    """The cases in batches of the given size, read when they are asked for."""
    for start in range(0, len(cases), size):
        part = cases[start : start + size]
        images = stack_images([case.photograph for case in part], network.preprocess)
        boxes = [case.photograph.boxes((images.shape[2], images.shape[3])) for case in part]
        targets = torch.tensor([case.target for case in part])
        yield Batch(images.to(network.device), targets.to(network.device), boxes)
