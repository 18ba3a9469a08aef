"""The base layer is found in every family of torchvision, captured as it was, and asked for in plain words."""

import logging
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision import models

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.layers import Capture, Layer, feature_maps, hooked
from gfi_lightning.inversion.network import Network
from tests.networks import ToyCNN, random_images

# One small member of each family: its input's side, and its base layers with the shapes of their feature maps: of twice
# the last one's resolution (of a bottleneck it is the expansion, which comes before the stride), and the last one.
FAMILIES = {
    "alexnet": (224, ("features.4", (192, 27, 27)), ("features.11", (256, 13, 13))),
    "convnext_tiny": (64, ("features.6.0", (384, 4, 4)), ("features", (768, 2, 2))),
    "densenet121": (64, ("features.transition3.conv", (512, 4, 4)), ("features", (1024, 2, 2))),
    "efficientnet_b0": (64, ("features.6.0.block.0", (672, 4, 4)), ("features", (1280, 2, 2))),
    "efficientnet_v2_s": (64, ("features.6.0.block.0", (960, 4, 4)), ("features", (1280, 2, 2))),
    "googlenet": (64, ("inception4e", (832, 4, 4)), ("inception5b", (1024, 2, 2))),
    "inception_v3": (299, ("Mixed_7a.branch7x7x3_3", (192, 17, 17)), ("Mixed_7c", (2048, 8, 8))),
    "maxvit_t": (
        224,
        ("blocks.3.layers.0.layers.MBconv.layers.conv_a", (2048, 14, 14)),
        ("blocks.3", (512, 7, 7)),
    ),
    "mnasnet0_5": (64, ("layers.12.0.layers.2", (288, 4, 4)), ("layers", (1280, 2, 2))),
    "mobilenet_v2": (64, ("features.14.conv.0", (576, 4, 4)), ("features", (1280, 2, 2))),
    "mobilenet_v3_small": (64, ("features.9.block.0", (288, 4, 4)), ("features", (576, 2, 2))),
    "regnet_x_400mf": (64, ("trunk_output.block4.block4-0.f.a", (400, 4, 4)), ("trunk_output", (400, 2, 2))),
    "regnet_y_400mf": (64, ("trunk_output.block4.block4-0.f.a", (440, 4, 4)), ("trunk_output", (440, 2, 2))),
    "resnet18": (64, ("layer3", (256, 4, 4)), ("layer4", (512, 2, 2))),
    "resnext50_32x4d": (64, ("layer4.0.relu:1", (1024, 4, 4)), ("layer4", (2048, 2, 2))),
    "shufflenet_v2_x0_5": (64, ("stage4.0.branch2.2", (96, 4, 4)), ("conv5", (1024, 2, 2))),
    "squeezenet1_1": (64, ("features.7", (256, 7, 7)), ("classifier.2", (1000, 3, 3))),
    "swin_t": (64, ("features.5", (384, 4, 4)), ("permute", (768, 2, 2))),
    "swin_v2_t": (64, ("features.5", (384, 4, 4)), ("permute", (768, 2, 2))),
    "vgg11": (224, ("features.14", (512, 28, 28)), ("features.19", (512, 14, 14))),
    "vgg11_bn": (64, ("features.20", (512, 8, 8)), ("features.27", (512, 4, 4))),
    "vit_b_32": (224, ("encoder.layers.encoder_layer_11.ln_1", (768, 7, 7))),  # all layers have one resolution
    "wide_resnet50_2": (64, ("layer4.0.relu:1", (1024, 4, 4)), ("layer4", (2048, 2, 2))),
}
INITIALISED_SLOWLY = {"inception_v3": {"init_weights": False}, "googlenet": {"init_weights": False}}


def family_of(name):
    return models.get_model_builder(name).__module__


def test_the_table_has_every_family():
    classifiers = models.list_models(module=models)
    assert {family_of(name) for name in classifiers} == {family_of(name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, caplog):
    side, *expected = FAMILIES[name]
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **INITIALISED_SLOWLY.get(name, {})).eval()
    images = torch.rand(1, 3, side, side)
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        network = Network(model, None, None, None, resolutions=2)
        maps, features, output = network.look(images)
    found = [(str(layer), tuple(one.shape[1:])) for layer, one in zip(network.base, maps, strict=True)]
    assert found == expected
    assert network.inversion == network.base[-1]
    assert output.shape == (1, 1000)
    (line,) = [record.getMessage() for record in caplog.records]
    announced = [f"{layer}, feature maps of {' × '.join(map(str, shape))}" for layer, shape in expected]
    assert line.startswith(f"Base layer{'s' * (len(expected) > 1)}: {' and '.join(announced)}.")
    # Asked for by name, they are the same; and they are what the modules returned, whatever works in place behind them.
    by_name = Network(model, [layer for layer, _ in expected], None, None).look(images)
    torch.testing.assert_close(maps, by_name.maps, rtol=0, atol=0)
    torch.testing.assert_close(features, by_name.features, rtol=0, atol=0)
    for (layer, _), one in zip(expected, maps, strict=True):
        torch.testing.assert_close(one, feature_maps(returned_by(model, layer, images), (side, side)), rtol=0, atol=0)


def returned_by(model, layer, images):
    """What a module returned in the given call, or in the last."""
    name, _, call = layer.partition(":")
    returned = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: returned.append(out.clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    return returned[int(call or 0) - 1]


def found_in(model, images, resolutions=2):
    """The names of the base layers that are found, and the shapes of their feature maps."""
    network = Network(model, None, None, None, resolutions)
    maps = network.look(images).maps
    return [(str(layer), tuple(one.shape[1:])) for layer, one in zip(network.base, maps, strict=True)]


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
    assert network.base == (Layer("network.coarse"),)


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
    assert network.base == (Layer({32: "layer3", 64: "layer4"}[side]),)


def test_a_map_before_a_module_that_works_in_place():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    (maps,) = Network(model, "coarse.1", None, None).look(images).maps
    assert (maps < 0).any(), "the ReLU behind it has overwritten the captured map"
    (behind,) = Network(model, "coarse.2", None, None).look(images).maps
    torch.testing.assert_close(maps.relu(), behind)


def test_a_container_that_adds_in_place_to_what_it_hands_on():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images):
            maps = self.branch(images)
            maps += images
            return maps

    torch.manual_seed(0)
    block, images = Block(), torch.rand(2, 3, 8, 8)
    network = Network(nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten()), None, None, None)
    (maps,) = network.look(images).maps
    assert network.base == (Layer("0"),)
    torch.testing.assert_close(maps, block(images).detach())


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
    (maps,) = network.look(images).maps
    assert network.base == (Layer("convolution"),)
    torch.testing.assert_close(maps, model.convolution(images).detach())
    assert not GuidedFeatureInversion(model).explain(images).degenerate.any()


@pytest.mark.parametrize(
    "last",
    [
        nn.Dropout(),
        nn.Identity(),
        nn.Sequential(nn.Identity(), nn.Dropout2d()),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        nn.ZeroPad2d(1),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d(1),
        nn.CircularPad2d(1),
        nn.Softmax(1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_only_hands_on_pools_or_pads_is_passed_over(last):
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), last)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    hands_on = isinstance(last, (nn.Dropout, nn.Identity, nn.Sequential))
    assert found_in(model, torch.rand(1, 3, 8, 8)) == [("0" if hands_on else "0.1", (4, 8, 8))]


def test_padding_in_front_of_a_stride_is_not_of_twice_the_resolution():
    # Padded from 16 to 17, which would be twice 8 as well.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 5, 3, 2))
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert found_in(model, torch.rand(1, 3, 16, 16)) == [("0.0", (4, 16, 16)), ("0", (5, 8, 8))]


@pytest.mark.parametrize(
    ("side", "kernel", "padding", "coarse"),
    [(15, 3, 1, 8), (17, 3, 0, 8), (18, 3, 0, 8), (35, 3, 0, 17), (7, 3, 1, 4), (12, 3, 0, 5), (16, 2, 0, 8)],
)
def test_twice_an_odd_size(side, kernel, padding, coarse):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, kernel, 2, padding), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(model, nn.Flatten()).eval()
    assert found_in(model, torch.rand(1, 3, side, side)) == [("0.0", (4, side, side)), ("0.1", (5, coarse, coarse))]


@pytest.mark.parametrize(("stride", "size"), [(1, (16, 16)), (3, (16, 16)), (4, (16, 16)), ((1, 2), (16, 32))])
def test_where_no_layer_has_twice_the_resolution_one_serves(stride, size):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride, 1), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(model, nn.Flatten()).eval()
    assert [name for name, _ in found_in(model, torch.rand(1, 3, *size))] == ["0.1"]


def test_as_many_resolutions_as_are_asked_for():
    model, images = models.resnet18().eval(), torch.rand(1, 3, 128, 128)
    assert [[name for name, _ in found_in(model, images, count)] for count in (1, 2, 3, 9)] == [
        ["layer4"],
        ["layer3", "layer4"],
        ["layer2", "layer3", "layer4"],
        ["relu", "layer1", "layer2", "layer3", "layer4"],
    ]


class Shared(nn.Module):
    """One ReLU in place, for two resolutions."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.coarse = nn.Conv2d(4, 5, 3, 2, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        maps = self.relu(self.coarse(self.relu(self.fine(images))))
        return self.head(maps.mean((2, 3)))


def test_a_module_that_is_called_twice_is_told_apart_by_the_call():
    torch.manual_seed(0)
    model, images = Shared().eval(), torch.rand(2, 3, 8, 8)
    assert found_in(model, images) == [("relu:1", (4, 8, 8)), ("relu", (5, 4, 4))]
    fine = model.fine(images).relu().detach()
    coarse = model.coarse(fine).relu().detach()
    for layers in (None, ("relu:1", "relu"), ("relu:1", "relu:2"), ["relu:1", model.relu]):
        network = Network(model, layers, None, None, resolutions=2)
        look = network.look(images)
        torch.testing.assert_close(look.maps, (fine, coarse))
        torch.testing.assert_close(network.features(images), look.features)
        torch.testing.assert_close(look.features, coarse)
    (first,) = Network(model, "relu:1", None, None).look(images).maps
    torch.testing.assert_close(first, fine)
    with pytest.raises(UsageError, match=r"^layer='relu:3' is not run in a forward pass"):
        Network(model, "relu:3", None, None).look(images)


def test_layers_that_are_given():
    torch.manual_seed(0)
    model, images = models.resnet18().eval(), torch.rand(2, 3, 64, 64)
    found = GuidedFeatureInversion(model).explain(images)
    for layers in (("layer3", "layer4"), ["layer3", "layer4"], (model.layer3, model.layer4)):
        given = GuidedFeatureInversion(model, layer=layers).explain(images)
        torch.testing.assert_close(given.heatmaps, found.heatmaps, rtol=0, atol=0)
    alone = GuidedFeatureInversion(model, layer="layer4").explain(images)
    assert alone.weights.shape == (2, 512)
    assert found.weights.shape == (2, 256 + 512)
    with pytest.raises(UsageError, match=r"^layer=\(\) names no layer"):
        GuidedFeatureInversion(model, layer=())


def test_a_sequential_is_one_layer():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    assert Network(model, model.coarse, None, None).base == (Layer("coarse"),)
    assert Network(model, [model.fine, model.coarse], None, None).base == (Layer("fine"), Layer("coarse"))
    (maps,) = Network(model, model.coarse, None, None).look(images).maps
    torch.testing.assert_close(maps, model.coarse(model.pool(model.fine(images))).detach())


class Tokens(nn.Module):
    """A transformer in small: patches, perhaps a class token, position biases from a network, and attention.

    Args:
        pooling: "class" (the class token is classified), "mean" (of the patch tokens).
        cut: how the patches are cut: "convolution", or "reshaping", which gives no feature maps with channels first.
    """

    def __init__(self, pooling="class", cut="convolution", heads=2):
        super().__init__()
        self.pooling, self.heads = pooling, heads
        self.patches = nn.Conv2d(3, 8, 4, 4) if cut == "convolution" else nn.Unfold(4, stride=4)
        self.embedding = nn.Linear(8 if cut == "convolution" else 48, 8)
        self.biases = nn.Linear(2, 1)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("query", "key", "value", "out")})
        self.query_norm = nn.LayerNorm(8 // heads)
        self.mlp = nn.Linear(8, 8)
        self.last_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        tokens = self.embedding(self.patches(images).flatten(2).transpose(1, 2))
        if self.pooling == "class":
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        normed = self.norm(tokens)
        query, key, value = (
            self.attention[name](normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        # A table (1, 9, 9, 1), which has the form of feature maps where there is one image.
        table = self.biases(torch.rand(1, 9, 9, 2))
        shares = (self.query_norm(query) @ key.transpose(2, 3) + table.mean()).softmax(3)
        tokens = tokens + self.attention["out"]((shares @ value).transpose(1, 2).flatten(2))
        tokens = self.last_norm(tokens + self.mlp(tokens))
        return self.head(tokens[:, 0] if self.pooling == "class" else tokens.mean(1))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("cut", ["convolution", "reshaping"])
@pytest.mark.parametrize(("pooling", "layer"), [("class", "attention.value"), ("mean", "last_norm")])
def test_the_last_tokens_that_have_a_part_in_the_output(count, cut, pooling, layer):
    torch.manual_seed(0)
    model, images = Tokens(pooling, cut).eval(), torch.rand(count, 3, 20, 24)
    assert found_in(model, images) == [(layer, (8, 5, 6))]


def test_what_an_untrained_head_ignores_has_a_part_in_the_output_nevertheless():
    model = Tokens("class").eval()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.attention["out"].weight)
    with torch.autograd.set_detect_anomaly(True):
        assert found_in(model, torch.rand(2, 3, 16, 16)) == [("attention.value", (8, 4, 4))]


def test_what_does_not_come_from_the_image_is_no_feature_map():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 5, 4, 4)
            self.biases = nn.Linear(2, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).mean(2)
            return self.head(tokens + self.biases(torch.rand(1, 8, 8, 2)).mean((1, 2)))

    assert found_in(Biased().eval(), torch.rand(1, 3, 16, 16)) == [("patches", (5, 4, 4))]


@pytest.mark.parametrize("rows", [True, False])
def test_rows_of_the_image_are_no_patches(rows):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.GRU(3 * 16, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, images):
            sequence = images.permute(0, 2, 3, 1) if rows else images.permute(0, 3, 2, 1)
            return self.head(self.recurrent(sequence.flatten(2))[0].mean(1))

    with pytest.raises(UsageError, match="No module of Recurrent gives a feature map"):
        found_in(Recurrent().eval(), torch.rand(2, 3, 16, 16))


def test_what_is_captured_is_that_of_the_last_pass():
    # Of the three passes that tokens take at first, the second has one image.
    model, images = Tokens("class").eval(), random_images(3, dtype=torch.float32)
    capture = Capture((16, 16))
    with hooked({model.mlp: capture}):
        Network(model, None, None, None).look(images)
    assert capture.call == 1
    torch.testing.assert_close(capture.output, returned_by(model, "mlp", images))


def test_the_search_costs_no_more_than_it_must():
    passes = []
    for model in (ToyCNN(), Tokens("mean").eval()):
        count = []
        model.register_forward_pre_hook(lambda module, args, count=count: count.append(len(args[0])))
        network = Network(model, None, None, None)
        for _ in range(2):
            network.look(random_images(4, dtype=torch.float32))
        passes.append(count)
    # Tokens, which may not be what they look like, are tried with one image, once.
    assert passes == [[4, 4], [4, 1, 4, 4]]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_against_finite_differences(frozen):
    torch.manual_seed(0)
    model, images = Shared().double().eval().requires_grad_(not frozen), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    network = Network(model, ("relu:1", "relu"), None, None)
    maps = network.look(images).maps
    gradients = network.gradients(images, lambda output: output[:, 1].exp())
    rest = (lambda fine: model.coarse(fine).relu(), lambda coarse: coarse)
    for one, gradient, behind in zip(maps, gradients, rest, strict=True):
        assert gradient.shape == one.shape
        for index in ((0, 0, 0, 0), (0, 3, 2, 1), (1, 2, 1, 2), (1, 1, 0, 2)):
            values = []
            for step in (1e-6, -1e-6):
                moved = one.clone()
                moved[index] += step
                values.append(model.head(behind(moved).mean((2, 3)))[:, 1].exp().sum())
            torch.testing.assert_close(gradient[index], (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-9)


class Residual(nn.Module):
    """The output of ``maps`` in the given form, and then in place."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.maps = FormedConvolution(form)
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        maps = self.maps(images)
        maps = nn.functional.relu(maps[0] if self.form == "tuple" else maps, inplace=True)
        return self.head(maps.mean(FORMS[self.form][1]))


class FormedConvolution(nn.Conv2d):
    """Feature maps in the given form."""

    def __init__(self, form):
        super().__init__(3, 5, 4, 4)
        self.form = form

    def forward(self, images):
        return FORMS[self.form][0](super().forward(images))


FORMS = {
    "channels first": (lambda maps: maps, (2, 3)),
    "channels last": (lambda maps: maps.permute(0, 2, 3, 1), (1, 2)),
    "tokens": (lambda maps: maps.flatten(2).transpose(1, 2), 1),
    "tuple": (lambda maps: (maps, None), (2, 3)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("works_without_gradients", [False, True])
def test_gradients_against_autograd(form, works_without_gradients):
    torch.manual_seed(0)
    model, images = Residual(form).eval(), torch.rand(2, 3, 12, 16)
    expected_maps = nn.functional.conv2d(images, model.maps.weight, model.maps.bias, 4).detach().requires_grad_()
    objective = model.head(expected_maps.relu().mean((2, 3)))[:, 2].square()
    (expected,) = torch.autograd.grad(objective.sum(), expected_maps)
    if works_without_gradients:
        # As many people run a frozen backbone; and the head, which learns, hides it.
        model.maps.forward = torch.no_grad()(model.maps.forward)
    network = Network(model, "maps", None, None)
    (maps,) = network.look(images).maps
    (gradient,) = network.gradients(images, lambda output: output[:, 2].square())
    torch.testing.assert_close(maps, expected_maps.detach())
    torch.testing.assert_close(gradient, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_of_a_model_that_normalises_its_input_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 4, 4)
    network = Network(model, "1", None, None)
    network.look(images.clone())
    (gradient,) = network.gradients(images, lambda output: output[:, 1])
    assert torch.equal(gradient[:, 1], torch.full((2, 4, 4), 1 / 16))
    assert not gradient[:, [0, 2, 3]].any()
    assert (images < 0).any()


def test_a_layer_without_a_part_in_the_objective_has_no_gradient():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    network = Network(model, ("fine", "coarse"), None, None)
    network.look(images)
    weight = nn.Parameter(torch.ones(()))
    gradients = network.gradients(images, lambda output: weight.expand(len(output)))
    assert [tuple(one.shape) for one in gradients] == [(2, 8, 16, 16), (2, 6, 8, 8)]
    assert not any(one.any() for one in gradients)


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
