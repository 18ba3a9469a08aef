"""The base layer is found in every family of torchvision, captured as it was, and asked for in plain words."""

import logging
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision import models

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.layers import feature_maps
from gfi_lightning.inversion.network import Network
from tests.networks import ToyCNN, random_images

# One small member of each family: its input's side, the base layer, and the shape of its feature maps.
FAMILIES = {
    "alexnet": (224, "features.11", (256, 13, 13)),
    "convnext_tiny": (64, "features", (768, 2, 2)),
    "densenet121": (64, "features", (1024, 2, 2)),
    "efficientnet_b0": (64, "features", (1280, 2, 2)),
    "efficientnet_v2_s": (64, "features", (1280, 2, 2)),
    "googlenet": (64, "inception5b", (1024, 2, 2)),
    "inception_v3": (299, "Mixed_7c", (2048, 8, 8)),
    "maxvit_t": (224, "blocks.3", (512, 7, 7)),
    "mnasnet0_5": (64, "layers", (1280, 2, 2)),
    "mobilenet_v2": (64, "features", (1280, 2, 2)),
    "mobilenet_v3_small": (64, "features", (576, 2, 2)),
    "regnet_x_400mf": (64, "trunk_output", (400, 2, 2)),
    "regnet_y_400mf": (64, "trunk_output", (440, 2, 2)),
    "resnet18": (64, "layer4", (512, 2, 2)),
    "resnext50_32x4d": (64, "layer4", (2048, 2, 2)),
    "shufflenet_v2_x0_5": (64, "conv5", (1024, 2, 2)),
    "squeezenet1_1": (64, "classifier.2", (1000, 3, 3)),
    "swin_t": (64, "permute", (768, 2, 2)),
    "swin_v2_t": (64, "permute", (768, 2, 2)),
    "vgg11": (224, "features.19", (512, 14, 14)),
    "vgg11_bn": (64, "features.27", (512, 4, 4)),
    "vit_b_32": (224, "encoder", (768, 7, 7)),
    "wide_resnet50_2": (64, "layer4", (2048, 2, 2)),
}
INITIALISED_SLOWLY = {"inception_v3": {"init_weights": False}, "googlenet": {"init_weights": False}}


def family_of(name):
    return models.get_model_builder(name).__module__


def test_the_table_has_every_family():
    classifiers = models.list_models(module=models)
    assert {family_of(name) for name in classifiers} == {family_of(name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, caplog):
    side, expected_layer, expected_shape = FAMILIES[name]
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **INITIALISED_SLOWLY.get(name, {})).eval()
    images = torch.rand(1, 3, side, side)
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        network = Network(model, None, None, None)
        maps, _, output = network.look(images)
    assert (network.layer, tuple(maps.shape[1:])) == (expected_layer, expected_shape)
    assert output.shape == (1, 1000)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Base layer: {expected_layer}, feature maps of {' × '.join(map(str, expected_shape))}.")
    # Asked for by name, it is the same; and it is what the module returned, whatever works in place behind it.
    by_name = Network(model, expected_layer, None, None).look(images)[0]
    torch.testing.assert_close(maps, by_name, rtol=0, atol=0)
    returned = []
    dict(model.named_modules())[expected_layer].register_forward_hook(lambda m, a, out: returned.append(out.clone()))
    with torch.no_grad():
        model(images)
    torch.testing.assert_close(maps, feature_maps(returned[-1], (side, side)), rtol=0, atol=0)


class Wrapper(nn.Module):
    """As people keep networks in a LightningModule: under another name, and with an odd output."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return {"logits": self.network(images), "extra": images.mean()}


def test_inside_a_wrapper():
    network = Network(Wrapper(ToyCNN()), None, None, None)
    network.look(random_images(2, dtype=torch.float32))
    assert network.layer == "network.coarse"


def test_a_coarse_layer_is_announced_with_a_finer_one(caplog):
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        Network(models.resnet18().eval(), None, None, None).look(torch.rand(1, 3, 64, 64))
        Network(models.resnet18().eval(), None, None, None).look(torch.rand(1, 3, 128, 128))
    coarse, fine = [record.getMessage() for record in caplog.records]
    assert coarse.endswith("That is coarse: layer='layer3' has 256 × 4 × 4.")
    assert fine == "Base layer: layer4, feature maps of 512 × 4 × 4."


@pytest.mark.parametrize("side", [32, 64])
def test_one_position_is_not_enough(side):
    # At 32 px layer4 of a ResNet has a single position.
    network = Network(models.resnet18().eval(), None, None, None)
    network.look(torch.rand(1, 3, side, side))
    assert network.layer == {32: "layer3", 64: "layer4"}[side]


def test_a_map_before_a_module_that_works_in_place():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    maps = Network(model, "coarse.1", None, None).look(images)[0]
    assert (maps < 0).any(), "the ReLU behind it has overwritten the captured map"
    behind = Network(model, "coarse.2", None, None).look(images)[0]
    torch.testing.assert_close(maps.relu(), behind)


def test_functional_operations_in_place():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            maps = nn.functional.relu_(self.convolution(images))
            return self.head(nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1))

    torch.manual_seed(0)
    model, images = Functional(), torch.rand(2, 3, 8, 8)
    network = Network(model, None, None, None)
    maps = network.look(images)[0]
    assert network.layer == "convolution"
    torch.testing.assert_close(maps, model.convolution(images).detach())
    assert not GuidedFeatureInversion(model).explain(images).degenerate.any()


@pytest.mark.parametrize(
    "last",
    [nn.Dropout(), nn.Identity(), nn.Sequential(nn.Identity(), nn.Dropout2d()), nn.MaxPool2d(2), nn.AvgPool2d(2)],
    ids=lambda module: type(module).__name__,
)
def test_what_only_hands_on_or_pools_is_passed_over(last):
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), last)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    network = Network(model, None, None, None)
    maps = network.look(torch.rand(1, 3, 8, 8))[0]
    pools = isinstance(last, (nn.MaxPool2d, nn.AvgPool2d))
    assert network.layer == ("0.1" if pools else "0")
    assert maps.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 7, 7), (8, 7, 7)),
        ((2, 7, 7, 8), (8, 7, 7)),  # channels last
        ((2, 6, 4, 6), (6, 4, 6)),
        ((2, 50, 16), (16, 7, 7)),  # a class token
        ((2, 49, 16), (16, 7, 7)),
        ((2, 54, 16), (16, 7, 7)),  # and four registers
        ((2, 8, 1, 1), None),
        ((2, 8), None),
    ],
)
def test_forms_of_feature_maps(shape, expected):
    image_size = (64, 96) if expected == (6, 4, 6) else (224, 224)
    maps = feature_maps(torch.rand(shape), image_size)
    assert (maps is None) if expected is None else (tuple(maps.shape[1:]) == expected)


def test_tokens_lie_where_their_patches_lie():
    maps = torch.rand(2, 5, 3, 4)
    tokens = torch.cat([torch.rand(2, 1, 5), maps.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(feature_maps(tokens, (96, 128)), maps)


@pytest.mark.parametrize(
    ("role", "layer", "message"),
    [
        ("layer", "layer5", r"='layer5' does not exist\. Usable layers"),
        ("layer", "unused", "='unused' is not run in a forward pass"),
        ("layer", "head", r"='head' returns shape \(2, 5\), which has no spatial extent"),
        ("layer", "head.0", r"='head\.0' returns shape \(2, 6, 1, 1\), which has no spatial extent"),
        # Features can be compared at any layer, also without spatial extent.
        ("inversion_layer", "layer5", r"='layer5' does not exist\. Usable layers"),
        ("inversion_layer", "unused", "='unused' is not run in a forward pass"),
    ],
)
def test_a_layer_that_cannot_be_used(role, layer, message):
    model = ToyCNN()
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(UsageError, match=f"^{role}{message}") as error:
        GuidedFeatureInversion(model, **{role: layer}).explain(random_images(2, dtype=torch.float32))
    for usable in ("fine: 8 × 16 × 16", "pool: 8 × 8 × 8", "coarse: 6 × 8 × 8"):
        assert usable in str(error.value)
    assert "head" not in str(error.value).split("Usable layers")[1]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_feature_maps():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    with pytest.raises(UsageError, match="No module of Sequential gives a feature map with more than one position"):
        GuidedFeatureInversion(model).explain(torch.rand(1, 3, 16, 16))


def test_a_module_is_as_good_as_its_name():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    explanations = [GuidedFeatureInversion(model, layer).explain(images) for layer in ("fine", model.fine)]
    for one, other in pairwise(explanations):
        assert torch.equal(one.heatmaps, other.heatmaps)
