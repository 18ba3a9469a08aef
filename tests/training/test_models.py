"""Every common way to build a LightningModule around a network: it is called as its user calls it, or not at all."""

import dataclasses
import logging
from collections import namedtuple

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import resnet18

from gfi_lightning import GuidedFeatureInversion, History, UsageError
from gfi_lightning.inversion.scores import logits_of
from gfi_lightning.testing import assert_harmless
from tests.networks import ToyCNN
from tests.training.modules import CLASSES, QUICK, Pictures, loaders, make_trainer, quick_callback


def network():
    return ToyCNN(classes=CLASSES, gain=1.0).train()


class Plain(L.LightningModule):
    """No forward: its steps call what they need."""

    def logits(self, images):
        raise NotImplementedError

    def step(self, batch):
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch), batch_size=4)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Net(Plain):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
        self.accuracy = MulticlassAccuracy(CLASSES)

    def logits(self, images):
        return self.net(images)


class Averaged(Plain):
    def __init__(self):
        super().__init__()
        self.model = network()
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)

    def logits(self, images):
        return self.model(images)


class BackboneAndHead(Plain):
    def __init__(self):
        super().__init__()
        whole = network()
        self.backbone = nn.Sequential(whole.fine, whole.pool, whole.coarse).requires_grad_(False)
        self.head = whole.head

    def logits(self, images):
        return self(images)

    def forward(self, images):
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)


class Itself(Plain):
    """Is the network, layer by layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images):
        return self.fc(self.conv2(self.conv1(images).relu()).relu().mean((2, 3)))

    def logits(self, images):
        return self(images)


@dataclasses.dataclass
class Output:
    embedding: torch.Tensor
    logits: torch.Tensor


Answer = namedtuple("Answer", ["embedding", "logits"])
OUTPUTS = {
    "dict with a loss": lambda features, logits: {"loss": logits.mean(), "features": features, "logits": logits},
    "dict with another name": lambda features, logits: {"embedding": features, "output": logits},
    "dict of one": lambda features, logits: {"classes": logits},
    "tuple": lambda features, logits: (logits, features.repeat(1, 4)),
    "tuple with a loss": lambda features, logits: (logits.mean(), logits),
    "tuple of the same": lambda features, logits: (logits, logits * 2),
    "named tuple": lambda features, logits: Answer(features.repeat(1, 4), logits),
    "dataclass": lambda features, logits: Output(features, logits),
}


class Returns(Plain):
    def __init__(self, make):
        super().__init__()
        self.net, self.make = network(), make

    def forward(self, images):
        return self.make(images.mean((2, 3)), self.net(images))

    def logits(self, images):
        return logits_of(self(images))


class Named(Plain):
    """For batches that are dicts."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def logits(self, batch):
        return self(batch)

    def step(self, batch):
        return F.cross_entropy(self.logits(batch), batch["label"])


class TakesTheBatch(Named):
    def forward(self, batch):
        return self.net(batch["image"])


class TakesSomething(Named):
    def forward(self, x):
        return self.net(x["image"])


class TakesNames(Named):
    def forward(self, image, label=None):
        return {"loss": None if label is None else label.float().mean(), "logits": self.net(image)}

    def logits(self, batch):
        return self(**batch)["logits"]


class TakesAnyNames(TakesNames):
    def forward(self, **batch):
        return {"logits": self.net(batch["image"])}


class TakesTheImagesLate(TakesNames):
    def forward(self, input_ids=None, image=None, label=None):
        return (self.net(image),)

    def logits(self, batch):
        return self(**batch)[0]


class TakesATuple(Plain):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, batch):
        images, _ = batch
        return self.net(images)

    def logits(self, images):
        return self((images, None))


class AsDicts(Pictures):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


MODULES = {
    "self.net without forward": (Net, Pictures, "The model is called as self.net(images)."),
    "self.model beside its average": (Averaged, Pictures, "The model is called as self.model(images)."),
    "self.backbone and a head": (BackboneAndHead, Pictures, None),
    "the module itself": (Itself, Pictures, None),
    **{f"forward returns {name}": (lambda make=make: Returns(make), Pictures, None) for name, make in OUTPUTS.items()},
    "forward takes the batch": (TakesTheBatch, AsDicts, "as the module(a batch with nothing but images)"),
    "forward takes the batch by any name": (TakesSomething, AsDicts, "as the module(a batch with nothing but images)"),
    "forward takes a tuple": (TakesATuple, Pictures, "as the module(a batch with nothing but images)"),
    "forward takes names": (TakesNames, AsDicts, None),
    "forward takes any names": (TakesAnyNames, AsDicts, "as the module(image=images)"),
    "forward takes the images late": (TakesTheImagesLate, AsDicts, "as the module(image=images)"),
}


def fit(folder, module, items=None, callback=None, **options):
    trainer = make_trainer(folder, callback or quick_callback(num_samples=2, **options), max_epochs=1)
    items = Pictures if items is None else items
    trainer.fit(module, **loaders(items(8), items()))
    return History.load(trainer.log_dir)


def check_maps(history, logits, module, size=16, **options):
    """The maps are those of the function that the user trains."""
    gfi = GuidedFeatureInversion(module, recipe=QUICK, forward=lambda _, images: logits(images), **options)
    expected = gfi.explain(Pictures().images[[0, 8]], torch.tensor([0, 2]))
    coarse = F.adaptive_avg_pool2d(expected.heatmaps, history.heatmaps(0).shape[-2:])
    assert history.labels.tolist() == [0, 2]
    np.testing.assert_allclose([history.heatmaps(sample)[-1, 0] for sample in range(2)], coarse, atol=2e-3)
    np.testing.assert_allclose([history.scores(sample)[-1, 0] for sample in range(2)], expected.score, rtol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_the_network_is_found_where_it_is(tmp_path, caplog, name):
    make, items, said = MODULES[name]
    module = make()
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        history = fit(tmp_path, module, items)
    calls = [one for one in caplog.messages if "The model is called" in one]
    assert len(calls) == (said is not None)
    assert all(said in one for one in calls)
    check_maps(history, module.net if hasattr(module, "net") else module.logits, module)


def test_dicts_and_modules_without_forward_leave_the_training_alone(tmp_path):
    for make, items in ((TakesTheBatch, AsDicts), (Net, Pictures)):

        class WithData(make):
            def train_dataloader(self, items=items):
                return DataLoader(items(8), 4, shuffle=True)

            def val_dataloader(self, items=items):
                return DataLoader(items(), 4)

        assert_harmless(
            lambda callbacks: make_trainer(tmp_path, *callbacks, max_epochs=1),
            WithData,
            make_callbacks=lambda: [quick_callback(num_samples=2, every_n_steps=1)],
        )


class TwoNetworks(Plain):
    """Of which neither gives the logits alone."""

    def __init__(self):
        super().__init__()
        whole = network()
        self.backbone, self.head = nn.Sequential(whole.fine, whole.pool, whole.coarse), whole.head

    def logits(self, images):
        return self.head(self.backbone(images))


class BareHead(Plain):
    """Whose head is a parameter."""

    def __init__(self):
        super().__init__()
        whole = network()
        self.backbone = nn.Sequential(whole.fine, whole.pool, whole.coarse, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.prototypes = nn.Parameter(torch.rand(CLASSES, self.backbone(torch.rand(1, 3, 16, 16)).shape[1]))

    def logits(self, images):
        return F.linear(self.backbone(images), self.prototypes)


class NoNetwork(Plain):
    def __init__(self):
        super().__init__()
        self.hidden = [network()]

    def logits(self, images):
        return self.hidden[0](images)

    def configure_optimizers(self):
        return None

    def training_step(self, batch, batch_idx):
        return None


class NeedsLabels(TakesNames):
    """A margin, say, that depends on the label."""

    def forward(self, image, label):
        return self.net(image)

    def logits(self, batch):
        return self(**batch)


class TwoAnswers(Returns):
    def __init__(self):
        super().__init__(lambda features, logits: {"features": features, "classes": logits})

    def logits(self, images):
        return self(images)["classes"]


class FeaturesFirst(Returns):
    def __init__(self):
        super().__init__(lambda features, logits: (features.repeat(1, 4), logits))

    def logits(self, images):
        return self(images)[1]


@pytest.mark.parametrize(
    ("module", "items", "message"),
    [
        (
            TwoNetworks,
            Pictures,
            r"TwoNetworks has no forward\(\), and which of self\.backbone, self\.head gives the logits, or in what "
            r"order, it does not say: write forward\(self, images\), or give forward=lambda module, images: "
            r"module\.backbone\(images\) or forward=",
        ),
        (
            BareHead,
            Pictures,
            r"BareHead has no forward\(\), and what self\.prototypes does to the output of self\.backbone it does not",
        ),
        (
            FeaturesFirst,
            Pictures,
            r"which of the parts 0, 1 are the logits of the classes\? .* lambda module, images: module\(images\)\[1\]",
        ),
        (NoNetwork, Pictures, r"NoNetwork has no forward\(\), and no network in an attribute: give forward="),
        (NeedsLabels, AsDicts, r"failed with TypeError: .*missing 1 required positional argument: 'label'.* Give forw"),
        (
            TwoAnswers,
            Pictures,
            r"which of 'features', 'classes' are the logits of the classes\? Call them 'logits', or",
        ),
    ],
)
def test_what_cannot_be_known_is_asked_for(tmp_path, module, items, message):
    with pytest.raises(UsageError, match=message):
        fit(tmp_path, module(), items)


def test_forward_answers_it(tmp_path):
    module = TwoNetworks()
    history = fit(tmp_path, module, forward=lambda module, images: module.head(module.backbone(images)))
    check_maps(history, module.logits, module)


# libraries


class Wraps(Plain):
    """A network of some library, as most people's modules have it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images)

    def logits(self, images):
        return logits_of(self(images))


class OnBackbone(Plain):
    """A frozen backbone that returns features, and a head."""

    def __init__(self, backbone, width):
        super().__init__()
        self.backbone, self.head = backbone.requires_grad_(False), nn.Linear(width, CLASSES)

    def forward(self, images):
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)

    def logits(self, images):
        return self(images)


def check_library(folder, module):
    history = fit(folder, module)
    assert np.isfinite(history.heatmaps(0)[:, 0]).all()
    assert history.heatmaps(0).shape[-1] > 1
    return history


def test_torchvision(tmp_path):
    net = resnet18(num_classes=CLASSES)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
    module = Wraps(net)
    check_maps(check_library(tmp_path, module), module.logits, module)


@pytest.mark.timm
@pytest.mark.parametrize("headless", [False, True])
def test_timm(tmp_path, headless):
    import timm

    options = {"img_size": 16, "patch_size": 4, "depth": 2} if not headless else {}
    net = timm.create_model(
        "test_resnet" if headless else "test_vit", num_classes=0 if headless else CLASSES, **options
    )
    module = OnBackbone(net, net.num_features) if headless else Wraps(net)
    check_maps(check_library(tmp_path, module), module.logits, module)


def hugging_face(kind):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    if kind == "ViT":
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=CLASSES, **size))
    size = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_labels=CLASSES, **size))


class PixelValues(Pictures):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"pixel_values": image, "labels": label}


class Guide(Plain):
    """As in the guides: the library's model takes a whole batch, and gives the loss."""

    def __init__(self, kind):
        super().__init__()
        self.model = hugging_face(kind)

    def step(self, batch):
        return self.model(**batch).loss

    def logits(self, images):
        return self.model(pixel_values=images).logits


class GuideWithForward(Guide):
    def forward(self, pixel_values, labels=None):
        return self.model(pixel_values=pixel_values, labels=labels)

    def step(self, batch):
        return self(**batch)["loss"]


@pytest.mark.transformers
@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
@pytest.mark.parametrize("make", [Guide, GuideWithForward])
def test_hugging_face(tmp_path, make, kind):
    module = make(kind)
    history = fit(tmp_path, module, PixelValues)
    check_maps(history, module.logits, module)
