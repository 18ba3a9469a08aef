"""Small networks, trained from scratch on a folder that nobody has seen."""

import json

import numpy as np
import pytest
import small_networks
import torch
from bench.networks import find_network, peer_layers
from bench.peers import grad_cam
from bench.small import FOLDER, KINDS, preprocess, train
from bench.voc import read_ids, read_photographs
from PIL import Image

from gfi_lightning import GuidedFeatureInversion, UsageError

BOXES = {"red": [4, 8, 19, 31], "blue": [30, 20, 60, 50]}
GRIDS = {"resnet": (16, 16), "plain": (16, 16), "vit": (8, 8), "swin": (8, 8)}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Noise with a rectangle, whose colour is the class."""
    folder, generator, boxes = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0), {}
    for part, count in (("train", 16), ("val", 6)):
        for kind, (x0, y0, x1, y1) in BOXES.items():
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(60, 120, (64, 64, 3), dtype=np.uint8)
                pixels[y0 : y1 + 1, x0 : x1 + 1] = COLOURS[kind]
                name = f"{part}/{kind}/{part}_{kind}_{number}.JPEG"
                Image.fromarray(pixels).save(folder / name, quality=95)
                boxes[name] = BOXES[kind]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return folder


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "out"
    small_networks.main(["--data", str(tiny), "--out", str(out), "--epochs", "16"])
    return out


def test_lists_share_no_image_and_boxes_are_where_they_were(made):
    lists = {title: read_ids(made / f"{title}.txt") for title in ("eval", "search", "train")}
    assert {title: len(ids) for title, ids in lists.items()} == {"eval": 6, "search": 6, "train": 30}
    assert len(set().union(*lists.values())) == 42
    for photograph in read_photographs(made, lists["eval"]):
        (kind,) = photograph.classes
        x0, y0, x1, y1 = BOXES[kind]
        assert photograph.boxes((64, 64)).tolist() == [[x0, y0, x1 + 1, y1 + 1]]
        assert photograph.image(preprocess).shape == (3, 64, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_network_is_found_and_recognises_its_classes(made, monkeypatch, kind):
    monkeypatch.setenv(FOLDER, str(made))
    network = find_network(f"bench.small:{kind}")
    assert network.class_names == {0: "blue", 1: "red"}
    assert not network.model.training
    photographs = read_photographs(made, read_ids(made / "eval.txt"))
    images = torch.stack([photograph.image(network.preprocess) for photograph in photographs])
    with torch.no_grad():
        predicted = network.model(images).argmax(1).tolist()
    assert [network.class_names[index] for index in predicted] == [one.classes[0] for one in photographs]
    assert GuidedFeatureInversion(network.model).explain(images[:2]).grid == GRIDS[kind]
    layers = network.layers or peer_layers(network.model, images[:1])
    for layer in layers:
        assert grad_cam(network.model, images[:2], torch.tensor([0, 1]), layer=layer).amax((1, 2)).gt(0).any()


def test_the_same_seed_trains_the_same_network():
    images, labels = torch.rand(64, 3, 16, 16), torch.arange(64) % 2
    first, again, other = (train("resnet", images, labels, 2, 1, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_without_a_folder_it_is_said_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(UsageError, match=r"Run benchmarks/small_networks\.py"):
        find_network("bench.small:plain")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(UsageError, match="GFI_SMALL_NETWORKS"):
        find_network("bench.small:plain")
