"""Every common form of data: it is understood, shown in its true colours, and left alone."""

import dataclasses
import logging
from collections import namedtuple
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from gfi_lightning import GuidedFeatureInversion, History, UsageError, replay
from gfi_lightning.testing import assert_harmless
from gfi_lightning.training.batches import are_channels_last
from gfi_lightning.training.dataset_info import cheap_labels, names_of_classes
from gfi_lightning.training.normalization import normalizations
from tests.training.modules import CLASSES, QUICK, ToyModule, image_steps, make_trainer, quick_callback

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
NAMES = [f"kind {number}" for number in range(CLASSES)]
LABELS = [number // 4 % CLASSES for number in range(20)]
SPREAD = [0, 8]  # of two samples, by their labels


def pixels(count=20, seed=0):
    """Pictures as bytes, (count, 3, 16, 16)."""
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()


PIXELS = pixels()


def as_floats(image):
    return torch.as_tensor(image).float() / 255


class Items(Dataset):
    """Pictures as bytes, and labels, in a form of the user's."""

    def __init__(self, make, labels=LABELS, **attributes):
        self.make, self.answers = make, labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.answers)

    def __getitem__(self, index):
        return self.make(PIXELS[index], self.answers[index])


class Data(L.LightningDataModule):
    """Trains and validates on the same items, with collate functions of one's own."""

    def __init__(self, items, collate=None, train_collate=None):
        super().__init__()
        self.items, self.collate, self.train_collate = items, collate, train_collate

    def train_dataloader(self):
        return DataLoader(self.items, 4, shuffle=True, collate_fn=self.train_collate)

    def val_dataloader(self):
        return DataLoader(self.items, 4, collate_fn=self.collate)


class Classifier(ToyModule):
    """Unpacks a batch as its user does."""

    def __init__(self, unpack=None):
        super().__init__()
        self._unpack = unpack

    def unpack(self, batch):
        return (batch[0], batch[1]) if self._unpack is None else self._unpack(batch)


def fit(folder, items, unpack=None, module=None, data=None, **options):
    """The history of a short run; of two samples, unless said otherwise."""
    return run("fit", folder, data or Data(items), module or Classifier(unpack), **options)


def validate(folder, items, unpack=None, module=None, data=None, **options):
    """The same of a validation, where the training could not matter."""
    return run("validate", folder, data or Data(items), module or Classifier(unpack), **options)


def run(what, folder, data, module, **options):
    callback = quick_callback(**{"num_samples": 2} | options)
    trainer = make_trainer(folder, callback, max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    getattr(trainer, what)(module, datamodule=data)
    return History.load(trainer.log_dir)


def check_shown(history, indices=(0, 1), labels=True):
    """The pictures are those of the data set, byte for byte but for rounding, under their labels."""
    expected = PIXELS[list(indices)].permute(0, 2, 3, 1).int().numpy()
    assert np.abs(history.images.astype(int) - expected).max() <= 1
    if labels:
        assert history.labels.tolist() == [LABELS[index] for index in indices]


Sample = namedtuple("Sample", ["index", "target", "image"])


@dataclasses.dataclass
class Sampled:
    kind_label: torch.Tensor
    img: torch.Tensor


def as_dataclass(items):
    return Sampled(torch.tensor([label for _, label in items]), torch.stack([image for image, _ in items]))


FORMS = {
    "dict with text by a usual name, and numbers by another": (
        lambda image, label: {"label": "ab"[label % 2], "label_idx": label, "image": as_floats(image)},
        None,
        lambda batch: (batch["image"], batch["label_idx"]),
    ),
    "dict with a category": (
        lambda image, label: {"image": as_floats(image), "category": label},
        None,
        lambda batch: (batch["image"], batch["category"]),
    ),
    "named tuple in another order": (
        lambda image, label: Sample(7, label, as_floats(image)),
        None,
        lambda batch: (batch.image, batch.target),
    ),
    "dict with two kinds of labels by one usual name": (
        lambda image, label: {"coarse_label": label // 2, "label": label, "img": as_floats(image)},
        None,
        lambda batch: (batch["img"], batch["label"]),
    ),
    "dict with names of its own": (
        lambda image, label: {"name": "a", "fine_label": label, "photo": as_floats(image)},
        None,
        lambda batch: (batch["photo"], batch["fine_label"]),
    ),
    "dataclass": (
        lambda image, label: (as_floats(image), label),
        as_dataclass,
        lambda batch: (batch.img, batch.kind_label),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_batch(tmp_path, form):
    make, collate, unpack = FORMS[form]
    data = Data(Items(make), collate, collate)
    check_shown(validate(tmp_path, data.items, unpack, data=data))


@pytest.mark.transformers
def test_a_batch_of_an_image_processor(tmp_path):
    from transformers import BatchFeature

    def collate(items):
        return BatchFeature({key: torch.stack([item[key] for item in items]) for key in items[0]})

    class Attributes(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert batch.pixel_values.dtype == torch.float32
            return batch

    items = Items(lambda image, label: {"pixel_values": as_floats(image), "labels": torch.tensor(label)})
    module = Attributes(lambda batch: (batch.pixel_values, batch.labels))
    check_shown(validate(tmp_path / "read", items, module=module, data=Data(items, collate, collate)))
    ready = collate([items[0], items[1]])
    check_shown(validate(tmp_path / "ready", items, module=module, data=Data(items, collate, collate), samples=ready))


# Hugging Face datasets


def hugging_face(columns=("image", "label")):
    import datasets

    names = datasets.ClassLabel(names=NAMES)
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: names})
    images = [image.permute(1, 2, 0).numpy() for image in PIXELS]
    return datasets.Dataset.from_dict({columns[0]: images, columns[1]: LABELS}, features=features)


ON_THE_FLY = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
read_by_transform = []


def transformed(examples):
    """As in the library's guides: a transform that is a global of the script."""
    read_by_transform.extend(examples["label"])
    return {"pixel_values": [ON_THE_FLY(image) for image in examples["image"]], "label": examples["label"]}


def of_pixel_values(batch):
    return batch["pixel_values"], batch["label"]


@pytest.mark.datasets
def test_hugging_face_with_a_transform(tmp_path, caplog):
    items = hugging_face().with_transform(transformed)
    assert cheap_labels(items) == cheap_labels(items.shuffle(seed=0).sort("label")) == sorted(LABELS)
    assert read_by_transform == [], "labels are had from their column"
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        history = fit(tmp_path, items, of_pixel_values)
    check_shown(history, SPREAD)
    assert history.class_names == NAMES
    (line,) = [one for one in caplog.messages if "as they were before the normalisation in" in one]
    assert "the data set's transform.ON_THE_FLY" in line


@pytest.mark.datasets
def test_hugging_face_behind_the_users_own_data_set_and_with_other_names(tmp_path):
    class Wrapped(Items):
        def __getitem__(self, index):
            row = self.dataset[index]
            return as_floats(np.array(row["img"])).permute(2, 0, 1), row["fine_label"]

    inner = hugging_face(("img", "fine_label"))
    history = validate(tmp_path, Wrapped(None, dataset=inner))
    check_shown(history, SPREAD)
    assert history.class_names == NAMES


@pytest.mark.datasets
def test_hugging_face_of_two_kinds_of_classes_is_not_named_by_a_guess():
    import datasets

    kinds = {"fine_label": datasets.ClassLabel(names=NAMES), "coarse_label": datasets.ClassLabel(names=["few", "many"])}
    items = datasets.Dataset.from_dict(
        {"fine_label": [0, 1], "coarse_label": [0, 1]}, features=datasets.Features(kinds)
    )
    assert names_of_classes(items, [torch.zeros(1), torch.zeros(1)]) is None
    assert names_of_classes(items, {"coarse_label": torch.zeros(1)}) == ["few", "many"]


def of_columns(**columns):
    """A data set of Hugging Face with labels of several kinds: numbers, or names of classes."""
    import datasets

    values = {"image": [image.permute(1, 2, 0).numpy() for image in PIXELS]}
    values |= {name: LABELS if kind == "labels" else [0] * len(LABELS) for name, kind in columns.items()}
    kinds = {"labels": datasets.Value("int64"), "text": datasets.Value("string")}
    features = {
        name: kinds[kind] if isinstance(kind, str) else datasets.ClassLabel(names=kind)
        for name, kind in columns.items()
    }
    values |= {name: [str(value) for value in values[name]] for name, kind in columns.items() if kind == "text"}
    values |= {name: LABELS for name, kind in columns.items() if kind == NAMES}
    return datasets.Dataset.from_dict(values, features=datasets.Features({"image": datasets.Image(), **features}))


def as_pictures(examples):
    return examples | {"image": [as_floats(np.array(image)).permute(2, 0, 1) for image in examples["image"]]}


COLUMNS = {
    "numbers beside classes of something else": ({"label": "labels", "source": ["web", "camera"]}, "label", []),
    "the only classes, by a name of their own": ({"kind": NAMES}, "kind", NAMES),
    "beside text by a usual name": ({"label": "text", "species": NAMES}, "species", NAMES),
}


@pytest.mark.datasets
@pytest.mark.parametrize("name", COLUMNS)
def test_only_the_label_s_own_column_gives_names_and_spread(tmp_path, name):
    columns, label, names = COLUMNS[name]
    items = of_columns(**columns).with_transform(as_pictures)
    history = validate(tmp_path, items, lambda batch: (batch["image"], batch[label]))
    check_shown(history, SPREAD)
    assert history.class_names == names


def test_names_of_another_number_of_classes_are_dropped(tmp_path, caplog):
    items = Items(lambda image, label: (as_floats(image), label), classes=[*NAMES, "one more"])
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        assert validate(tmp_path, items).class_names == []
    (line,) = [one for one in caplog.messages if "names of" in one]
    assert "names of 6 classes, and the model has 5: classes are shown by their indices" in line


class Properties(Items):
    """Computes by reading everything, or not at all."""

    @property
    def targets(self):
        return [self[index][1] for index in range(len(self))]

    @property
    def labels(self):
        raise RuntimeError("not loaded yet")

    @property
    def classes(self):
        raise NotImplementedError


class Refuses(Items):
    def __getattr__(self, name):
        if name.startswith("__"):  # the loader asks for these
            raise AttributeError(name)
        raise RuntimeError(f"no {name}")


@pytest.mark.parametrize("kind", [Properties, Refuses])
def test_attributes_that_cannot_be_had_are_none(tmp_path, kind):
    read = []

    def make(image, label):
        read.append(label)
        return as_floats(image), label

    items = kind(make)
    assert cheap_labels(items) is None
    assert names_of_classes(items, None) is None
    assert read == [], "a property read every item"
    check_shown(validate(tmp_path, items))


class OnTheDevice(Classifier):
    """Makes floats of bytes, and normalises them, where the model is."""

    def __init__(self, unpack=None):
        super().__init__(unpack)
        self.to_normal = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if isinstance(batch, dict):
            return batch | {"image": self.to_normal(batch["image"])}
        return self.to_normal(batch[0]), batch[1]


@pytest.mark.datasets
def test_hugging_face_with_a_format_and_bytes_for_the_device(tmp_path):
    items = hugging_face().with_format("torch")
    module = OnTheDevice(lambda batch: (batch["image"], batch["label"]))
    check_shown(validate(tmp_path, items, module=module), SPREAD)


@pytest.mark.datasets
def test_hugging_face_streams(tmp_path):
    items = hugging_face().to_iterable_dataset()
    items = items.map(lambda row: transformed({key: [value] for key, value in row.items()}) | {"label": row["label"]})
    items = items.map(lambda row: {"pixel_values": row["pixel_values"][0]}, remove_columns=["image"])
    loader = DataLoader(items.with_format("torch"), 4)
    trainer = make_trainer(tmp_path, quick_callback(num_samples=2), max_epochs=1, limit_train_batches=2)
    trainer.fit(Classifier(of_pixel_values), loader, loader)
    check_shown(History.load(trainer.log_dir), [0, 1])


@pytest.mark.datasets
@pytest.mark.transformers
def test_the_image_processor_that_a_transform_uses(tmp_path):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(do_resize=False, image_mean=MEAN, image_std=STD)

    def prepared(processor, examples):
        images = [image.convert("RGB") for image in examples["image"]]
        return {"label": examples["label"]} | processor(images, return_tensors="pt")

    items = hugging_face().with_transform(partial(prepared, processor))
    check_shown(validate(tmp_path, items, of_pixel_values), SPREAD)


# normalisations


def by_albumentations(*steps):
    import albumentations
    from albumentations.pytorch import ToTensorV2

    return albumentations.Compose([*(step(albumentations) for step in steps), ToTensorV2()])


class Augmented(Items):
    """Pictures with channels last, for an augmentation that its user calls as he likes."""

    def __getitem__(self, index):
        image = PIXELS[index].permute(1, 2, 0).numpy()
        return self.augmentations(image=image)["image"].float(), self.answers[index]


@pytest.mark.albumentations
def test_albumentations(tmp_path):
    steps = by_albumentations(lambda module: module.HorizontalFlip(p=0.0), lambda module: module.Normalize(MEAN, STD))
    check_shown(fit(tmp_path, Augmented(None, augmentations=steps)))


@pytest.mark.albumentations
def test_albumentations_by_each_image_cannot_be_undone(tmp_path, caplog):
    steps = by_albumentations(lambda module: module.Normalize(MEAN, STD, normalization="image"))
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        validate(tmp_path, Augmented(None, augmentations=steps))
    assert len([one for one in caplog.messages if "shown by its own range" in one]) == 1


@pytest.mark.albumentations
@pytest.mark.datasets
def test_transforms_with_random_numbers_of_their_own_are_left_as_they_were(tmp_path):
    """One pipeline for training and validation: what we read must not move its generator on."""

    def make_data():
        steps = by_albumentations(lambda module: module.HorizontalFlip(), lambda module: module.Normalize(MEAN, STD))
        steps.set_random_seed(0)

        def augment(examples):
            return {
                "pixel_values": [steps(image=np.array(image))["image"] for image in examples["image"]],
                "label": examples["label"],
            }

        return Data(hugging_face().with_transform(augment))

    assert_harmless(
        lambda callbacks: make_trainer(tmp_path, *callbacks, max_epochs=1, limit_train_batches=2),
        lambda: Classifier(of_pixel_values),
        make_data,
        make_callbacks=lambda: [quick_callback(num_samples=2, every_n_steps=1)],
    )


def transforms():
    """Where a normalisation may be, and what of it is found."""
    normalize = v2.Normalize(MEAN, STD)
    imagenet = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return {
        "nested": (v2.Compose([v2.Compose([v2.Identity(), normalize])]), (MEAN, STD)),
        "sequential": (torch.nn.Sequential(v2.Identity(), normalize), (MEAN, STD)),
        "by stage": ({"train": v2.Identity(), "val": normalize}, (MEAN, STD)),
        "in a partial": (partial(lambda transform, image: transform(image), normalize), (MEAN, STD)),
        "random": (v2.RandomApply([normalize]), None),
        "preset of weights": (ResNet18_Weights.DEFAULT.transforms(), imagenet),
        "as numbers": ({"mean": MEAN, "std": STD}, (MEAN, STD)),
        "nothing": (v2.Compose([v2.Identity(), v2.GaussianNoise(0.5, 0.1)]), None),
    }


@pytest.mark.parametrize("name", transforms())
def test_where_a_normalisation_is_found(name):
    transform, expected = transforms()[name]
    for attribute in ("transform", "val_tfms"):
        dataset = Items(None, **{attribute: transform})
        found = next(normalizations(DataLoader(dataset), []), None)
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_allclose(found[:2], expected, rtol=1e-5)


TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
OTHER = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRUE_COLOURS = {
    "two steps": v2.Compose([TO_FLOAT, v2.Normalize([0.5], [0.5]), v2.Normalize([0.1, 0.0, 0.2], [0.3, 0.4, 0.3])]),
    "deviations over 1": v2.Compose([TO_FLOAT, v2.Normalize([0.5], [2.0])]),
    "floats in 0…255": v2.Compose([v2.ToDtype(torch.float32), v2.Normalize([0.0], [1.0])]),
    "means of bytes": v2.Compose([v2.ToDtype(torch.float32), v2.Normalize([120.0], [60.0])]),
    "a little beyond": v2.Compose([TO_FLOAT, v2.Lambda(lambda x: x * 1.06 - 0.03), v2.Normalize(MEAN, STD)]),
    "few far beyond": v2.Compose([TO_FLOAT, lambda x: with_one_pixel(x, 1.3), v2.Normalize(MEAN, STD)]),
}


def with_one_pixel(image, value):
    image[0, 0, 0] = value
    return image


def shown(folder, caplog, *args, **options):
    """A run's pictures, and whether they are said to be shown by their own range."""
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        history = validate(folder, *args, **options)
    return history.images.astype(int), any("shown by its own range" in one for one in caplog.messages)


@pytest.mark.parametrize("name", TRUE_COLOURS)
def test_a_normalisation_is_undone_whatever_its_numbers(tmp_path, caplog, name):
    items = Items(lambda image, label: (items.transform(image), label), transform=TRUE_COLOURS[name])
    images, by_own_range = shown(tmp_path, caplog, items)
    assert not by_own_range
    expected = PIXELS[:2].permute(0, 2, 3, 1).int().numpy()
    wrong = np.abs(images - expected) > (9 if name == "a little beyond" else 1)
    assert wrong.sum() <= (2 if name == "few far beyond" else 0)


class TrainsOtherwise(Data):
    """A data module whose training is normalised, and whose validation is scaled to [−1, 1] by hand."""

    def __init__(self):
        super().__init__(Items(lambda image, label: (as_floats(image) * 2 - 1, label)))
        self.train_transform = v2.Compose([TO_FLOAT, v2.Normalize([0.5] * 3, [0.4] * 3)])


NOT_MEANT = {
    "of the training": TrainsOtherwise,
    "of other numbers": lambda: Data(
        Items(lambda image, label: (as_floats(image) * 2 - 1, label), transform=v2.Normalize([0.5], [0.26]))
    ),
    "of another range": lambda: Data(
        Items(lambda image, label: ((image * 8.0 - 1000) / 300, label), transform=v2.Normalize([1000.0], [300.0]))
    ),
}


@pytest.mark.parametrize("name", NOT_MEANT)
def test_a_normalisation_that_does_not_explain_the_images_is_not_undone(tmp_path, caplog, name):
    images, by_own_range = shown(tmp_path, caplog, None, data=NOT_MEANT[name]())
    assert by_own_range
    assert images.min((1, 2, 3)).tolist() == [0, 0]
    assert images.max((1, 2, 3)).tolist() == [255, 255]


def test_a_data_set_s_own_normalisation_comes_before_those_of_what_it_wraps(tmp_path):
    inner = Items(None, transform=v2.Normalize([0.45], [0.35]))
    to_input = v2.Compose([v2.Identity(), v2.Compose([TO_FLOAT, v2.Normalize(MEAN, STD)])])
    outer = Items(lambda image, label: (outer.to_input(image), label), dataset=inner, to_input=to_input)
    check_shown(validate(tmp_path, outer))
    assert [one.mean for one in normalizations(DataLoader(outer), [])][-1] == pytest.approx([0.45])


@pytest.mark.parametrize(
    ("name", "counts"),
    [("pretrained_tfms", True), ("train_tfms", False), ("tfmsTrain", False), ("TRAIN_TFMS", False), ("tfms", True)],
)
def test_by_their_names_those_of_the_training_do_not_count(name, counts):
    assert bool(list(normalizations(DataLoader(Items(None, **{name: OTHER})), []))) == counts


def test_in_a_data_set_of_ones_own_and_in_a_collate_function(tmp_path):
    to_normal = v2.Normalize(MEAN, STD)

    def collate(items):
        images, labels = default_collate(items)
        return to_normal(images), labels

    items = Items(lambda image, label: (as_floats(image), label))
    check_shown(validate(tmp_path / "collate", items, data=Data(items, collate, collate)))
    check_shown(validate(tmp_path / "attribute", Items(lambda image, label: (to_normal(as_floats(image)), label))))


@pytest.mark.timm
def test_the_transform_of_timm(tmp_path):
    from timm.data import create_transform

    class Made(Items):
        def __getitem__(self, index):
            return self.tfms(v2.functional.to_pil_image(PIXELS[index])), self.answers[index]

    check_shown(validate(tmp_path, Made(None, tfms=create_transform(16, crop_pct=1.0, mean=MEAN, std=STD))))


class InForward(Classifier):
    """Normalises in its forward: its images are as they were."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images):
        return super().forward((images - self.mean) / self.std)


def test_a_normalisation_within_the_model_is_not_undone(tmp_path):
    check_shown(validate(tmp_path, Items(lambda image, label: (as_floats(image), label)), module=InForward()))


# bytes, normalised on the device


class InDataModule(Data):
    """Normalises on the device, by a hook of the data module, which counts and draws numbers of its own."""

    def __init__(self):
        super().__init__(Items(lambda image, label: {"image": image, "label": label}))
        self.normalize = v2.Normalize(MEAN, STD)
        self.seen, self.generator = [], torch.Generator().manual_seed(0)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.seen.append(dataloader_idx)
        noise = torch.rand(1, generator=self.generator) * (0.1 if self.trainer.training else 0)
        return batch | {"image": self.normalize(batch["image"].float().div_(255)) + noise}


def of_names(batch):
    return batch["image"], batch["label"]


BYTES = {
    "module": (OnTheDevice, lambda: Data(Items(lambda image, label: (image, label)))),
    "data module and dicts": (partial(Classifier, of_names), InDataModule),
}


@pytest.mark.parametrize("where", BYTES)
def test_bytes_that_are_normalised_on_the_device(tmp_path, where):
    make_module, make_data = BYTES[where]
    saver = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="end")
    trainer = make_trainer(tmp_path, quick_callback(num_samples=2), saver, max_epochs=1, enable_checkpointing=True)
    trainer.fit(make_module(), datamodule=make_data())
    live = History.load(trainer.log_dir)
    check_shown(live)
    on_cpu = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    callback = quick_callback(num_samples=2)
    again = replay(tmp_path / "checkpoints", make_module(), make_data(), callback=callback, trainer=on_cpu)
    check_shown(again)
    np.testing.assert_array_equal(again.heatmaps(1)[-1], live.heatmaps(1)[-1])
    assert_harmless(
        lambda callbacks: make_trainer(tmp_path / "twice", *callbacks, max_epochs=1, limit_train_batches=2),
        make_module,
        make_data,
        make_callbacks=lambda: [quick_callback(num_samples=2, every_n_steps=1)],
    )


def test_the_data_module_does_not_notice(tmp_path):
    seen = []
    for callbacks in ([quick_callback(num_samples=2, every_n_steps=1)], []):
        data = InDataModule()
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=1, limit_train_batches=2)
        trainer.fit(Classifier(of_names), datamodule=data)
        seen.append((data.seen, data.generator.get_state().tolist()))
    assert seen[0] == seen[1]


# channels last


class TakesChannelsLast(Classifier):
    def forward(self, images):
        return super().forward(images.permute(0, 3, 1, 2))


class PermutesBefore(Classifier):
    """Its forward takes (N, C, H, W), and its steps bring the images there."""

    def unpack(self, batch):
        return batch[0].permute(0, 3, 1, 2), batch[1]


class OfArrays(PermutesBefore):
    def unpack(self, batch):
        return super().unpack((torch.from_numpy(batch[0]).float(), torch.as_tensor(batch[1])))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(self.unpack(batch)[0]), self.unpack(batch)[1])

    def validation_step(self, batch, batch_idx):
        pass


def as_arrays(items):
    return np.stack([image.double().numpy() for image, _ in items]), np.array([label for _, label in items])


@pytest.mark.parametrize(
    ("kind", "collate"), [(TakesChannelsLast, None), (PermutesBefore, None), (OfArrays, as_arrays)]
)
def test_channels_last(tmp_path, kind, collate):
    items = Items(lambda image, label: (as_floats(image).permute(1, 2, 0), label))
    module = kind()
    history = fit(tmp_path, items, module=module, data=Data(items, collate, collate))
    check_shown(history)
    forward = module.network.forward
    gfi = GuidedFeatureInversion(module, recipe=QUICK, forward=lambda module, images: forward(images))
    expected = gfi.explain(as_floats(PIXELS[:2]), torch.tensor(LABELS[:2]))
    coarse = F.adaptive_avg_pool2d(expected.heatmaps, (8, 8))
    np.testing.assert_allclose([history.heatmaps(n)[-1, 0] for n in range(2)], coarse, atol=2e-3)


class Striped(Classifier):
    """For images of as many channels as there are."""

    def __init__(self, channels, last):
        super().__init__()
        fine = self.network.fine
        old = next(part for part in fine.modules() if isinstance(part, torch.nn.Conv2d))
        new = torch.nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
        self.network.fine = (
            new if fine is old else torch.nn.Sequential(*(new if part is old else part for part in fine))
        )
        self.last = last

    def forward(self, images):
        return super().forward(images.permute(0, 3, 1, 2) if self.last else images)


@pytest.mark.parametrize(("channels", "last", "shape"), [(6, True, (16, 12, 6)), (8, False, (8, 16, 3))])
def test_the_model_tells_which_axis_is_the_channels(tmp_path, channels, last, shape):
    items = Items(lambda image, label: (torch.rand(shape), label))
    history = validate(tmp_path, items, module=Striped(channels, last))
    assert history.images.shape[1:3] == ((16, 12) if last else (16, 3))


@pytest.mark.parametrize(
    ("shape", "taken", "expected"),
    [
        ((16, 16, 3), (3, 16), True),
        ((10, 16, 16), (10, 16), False),
        ((3, 16, 16), (16,), False),
        ((16, 16, 3), (48,), True),
    ],
)
def test_the_shape_tells_where_the_model_does_not(shape, taken, expected):
    module = torch.nn.ModuleList([torch.nn.Conv2d(channels, 2, 1) for channels in taken])
    assert are_channels_last(torch.rand(2, *shape), module) == expected


# several loaders


class Marked(Classifier):
    """Notes for which loader its hooks are called."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        indices[0].add(dataloader_idx)
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        indices[1].add(dataloader_idx)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        indices[2].add(dataloader_idx)
        return batch

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        super().test_step(batch, batch_idx)


indices = [set(), set(), set()]


def three_loaders(kind):
    """Of which only the last one shows the pictures as they are."""
    made = [Items(lambda image, label, scale=scale: (as_floats(image) * scale, label)) for scale in (0.2, 0.5, 1.0)]
    loaders = [DataLoader(items, 4) for items in made]
    return loaders if kind is list else {f"set {number}": loader for number, loader in enumerate(loaders)}


@pytest.mark.parametrize("kind", [list, dict])
def test_one_of_several_loaders(tmp_path, kind):
    [one.clear() for one in indices]
    loaders = three_loaders(kind)
    train = DataLoader(Items(lambda image, label: (as_floats(image), label)), 4)
    saver = ModelCheckpoint(dirpath=tmp_path / "checkpoints")
    options = {"num_sanity_val_steps": 0, "enable_checkpointing": True, "limit_val_batches": 1}
    callback = quick_callback(num_samples=2, dataloader_idx=2)
    trainer = make_trainer(tmp_path, callback, saver, max_epochs=1, limit_train_batches=2, **options)

    class AtTheStart(L.Callback):
        def on_train_batch_start(self, *args):
            seen.append([set(one) for one in indices])

    seen = []
    trainer.callbacks.insert(1, AtTheStart())
    trainer.fit(Marked(), train, loaders)
    assert seen[0] == [{0, 2}] * 3, "0 for the first batch of training, which has been moved by then"
    check_shown(History.load(trainer.log_dir))
    for evaluate in ("validate", "test"):
        again = make_trainer(tmp_path / evaluate, quick_callback(num_samples=2, dataloader_idx=2))
        getattr(again, evaluate)(Marked(), loaders, verbose=False)
        check_shown(History.load(again.log_dir))
        assert image_steps(again) == [0]
    on_cpu = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    callback = quick_callback(num_samples=2, dataloader_idx=2)
    check_shown(replay(tmp_path / "checkpoints", Marked(), None, loaders, callback=callback, trainer=on_cpu))


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        (
            three_loaders(list),
            "dataloader_idx=3 does not exist: there are 3 validation loaders, so give an index from 0 to",
        ),
        (three_loaders(list)[0], "dataloader_idx=3 does not exist: there is one validation loader, so give 0"),
    ],
)
def test_a_loader_that_is_not_there(tmp_path, loaders, message):
    callback = quick_callback(dataloader_idx=3, on_error="warn")
    train = DataLoader(Items(lambda image, label: (as_floats(image), label)), 4)
    trainer = make_trainer(tmp_path, callback, max_epochs=1)
    with pytest.raises(UsageError, match=message):
        trainer.fit(Marked(), train, loaders)
    assert trainer.global_step == 0
    with pytest.raises(UsageError, match="dataloader_idx=-1 must be a whole number, at least 0"):
        quick_callback(dataloader_idx=-1)


# labels


def mixed(items, kind=v2.MixUp, **options):
    return kind(num_classes=CLASSES, **options)(*default_collate(items))


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_mixing_in_training_is_none_of_the_validations_business(tmp_path, kind):
    items = Items(lambda image, label: (as_floats(image), label))
    check_shown(fit(tmp_path, items, data=Data(items, train_collate=partial(mixed, kind=kind))))


def soft(shares):
    """Labels of which the right class has so much, and the next one the rest."""
    return lambda label: shares * torch.eye(CLASSES)[label] + (1 - shares) * torch.eye(CLASSES)[(label + 1) % CLASSES]


LABEL_FORMS = {
    "one-hot": (lambda label: torch.eye(CLASSES)[label], LABELS[:2]),
    "one-hot whole numbers": (lambda label: torch.eye(CLASSES, dtype=torch.int64)[label], LABELS[:2]),
    "soft with a majority": (soft(0.75), LABELS[:2]),
    "floats": (float, LABELS[:2]),
    "floats in a column": (lambda label: torch.tensor([float(label)]), LABELS[:2]),
}


class AnyLabels(Classifier):
    """Trains on class indices, whatever the labels are."""

    def unpack(self, batch):
        return batch[0], torch.zeros(len(batch[0]), dtype=torch.int64)


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_forms_of_labels(tmp_path, form):
    make, expected = LABEL_FORMS[form]
    items = Items(lambda image, label: (as_floats(image), make(label)))
    history = validate(tmp_path, items, module=AnyLabels())
    assert history.labels.tolist() == expected
    assert [history.targets(sample)[0, 0] for sample in range(2)] == expected


@pytest.mark.filterwarnings("default:.*GFICallback.*")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (soft(0.5), "but soft ones, of which some have no class with more than half.* does not mix images"),
        (lambda label: label + 0.5, "found no class indices .*: it explains the predicted classes"),
    ],
)
def test_labels_that_name_no_class_are_not_made_up(tmp_path, make, message):
    items = Items(lambda image, label: (as_floats(image), make(label)))
    with pytest.warns(UserWarning, match=message):
        history = validate(tmp_path, items, module=AnyLabels(), on_error="warn")
    assert history.labels.tolist() == [-1, -1]


class Amount(AnyLabels):
    """A regression."""

    def forward(self, images):
        return 3 * super().forward(images)[:, 1:2]


@pytest.mark.parametrize("targets", ["label", "predicted"])
@pytest.mark.parametrize("amount", [lambda label: label + 0.5, lambda label: 10 * label], ids=["fractions", "numbers"])
def test_a_regression_has_no_classes(tmp_path, amount, targets):
    items, module = Items(lambda image, label: (as_floats(image), amount(label))), Amount()
    history = validate(tmp_path, items, module=module, score=lambda output, _: output[:, 0], targets=targets)
    images = torch.stack([items[number][0] for number in range(2)])
    with torch.no_grad():
        expected = module.eval()(images)[:, 0].tolist()
    assert history.labels.tolist() == [-1, -1]
    assert history.predicted.tolist() == [[-1, -1]]
    assert [history.targets(sample).tolist() for sample in range(2)] == [[[0]], [[0]]]
    assert [float(history.scores(sample)[0, 0]) for sample in range(2)] == pytest.approx(expected, rel=1e-5)


def test_one_class_each_under_sigmoid_stays_one_of_several(tmp_path):
    items = Items(lambda image, label: (as_floats(image), torch.eye(CLASSES)[label]))
    history = validate(tmp_path, items, module=AnyLabels(), score="sigmoid")
    assert history.labels.tolist() == [-1, -1]
    assert [history.targets(sample)[0].tolist() for sample in range(2)] == [[0], [0]]
