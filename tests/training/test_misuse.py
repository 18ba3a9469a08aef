"""Every mistake is told before the first training step, with what was given and what to do about it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gfi_lightning import History, UsageError
from tests.networks import ToyCNN
from tests.training.modules import (
    CLASSES,
    WEIGHTS_ONLY,
    ToyModule,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
    read_events,
)

PICTURES, LABELS = torch.rand(8, 3, 16, 16), torch.arange(8) % CLASSES


class Anything(ToyModule):
    """Trains on pictures of its own, whatever its loaders hold."""

    def unpack(self, batch):
        return PICTURES[:4], LABELS[:4]


class SpareLayer(Anything):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(3, 3, 1)


class TakesTheBatch(Anything):
    def forward(self, batch):
        return super().forward(batch["image"])

    def unpack(self, batch):
        return {"image": PICTURES[:4]}, LABELS[:4]


class Segments(Anything):
    def forward(self, images):
        return nn.functional.interpolate(super().forward(images)[..., None, None], images.shape[2:])

    def unpack(self, batch):
        return PICTURES[:4], LABELS[:4, None, None].expand(4, 16, 16)


class OnlyExplained(Anything):
    """Returns something else than logits, which it neither trains nor validates on."""

    def training_step(self, batch, batch_idx):
        return self.network(PICTURES[:4]).mean()

    def validation_step(self, batch, batch_idx):
        pass


class Speaks(OnlyExplained):
    def forward(self, images):
        super().forward(images)
        return "a cat"


class SingleLogit(OnlyExplained):
    def forward(self, images):
        return super().forward(images)[:, :1]


class NoItems(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


def tensors(images, *others):
    return DataLoader(TensorDataset(images, *others), 4)


@dataclass
class Mistake:
    """What the user does, and what they are told.

    Attributes:
        message: a regular expression.
        arguments: of the callback.
        val: the validation loader; None: one that is right.
        module: its class.
        at_once: in the constructor.
        beside: arguments of a second callback in the same Trainer.
        explained: where it is only a warning, the number of samples that are explained all the same.
    """

    message: str
    arguments: dict[str, Any] = field(default_factory=dict)
    val: Any = None
    module: type[ToyModule] = Anything
    at_once: bool = False
    beside: dict[str, Any] | None = None
    explained: int | None = None


def at_once(message, **arguments):
    return Mistake(message, arguments, at_once=True)


IN_THE_LAYERS = r"Usable layers \(channels × height × width\):\n  network\.fine\.0: 8 × 16 × 16\n"
IN_THE_BATCH = (
    r"Expected is \(images, labels\) or a mapping with image/.* and label/.*, images being floating point of shape "
    r"\(N, C, H, W\), no videos or volumes, no bytes .* Give batch= "
)
IN_THE_OUTPUT = (
    r"expected are logits of shape \(N, classes\)\. Return them alone, in a tuple, in a dict or as \.logits, or give "
    r"forward= .* or score= "
)

MISTAKES = {
    # layers
    "unknown layer": Mistake(rf"^layer='layer4' does not exist\. {IN_THE_LAYERS}", {"layer": "layer4"}),
    "layer without extent": Mistake(
        rf"layer='network\.head\.3' returns shape \(3, 5\), which has no spatial extent\. {IN_THE_LAYERS}",
        {"layer": "network.head.3"},
    ),
    "layer that never runs": Mistake(
        rf"^layer='spare' is not run in a forward pass\. {IN_THE_LAYERS}", {"layer": "spare"}, module=SpareLayer
    ),
    "module of another model": Mistake(
        r"layer=Conv2d\(\.\.\.\) is not part of this model: give one of its modules, or a name",
        {"layer": nn.Conv2d(3, 3, 1)},
    ),
    "layer by number": at_once(
        r"layer=4 is no layer: give the name of one, or the module \(or several, the coarsest last\), or None", layer=4
    ),
    "no layers": at_once(r"^layer=\[\] is no layer: give the name of one, or the module \(or several", layer=[]),
    "inversion module of another model": Mistake(
        r"inversion_layer=Conv2d\(\.\.\.\) is not part of this model: give one of its modules, or a name",
        {"inversion_layer": nn.Conv2d(3, 3, 1)},
    ),
    "unknown inversion layer": Mistake(
        rf"^inversion_layer='layer4' does not exist\. {IN_THE_LAYERS}", {"inversion_layer": "layer4"}
    ),
    "inversion layer that never runs": Mistake(
        rf"^inversion_layer='spare' is not run in a forward pass\. {IN_THE_LAYERS}",
        {"inversion_layer": "spare"},
        module=SpareLayer,
    ),
    "depth by number": at_once(
        r"layers=\[4\] is no layer: give the name of one, or the module \(or several, from shallow to deep\), or None",
        layers=[4],
    ),
    "no depths": at_once(r"layers=\[\] is no layer: give the name of one, or the module \(or several", layers=[]),
    "unknown depth": Mistake(
        rf"^layers='layer4' does not exist\. {IN_THE_LAYERS}", {"layers": ["network.fine", "layer4"]}
    ),
    "depth without extent": Mistake(
        rf"^layers='network\.head\.3' returns shape \(3, 5\), which has no spatial extent\. {IN_THE_LAYERS}",
        {"layers": ["network.fine", "network.head.3"]},
    ),
    "depth that never runs": Mistake(
        rf"^layers='spare' is not run in a forward pass\. {IN_THE_LAYERS}", {"layers": "spare"}, module=SpareLayer
    ),
    "depth of another model": Mistake(
        r"layers=Conv2d\(\.\.\.\) is not part of this model: give one of its modules, or a name",
        {"layers": [nn.Conv2d(3, 3, 1)]},
    ),
    # targets, labels and class names
    "target out of range": Mistake(
        r"reach from 7 to 7, but the model has 5 classes: use targets from 0 to 4", {"targets": 7}
    ),
    "negative target": Mistake(
        r"reach from -1 to -1, but the model has 5 classes: use targets from 0 to 4", {"targets": -1}
    ),
    "floating target": at_once(
        "targets=1.5 is unknown: use 'label', 'predicted', 'contrast', 'present', a class index, a list of them, or",
        targets=1.5,
    ),
    "target by name": at_once(r"targets=\['cat'\] is unknown: use .* a class index, a list of them", targets=["cat"]),
    "no targets": at_once(r"targets=\[\] is unknown: use .* a class index, a list of them", targets=[]),
    "misspelt target": at_once("targets='labels' is unknown: use 'label', 'predicted', 'con", targets="labels"),
    "present classes without labels": Mistake(
        r"targets='present' needs labels that are multi-hot, \(N, classes\), 0 or 1 each, and the validation batch is "
        r"list\(Tensor\(3, 3, 16, 16\) of float32\): give batch= \(batch → images, labels\), or other targets=",
        {"targets": "present"},
        val=tensors(PICTURES),
    ),
    "present classes by soft labels": Mistake(
        r"targets='present' needs labels that are multi-hot, .* Tensor\(3, 5\) of float32\): give batch=",
        {"targets": "present"},
        val=tensors(PICTURES, torch.full((8, 5), 0.2)),
    ),
    "present classes of another model": Mistake(
        r"labels are for 7 classes each, but the model has 5: give batch= \(batch → images, labels\) for others, or",
        {"targets": "present"},
        val=tensors(PICTURES, nn.functional.one_hot(LABELS, 7)),
    ),
    "present classes, none of them, without logits": Mistake(
        "No class is present in some samples, and the model's output has no logits to tell the most probable: give",
        {"targets": "present", "score": lambda output, targets: output[range(len(targets)), targets].mean((1, 2))},
        val=tensors(PICTURES, torch.zeros(8, 5)),
        module=Segments,
    ),
    "several present classes by softmax": Mistake(
        "several present classes of an image by score='softmax', of which they share 1: give score='sigmoid' if",
        {"targets": "present", "score": "softmax"},
        val=tensors(PICTURES, torch.ones(8, 5)),
        explained=3,
    ),
    "contrast with labels of other classes": Mistake(
        "labels reach from 3 to 6, but the model has 5 classes, 0 to 4: give targets='predicted', or batch=",
        {"targets": "contrast"},
        val=tensors(PICTURES, LABELS + 3),
    ),
    "contrast without logits": Mistake(
        "targets='contrast' needs logits of at least two classes, which the model's output does not have: give class",
        {"targets": "contrast", "score": lambda output, targets: output.mean((1, 2, 3))},
        module=Segments,
    ),
    "contrast of one number": Mistake(
        "targets='contrast' needs logits of at least two classes, which the model's output does not have: give class",
        {"targets": "contrast", "score": lambda output, targets: output[:, 0]},
        module=SingleLogit,
    ),
    "callable for floating targets": Mistake(
        r"targets are Tensor\(3, 5\) of float32; expected are class indices \(integers\)",
        {"targets": lambda logits, labels: logits},
    ),
    "callable for too many targets": Mistake(
        r"targets have shape \(7,\) for 3 images: expected is \(3,\) or \(3, T\)",
        {"targets": lambda logits, labels: torch.zeros(7, dtype=torch.int64)},
    ),
    "labels of other classes": Mistake(
        "labels reach from 3 to 6, but the model has 5 classes, 0 to 4: give targets='predicted', or batch=",
        val=tensors(PICTURES, LABELS + 3),
    ),
    "single logit of several classes": Mistake(
        "labels reach from 0 to 3, but the model has 2 classes by its single logit, 0 to 1: give targets='predicted', "
        r"score= \(output, targets → one number each\) for a regression, or batch=",
        module=SingleLogit,
    ),
    "amounts for labels": Mistake(
        r"found no class indices in the validation batch, which is list\(.*\), but amounts: it explains the predicted "
        r"classes\. Give score= \(output, targets → one number each\) for a regression, and targets= or batch= for ",
        val=tensors(PICTURES, LABELS + 0.5),
        module=SingleLogit,
        explained=3,
    ),
    "too few class names": Mistake(
        "class_names has 2 names, but the model has 5 classes: give a name for each", {"class_names": ["cat", "dog"]}
    ),
    "class names in one text": at_once(
        "class_names='cat dog' is no list of names: give a name for each class, in order", class_names="cat dog"
    ),
    # samples
    "samples out of range": Mistake(
        r"samples=\[0, 20\] cannot be read from a data set of 20 items: give indices from 0 to 19",
        {"samples": [0, 20]},
    ),
    "negative samples": Mistake(
        r"samples=\[-1\] cannot be read from a data set of 20 items: give indices from 0 to 19", {"samples": [-1]}
    ),
    "no samples": at_once(
        r"samples=\[\] cannot be explained: give indices into the validation set, or \(images, labels\)", samples=[]
    ),
    "samples by name": at_once("samples='first' cannot be explained: give indices into", samples="first"),
    "fractional samples": at_once(r"samples=\[0\.5\] cannot be explained: give indices into", samples=[0.5]),
    "zero samples": at_once("num_samples=0 must be a whole number, at least 1", num_samples=0),
    "fractional number of samples": at_once("num_samples=2.5 must be a whole number, at least 1", num_samples=2.5),
    "number of samples in quotes": at_once("num_samples='8' must be a whole number, at least 1", num_samples="8"),
    "more samples than there are": Mistake(
        r"GFICallback\(num_samples=50\) explains only 5: the validation set has no more",
        {"num_samples": 50},
        val=tensors(PICTURES[:5], LABELS[:5]),
        explained=5,
    ),
    # the schedule
    "both schedules": at_once(
        "every_n_epochs=2 and every_n_steps=5 were both given: give one of them", every_n_epochs=2, every_n_steps=5
    ),
    "zero schedule": at_once("every_n_epochs=0 must be a whole number, at least 1", every_n_epochs=0),
    "negative schedule": at_once("every_n_steps=-3 must be a whole number, at least 1", every_n_steps=-3),
    "fractional schedule": at_once("every_n_epochs=0.5 must be a whole number, at least 1", every_n_epochs=0.5),
    # the validation data
    "no validation loader": Mistake(
        r"no validation data to explain: give the Trainer a validation loader, or give samples=\(images, labels\)",
        val="none",
    ),
    "empty loader": Mistake(r"The data loader is empty: nothing to explain\. Give samples=\(images, labels\)", val=[]),
    "empty data set": Mistake(
        r"The validation set is empty: nothing to explain\. Give samples=\(images, labels\)", val=DataLoader(NoItems())
    ),
    "no labels": Mistake(
        r"found no class indices in the validation batch, which is list\(Tensor\(3, 3, 16, 16\) of float32\): "
        r"it explains the predicted classes\. Give targets= or batch= for others",
        val=tensors(PICTURES),
        explained=3,
    ),
    "several labels each": Mistake(
        r"found no class indices .* Tensor\(3, 5\) of int64\), but labels of several classes at once: it explains the "
        r"predicted classes\. Give targets='present', and score='sigmoid' where an image may have several, to explain",
        {"score": "softmax"},
        val=tensors(PICTURES, nn.functional.one_hot(LABELS) + nn.functional.one_hot(LABELS.flip(0) // 2, 5)),
        explained=3,
    ),
    "several labels of something else": Mistake(
        r"found no class indices .* Tensor\(3, 3\) of int64\), but labels of several classes at once: it explains the ",
        val=tensors(PICTURES, torch.ones(8, 3, dtype=torch.int64)),
        explained=3,
    ),
    "text": Mistake(
        rf"A validation batch is list\(str, str, str\)\. {IN_THE_BATCH}",
        val=DataLoader(["a cat"] * 8),
        module=OnlyExplained,
    ),
    "unknown names in a mapping": Mistake(
        rf"is {{'left': Tensor\(3, 3, 16, 16\) of float32, 'right': Tensor\(3, .*\) of float32}}\. {IN_THE_BATCH}",
        val=DataLoader([{"left": picture, "right": picture} for picture in PICTURES], 4),
    ),
    "bytes": Mistake(
        rf"Tensor\(3, 3, 16, 16\) of uint8.*\. {IN_THE_BATCH}", val=tensors((PICTURES * 255).byte(), LABELS)
    ),
    "flat data": Mistake(rf"Tensor\(3, 768\) of float32.*\. {IN_THE_BATCH}", val=tensors(PICTURES.flatten(1), LABELS)),
    "images without channels": Mistake(
        rf"Tensor\(3, 16, 16\) of float32.*\. {IN_THE_BATCH}", val=tensors(PICTURES[:, 0], LABELS)
    ),
    "video": Mistake(
        rf"Tensor\(3, 3, 4, 16, 16\) of float32.*\. {IN_THE_BATCH}",
        val=tensors(PICTURES[:, :, None].expand(-1, -1, 4, -1, -1), LABELS),
    ),
    "volumes": Mistake(
        rf"Tensor\(3, 1, 16, 16, 16\) of float32.*\. {IN_THE_BATCH}",
        val=tensors(PICTURES[:, :1, None].expand(-1, -1, 16, -1, -1), LABELS),
    ),
    # the model
    "segmentation": Mistake(
        rf"The model's output is Tensor\(3, 5, 16, 16\) of float32; {IN_THE_OUTPUT}", module=Segments
    ),
    "output that is text": Mistake(rf"The model's output is str; {IN_THE_OUTPUT}", module=Speaks),
    "forward that takes the batch": Mistake(
        r"forward\(\) was called with Tensor\(3, 3, 16, 16\) of float32, the images in a validation batch, which is "
        r"list\(.*\), and failed with IndexError: .* Give forward= .* or batch= ",
        module=TakesTheBatch,
    ),
    # the user's own functions
    "batch that returns a mapping": Mistake(
        r"batch= returned {'image': Tensor\(3, 3, 16, 16\) of float32}; expected are images, floating point of shape "
        r"\(N, C, H, W\), and labels \(N,\) or None",
        {"batch": lambda batch: {"image": batch[0]}},
    ),
    "batch that returns images alone": Mistake(
        r"batch= returned Tensor\(3, 3, 16, 16\) of float32; expected are images, .* and labels",
        {"batch": lambda batch: batch[0]},
    ),
    "score of all classes": Mistake(
        r"score= returned Tensor\(3, 5\) of float32; expected is one number for each of the 3 targets, a tensor of "
        r"shape \(3,\)",
        {"score": lambda output, targets: output},
    ),
    "score that returns nothing": Mistake(
        "score= returned NoneType; expected is one number for each of the 3 targets",
        {"score": lambda output, targets: None},
    ),
    "background of one colour": Mistake(
        r"background= returned Tensor\(\) of float32; expected are images of shape \(3, 3, 16, 16\)",
        {"background": lambda images: images.mean()},
    ),
    "targets that returns nothing": Mistake(
        r"targets= returned NoneType; expected are class indices \(3,\) or \(3, T\)",
        {"targets": lambda logits, labels: None},
    ),
    "forward in quotes": at_once(
        r"forward='forward' cannot be called: give a function \(module, images\) → output, or None", forward="forward"
    ),
    "batch in quotes": at_once("batch='image' cannot be called: give a function batch → ", batch="image"),
    # choices
    "unknown recipe": at_once("recipe='fast' is unknown: use one of default, paper, release, or a R", recipe="fast"),
    "unknown score": at_once("score='logit' is unknown: use one of softmax, sigmoid, or a callable", score="logit"),
    "unknown background": at_once(
        "background='grey' is unknown: use one of blur, mean, noise, or a callable", background="grey"
    ),
    "neither on nor off": at_once("verbose='no' must be True or False", verbose="no"),
    "unknown on_error": at_once("on_error='ignore' is unknown: use 'warn' or 'raise'", on_error="ignore"),
    "mean without std": at_once(
        r"mean=\[0\.5\] and std=None must be given together, one number per channel each", mean=[0.5]
    ),
    "mean and std of other lengths": at_once(
        r"mean=\[0\.5, 0\.5\] and std=\[1\] must be given together", mean=[0.5, 0.5], std=[1]
    ),
    "mean of one number": at_once("mean=0.5 and std=0.5 must be given together, one number per", mean=0.5, std=0.5),
    "mean of other images": Mistake(
        r"mean=\[0\.5, 0\.5\] has 2 numbers, but the images have 3 channels: give one number per channel, or one for",
        {"mean": [0.5, 0.5], "std": [1, 1]},
    ),
    "chunks of nothing": at_once("chunk_size=0 must be a whole number, at least 1", chunk_size=0),
    "chunks in quotes": at_once("chunk_size='8' must be a whole number, at least 1", chunk_size="8"),
    # names
    "name of a folder below": at_once(
        "name='a/b' becomes part of tags and of a folder's name: use letters, digits, _ and -", name="a/b"
    ),
    "the same name twice": Mistake(
        r"Two GFICallbacks of this Trainer are named 'late': give them different names",
        {"name": "late"},
        beside={"name": "late"},
    ),
    "the name that a nameless one has": Mistake(
        r"Two GFICallbacks of this Trainer are named '1': .* without one are '1', '2'", beside={"name": "1"}
    ),
}


def fit(folder, mistake, callbacks):
    """Make the callbacks, which are put into a list as they are made, and train with them."""
    for arguments in (mistake.arguments, mistake.beside):
        if arguments is not None:
            callbacks.append(quick_callback(**{"on_error": "warn"} | arguments))
    trainer, module = make_trainer(folder, *callbacks, max_epochs=1), mistake.module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    given = loaders()
    if mistake.val is not None:
        given["val_dataloaders"] = None if mistake.val == "none" else mistake.val
    try:
        trainer.fit(module, **given)
    except UsageError:
        assert trainer.global_step == 0
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        raise
    return trainer


@pytest.mark.parametrize("name", [name for name, mistake in MISTAKES.items() if mistake.explained is None])
def test_mistakes_end_the_fit_before_it_begins(tmp_path, name):
    mistake, callbacks = MISTAKES[name], []
    with pytest.raises(UsageError, match=mistake.message):
        fit(tmp_path, mistake, callbacks)
    assert (callbacks == []) == mistake.at_once


@pytest.mark.filterwarnings("default:.*GFICallback.*")
@pytest.mark.parametrize("name", [name for name, mistake in MISTAKES.items() if mistake.explained is not None])
def test_mistakes_that_are_warned_of_once(tmp_path, name):
    mistake = MISTAKES[name]
    with pytest.warns(UserWarning, match=mistake.message) as caught:
        trainer = fit(tmp_path, mistake, [])
    assert len([warning for warning in caught if "GFICallback" in str(warning.message)]) == 1
    assert image_steps(trainer) == [0, 3]
    assert len(History.load(trainer.log_dir).labels) == mistake.explained


class Channels(ToyModule):
    """For images of any number of channels; its layers have other names than those of ToyModule."""

    def __init__(self, channels):
        super().__init__()
        self.network.fine[0] = nn.Conv2d(channels, 8, 3, padding=1)
        self.network = nn.Sequential(self.network)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (4, [0, 1, 2])])
def test_images_of_other_channels_are_shown_grey_or_by_the_first_three(tmp_path, channels, shown):
    images = torch.rand(8, channels, 16, 16)
    val = tensors(images, LABELS)
    trainer = make_trainer(tmp_path, quick_callback(samples=[0, 5]), max_epochs=1)
    trainer.fit(Channels(channels), val, val)
    assert image_steps(trainer) == [0, 1]
    as_bytes = (images[[0, 5]][:, shown] * 255).round().byte()
    assert torch.equal(torch.from_numpy(History.load(trainer.log_dir).images), as_bytes.permute(0, 2, 3, 1))


SEVERAL = {
    "other layers": ([{"layer": "network.fine"}, {"layer": "network.coarse"}], [None, "2"]),
    "identical": ([{}, {}], [None, "2"]),
    "named": ([{"name": "early", "layer": "network.fine"}, {"name": "late"}], ["early", "late"]),
    "one of them named": ([{"name": "early", "layer": "network.fine"}, {}], ["early", None]),
}


def tags_of(trainer):
    tags = read_events(trainer).Tags()
    return {tag.rpartition("/")[0] for kind in ("images", "scalars") for tag in tags[kind] if tag.startswith("gfi")}


@pytest.mark.parametrize("several", SEVERAL)
def test_several_callbacks_each_keep_their_samples_over_a_resume(tmp_path, several):
    arguments, names = SEVERAL[several]
    checkpoint = tmp_path / "last.ckpt"
    counts = [2, 3]
    for epochs, asked, steps in ((1, counts, [0, 3]), (2, [7, 7], [0, 3, 7])):
        callbacks = [quick_callback(num_samples=count, **one) for count, one in zip(asked, arguments, strict=True)]
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=epochs)
        trainer.fit(ToyModule(), **loaders(), ckpt_path=checkpoint if checkpoint.exists() else None, **WEIGHTS_ONLY)
        trainer.save_checkpoint(checkpoint)
        torch.load(checkpoint, weights_only=True)
        assert tags_of(trainer) == {"gfi" if name is None else f"gfi/{name}" for name in names}
        for name, count, one in zip(names, counts, arguments, strict=True):
            history = History.load(trainer.log_dir, name)
            assert history.steps == steps
            assert len(history.labels) == count
            assert history.heatmaps(0).shape[-1] == (16 if one.get("layer") == "network.fine" else 8)


def shown(trainer):
    """All that a callback left in a run: pictures, curves and maps."""
    events, history = read_events(trainer), History.load(trainer.log_dir)
    pictures = {
        tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag.startswith("gfi") and tag != "gfi/overhead"  # a clock's
    }
    maps = [np.nan_to_num(history.heatmaps(number), nan=-1).tolist() for number in range(len(history.labels))]
    return pictures, curves, maps, history.labels.tolist(), history.class_names


@pytest.mark.parametrize("first", ["fit", "validate"])
@pytest.mark.parametrize("second", ["fit", "test"])
def test_nothing_is_left_of_a_run_in_another_trainer(tmp_path, first, second):
    def run(callback, folder):
        torch.manual_seed(0)
        loader = tensors(torch.rand(9, 4, 24, 24), torch.arange(9) % 2)
        trainer = make_trainer(folder, callback, max_epochs=1)
        given = (loader, loader) if second == "fit" else (loader,)
        getattr(trainer, second)(Channels(4), *given)
        return shown(trainer)

    used, before = quick_callback(), make_trainer(tmp_path / "before")
    before.callbacks.append(used)
    getattr(before, first)(ToyModule(), *list(loaders().values())[0 if first == "fit" else 1 :])
    assert run(used, tmp_path / "used") == run(quick_callback(), tmp_path / "fresh")


class FromTheOtherPackage(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = ToyCNN(classes=CLASSES, gain=1.0).train()

    forward = ToyModule.forward
    unpack = ToyModule.unpack
    configure_optimizers = ToyModule.configure_optimizers
    training_step = ToyModule.training_step
    validation_step = ToyModule.validation_step
    test_step = ToyModule.test_step


def trainer_of_the_other_package(folder, *callbacks, **options):
    return pytorch_lightning.Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=pytorch_lightning.loggers.TensorBoardLogger(folder, name=None),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


@pytest.mark.pytorch_lightning
def test_the_package_pytorch_lightning_shows_the_same(tmp_path):
    runs = []
    for make, module in ((make_trainer, ToyModule), (trainer_of_the_other_package, FromTheOtherPackage)):
        checkpoint = tmp_path / make.__name__ / "last.ckpt"
        for epochs in (2, 3):
            torch.manual_seed(epochs)
            trainer = make(tmp_path / make.__name__, quick_callback(), max_epochs=epochs)
            path = checkpoint if checkpoint.exists() else None
            trainer.fit(model := module(), **loaders(), ckpt_path=path, **WEIGHTS_ONLY)
            trainer.save_checkpoint(checkpoint)
            trainer.test(model, loaders()["val_dataloaders"], verbose=False)
            runs.append(shown(trainer))
        assert image_steps(trainer) == [11, 12]
    assert runs[:2] == runs[2:]


@pytest.mark.pytorch_lightning
def test_the_package_pytorch_lightning_is_told_of_mistakes(tmp_path):
    trainer = trainer_of_the_other_package(tmp_path, quick_callback(on_error="warn", targets=7), max_epochs=1)
    with pytest.raises(UsageError, match="use targets from 0 to 4"):
        trainer.fit(FromTheOtherPackage(), **loaders())
    assert trainer.global_step == 0


@pytest.mark.pytorch_lightning
@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_the_package_pytorch_lightning_goes_on_after_a_fault(tmp_path):
    class Fails(FromTheOtherPackage):
        def forward(self, images):
            if torch.is_grad_enabled() and not self.training:
                raise RuntimeError("the cat sat on the keyboard")
            return super().forward(images)

    trainer = trainer_of_the_other_package(tmp_path, quick_callback(on_error="warn"), max_epochs=2)
    with pytest.warns(UserWarning, match="could not explain .*, and the run goes on: RuntimeError: the cat sat"):
        trainer.fit(Fails(), **loaders())
    assert trainer.global_step == 8
