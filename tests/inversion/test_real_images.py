"""Photographs and a trained network: do the maps lie on the object, and does what they keep carry the class?"""

import importlib.util
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.metrics import insertion_deletion

SIDE = 224
COUNT = 8


@pytest.fixture(scope="module")
def network(shared_data):
    folder = shared_data / "imagenet"
    spec = importlib.util.spec_from_file_location("mobilenet_nets", folder / "mobilenet_nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MobileNetV2()
    model.load_state_dict(torch.load(folder / "mobilenet_v2_100.pt", weights_only=True))
    return model.eval()


def photograph(folder, name):
    """A photograph as the network sees it, (3, 224, 224), and where its objects are, (224, 224)."""
    image = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
    prepare = v2.Compose([v2.Resize((SIDE, SIDE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    inside = torch.zeros(SIDE, SIDE)
    for box in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("bndbox"):
        corner = {part.tag: float(part.text) for part in box}
        x0, x1 = (int(corner[key] * SIDE / image.width) for key in ("xmin", "xmax"))
        y0, y1 = (int(corner[key] * SIDE / image.height) for key in ("ymin", "ymax"))
        inside[y0:y1, x0:x1] = 1
    return prepare(image) * 2 - 1, inside


@pytest.mark.shared_data
def test_maps_lie_on_the_objects_and_carry_the_class(network, shared_data):
    folder = shared_data / "voc07"
    names = (folder / "train.txt").read_text().split()
    pairs = [photograph(folder, name) for name in names[:80]]
    small = [(image, inside) for image, inside in pairs if inside.mean() < 0.4][:COUNT]
    images, inside = (torch.stack(part) for part in zip(*small, strict=True))
    explanation = GuidedFeatureInversion(network).explain(images)
    assert not explanation.degenerate.any()
    curves = insertion_deletion(network, images, explanation.heatmaps, explanation.targets)
    assert (curves.insertion_area > curves.deletion_area).float().mean() >= 0.75
    energy = (explanation.heatmaps * inside).sum((1, 2)) / explanation.heatmaps.sum((1, 2))
    assert energy.mean() > 1.2 * inside.mean()
