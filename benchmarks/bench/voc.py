"""Photographs with boxes, from any folder in the form of PASCAL VOC (JPEGImages, Annotations)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import Tensor

from gfi_lightning.errors import UsageError

Preprocess = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Object:
    """One annotated object.

    Attributes:
        name: of its class.
        box: x0, y0, x1, y1 in pixels of the photograph from 0, the last two exclusive.
        difficult: whether the annotators thought it hard to recognise.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False


@dataclass(frozen=True)
class Photograph:
    """One annotated photograph, not yet read."""

    id: str
    path: Path
    size: tuple[int, int]  # width, height
    objects: tuple[Object, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of its objects, sorted."""
        return tuple(sorted({thing.name for thing in self.objects}))

    def boxes(self, size: tuple[int, int], name: str | None = None) -> Tensor:
        """The boxes on the photograph when it is resized, without cropping, to (H, W).

        Args:
            size: (H, W) of what the network sees.
            name: only objects of this class; None: all.

        Returns:
            Shape (B, 4), float32: x0, y0, x1, y1, the last two exclusive.
        """
        width, height = self.size
        scale = torch.tensor([size[1] / width, size[0] / height] * 2)
        chosen = [thing.box for thing in self.objects if name in (None, thing.name)]
        return torch.tensor(chosen, dtype=torch.float32).reshape(-1, 4) * scale

    def image(self, preprocess: Preprocess) -> Tensor:
        """The photograph as the network sees it, shape (C, H, W)."""
        with Image.open(self.path) as image:
            return preprocess(image.convert("RGB"))


def read_ids(path: Path) -> list[str]:
    """The ids in a list, one a line; of a VOC list for one class (1, 0 or −1 behind each id) those without −1."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    ids = [fields[0] for fields in lines if fields[1:2] != ["-1"]]
    if not ids:
        raise UsageError(f"{path} holds no ids: give a file with one a line.")
    return list(dict.fromkeys(ids))


def read_photographs(folder: Path, ids: Sequence[str]) -> list[Photograph]:
    """The annotations of some photographs.

    Raises:
        UsageError: a photograph or its annotation is missing.
    """
    return [read_photograph(folder, name) for name in ids]


def read_photograph(folder: Path, name: str) -> Photograph:
    """The annotation of one photograph; see :func:`read_photographs`."""
    annotation = folder / "Annotations" / f"{name}.xml"
    if not annotation.is_file():
        raise UsageError(f"{annotation} is missing: give a folder that holds Annotations and JPEGImages for every id.")
    root = ElementTree.parse(annotation).getroot()
    path = _image_path(folder / "JPEGImages", name, root.findtext("filename"))
    with Image.open(path) as image:  # its annotation may have another size, or none
        size = image.size
    return Photograph(name, path, size, tuple(_object(node) for node in root.findall("object")))


def _image_path(folder: Path, name: str, file_name: str | None) -> Path:
    candidates = [folder / f"{name}.jpg", folder / (file_name or name), *sorted(folder.glob(f"{name}.*"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UsageError(f"{folder} has no image for the id {name!r}: expected is {candidates[0].name}.")


def _object(node: ElementTree.Element) -> Object:
    # Only its own box: the parts of a person have boxes, too.
    box = node.find("bndbox")
    if box is None:
        raise UsageError(f"An object {node.findtext('name')!r} has no bndbox: take the image off the list.")
    x0, y0, x1, y1 = (float(box.findtext(tag, "nan")) for tag in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1, and both corners belong to the box.
    return Object(
        node.findtext("name", ""), (x0 - 1, y0 - 1, x1, y1), node.findtext("difficult", "0").strip() not in ("", "0")
    )


def of_one_class(photographs: Sequence[Photograph]) -> list[Photograph]:
    """Those that hold objects of exactly one class."""
    return [photograph for photograph in photographs if len(photograph.classes) == 1]


def stack_images(photographs: Sequence[Photograph], preprocess: Preprocess) -> Tensor:
    """The photographs as the network sees them, shape (N, C, H, W).

    Raises:
        UsageError: the preprocessing gives images of several sizes.
    """
    images = [photograph.image(preprocess) for photograph in photographs]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise UsageError(f"The preprocessing gives images of shapes {sorted(sizes)}: resize to one size, uncropped.")
    return torch.stack(images)
