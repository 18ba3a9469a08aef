"""Train small networks from scratch, and make their images a folder in VOC's form, for quality.py.

    python benchmarks/small_networks.py --data IMAGES --out FOLDER
    GFI_SMALL_NETWORKS=FOLDER python benchmarks/quality.py --network bench.small:resnet \
        --data FOLDER --ids FOLDER/eval.txt --tune FOLDER/train.txt

--data holds train/ and val/, a folder of JPEGs for each class, and boxes.json, from the path of an image to the box of
its object: x0, y0, x1, y1 in px, the last two within it.
"""

import argparse
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch
from bench.progress import say
from bench.small import CLASSES, KINDS, preprocess, train
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

TUNING = 15  # images of each class in train.txt


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for images, lists and weights")
    parser.add_argument("--networks", nargs="+", default=[*KINDS], choices=[*KINDS])
    parser.add_argument("--epochs", type=int, help="none given: those of each network")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    write_voc(options.data, options.out)
    (images, labels, names), (val_images, val_labels, _) = (read(options.data / part) for part in ("train", "val"))
    (options.out / CLASSES).write_text(json.dumps(names), encoding="utf-8")
    for kind in options.networks:
        model = train(kind, images, labels, len(names), options.epochs)
        torch.save(model.state_dict(), options.out / f"{kind}.pt")
        print(f"{kind}: {accuracy(model, val_images, val_labels):.1%} of {len(val_images)} images are recognised")


def read(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Images, labels and the names of the classes."""
    images = ImageFolder(folder)
    return torch.stack([preprocess(image) for image, _ in images]), torch.tensor(images.targets), images.classes


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([model(part).argmax(1) for part in images.split(100)])
    return float((predicted == labels).float().mean())


def write_voc(data: Path, out: Path) -> None:
    """All of val/, one half in eval.txt and the other in search.txt, and some of train/ in train.txt."""
    boxes: dict[str, list[int]] = json.loads((data / "boxes.json").read_text(encoding="utf-8"))
    shuffled = sorted(boxes)
    random.Random(0).shuffle(shuffled)
    val = [name for name in shuffled if name.startswith("val/")]
    lists = {"eval": val[::2], "search": val[1::2], "train": some_of_each_class(shuffled, TUNING)}
    for folder in ("JPEGImages", "Annotations"):
        (out / folder).mkdir(exist_ok=True)
    for title, names in lists.items():
        (out / f"{title}.txt").write_text("\n".join(Path(name).stem for name in names), encoding="utf-8")
        for name in names:
            write_annotated(data, name, boxes, out)
        say(f"{title}.txt: {len(names)} images")


def some_of_each_class(names: Sequence[str], count: int) -> list[str]:
    """The first of train/."""
    by_class: dict[str, list[str]] = {}
    for name in names:
        part, kind, _ = name.split("/")
        if part == "train":
            by_class.setdefault(kind, []).append(name)
    return [name for kind in sorted(by_class) for name in by_class[kind][:count]]


def write_annotated(data: Path, name: str, boxes: Mapping[str, Sequence[int]], out: Path) -> None:
    """A copy of the image, and its annotation."""
    _, kind, _ = name.split("/")
    shutil.copy(data / name, out / "JPEGImages" / f"{Path(name).stem}.jpg")
    root = ElementTree.Element("annotation")
    thing = ElementTree.SubElement(root, "object")
    ElementTree.SubElement(thing, "name").text = kind
    box = ElementTree.SubElement(thing, "bndbox")
    for tag, edge in zip(("xmin", "ymin", "xmax", "ymax"), boxes[name], strict=True):
        ElementTree.SubElement(box, tag).text = str(edge + 1)  # VOC counts from 1
    ElementTree.ElementTree(root).write(out / "Annotations" / f"{Path(name).stem}.xml")


if __name__ == "__main__":
    main()
