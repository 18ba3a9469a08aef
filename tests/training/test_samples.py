"""The same samples all through a run, whatever the loader does, and read in every usual form."""

import re
import warnings
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from gfi_lightning import History, UsageError
from gfi_lightning.training.batches import class_indices, images_and_labels
from gfi_lightning.training.dataset_info import cheap_labels, choose_indices
from gfi_lightning.training.normalization import normalizations
from gfi_lightning.training.samples import read_samples
from tests.training.modules import (
    CLASSES,
    QUICK,
    WEIGHTS_ONLY,
    Pictures,
    ToyModule,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
    scalar_steps,
)


class Labelled(Dataset):
    def __init__(self, **attributes):
        vars(self).update(attributes)
        self.size = max(len(value) for value in attributes.values())

    def __len__(self):
        return self.size


LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 5]
WITH_LABELS = {
    "targets": Labelled(targets=LABELS),
    "labels array": Labelled(labels=np.array(LABELS)),
    "whole numbers": Labelled(targets=[float(label) for label in LABELS]),
    "targets tensor": Labelled(targets=torch.tensor(LABELS)),
    "tensors": TensorDataset(torch.rand(10, 3, 4, 4), torch.tensor(LABELS)),
    "concatenated": ConcatDataset([Labelled(targets=LABELS[:4]), Labelled(targets=LABELS[4:])]),
    "subset": Subset(Labelled(targets=[9, *LABELS]), range(1, 11)),
    "subset of a subset": Subset(Subset(Labelled(targets=[9, *LABELS, 9]), range(12)), range(1, 11)),
}
WITHOUT_LABELS = {
    "none": Labelled(values=LABELS),
    "text": Labelled(targets=["cat"] * 10),
    "too few": Labelled(targets=LABELS[:4], values=LABELS),
    "several each": Labelled(labels=np.zeros((10, 3), dtype=int)),
    "numbers": Labelled(targets=[0.5] * 10),
    "images alone": TensorDataset(torch.rand(10, 3, 4, 4)),
}


@pytest.mark.parametrize("form", WITH_LABELS)
def test_labels_that_can_be_had_without_reading(form):
    assert cheap_labels(WITH_LABELS[form]) == LABELS
    assert choose_indices(WITH_LABELS[form], 4) == [0, 4, 7, 9]
    assert choose_indices(WITH_LABELS[form], 6) == [0, 4, 7, 9, 1, 5]


@pytest.mark.parametrize("form", WITHOUT_LABELS)
def test_the_first_ones_where_they_can_not(form):
    assert cheap_labels(WITHOUT_LABELS[form]) is None
    assert choose_indices(WITHOUT_LABELS[form], 4) == [0, 1, 2, 3]


def test_fewer_samples_than_classes_and_more_than_items():
    many = Labelled(targets=list(range(100)))
    assert choose_indices(many, 4) == [0, 25, 50, 75]
    assert sorted(choose_indices(WITH_LABELS["targets"], 50)) == list(range(10))


IMAGES, KINDS = torch.rand(6, 3, 16, 16), torch.arange(6) % CLASSES
Pair = namedtuple("Pair", ["picture", "kind"])
BATCHES = {
    "list": lambda: [IMAGES, KINDS],
    "tuple with more": lambda: (IMAGES, KINDS, ["a"] * 6),
    "named tuple": lambda: Pair(IMAGES, KINDS),
    **{
        f"dict {image}/{label}": lambda image=image, label=label: {"id": torch.arange(6), image: IMAGES, label: KINDS}
        for image, label in (("image", "label"), ("images", "labels"), ("pixel_values", "target"), ("x", "y"))
    },
}


@pytest.mark.parametrize("form", BATCHES)
def test_usual_forms_of_a_batch(form):
    images, labels = images_and_labels(BATCHES[form]())
    assert images is IMAGES
    assert torch.equal(labels, KINDS)


class ReadyBatches:
    """A loader that is no DataLoader."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("as_samples", [True, False])
def test_a_run_on_any_form_of_batch(tmp_path, form, as_samples):
    class Module(ToyModule):
        def unpack(self, batch):
            return images_and_labels(batch)

    if as_samples:
        callback, val = quick_callback(samples=BATCHES[form]()), loaders()["val_dataloaders"]
    else:
        callback, val = quick_callback(), ReadyBatches(BATCHES[form]())
    trainer = make_trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(Module(), loaders()["train_dataloaders"], val)
    history = History.load(trainer.log_dir)
    assert history.labels.tolist() == KINDS.tolist()[: 6 if as_samples else 3]
    assert history.heatmaps(0).shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([1, 2, 3]), [1, 2, 3]),
        ([1, 2, 3], [1, 2, 3]),
        (torch.tensor([[1], [2], [3]]), [1, 2, 3]),
        (torch.tensor([0.0, 1.0, 1.0]), [0, 1, 1]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (torch.eye(3), None),
        (torch.tensor([0.1, 0.2, 0.7]), None),
        (["cat", "dog", "cat"], None),
        (None, None),
    ],
)
def test_labels_as_class_indices(labels, expected):
    found = class_indices(labels, 3)
    assert (None if found is None else found.tolist()) == expected


class Stream(IterableDataset):
    """Items one after the other; as an iterator of itself it goes on where it stopped."""

    def __init__(self, own_iterator):
        self.own_iterator = own_iterator
        self.position = 0

    def __iter__(self):
        return self if self.own_iterator else (self.item(number) for number in range(20))

    def __next__(self):
        self.position += 1
        return self.item(self.position - 1)

    def item(self, number):
        return torch.full((3, 16, 16), float(number)), number % CLASSES


@pytest.mark.parametrize("own_iterator", [False, True])
def test_the_first_items_of_an_iterable_data_set(own_iterator):
    stream = Stream(own_iterator)
    samples = read_samples(DataLoader(stream, batch_size=2), 5)
    assert samples.batch[1].tolist() == [0, 1, 2, 3, 4]
    assert samples.indices is None
    assert next(iter(DataLoader(stream, batch_size=2)))[1].tolist() == [0, 1], "we took items from the run"


class Source:
    """What a stream reads from, in one of the ways to keep it; all of them hand out each item once."""

    def __init__(self, kind):
        items = iter([(torch.full((3, 16, 16), float(number)), number % CLASSES) for number in range(20)])
        self.kept = {"deep": {"reader": [items]}, "variable": None}[kind]
        self.items = (lambda: self.kept["reader"][0]) if kind == "deep" else (lambda: items)


class Reads(IterableDataset):
    def __init__(self, source):
        self.source = source

    def __iter__(self):
        yield from self.source.items()


SHARED = iter([(torch.zeros(3, 16, 16), 0)] * 20)


class ReadsAGlobal(IterableDataset):
    def __iter__(self):
        yield from SHARED


class KeepsIt(Reads):
    def __iter__(self):
        yield from self.source.kept["reader"][0]


class Reopens(IterableDataset):
    """Reads a file from its beginning each time; what it holds besides is too much to be copied."""

    def __init__(self, path):
        self.path, self.cache = path, Uncopyable()

    def __iter__(self):
        with self.path.open() as self.file:
            for line in self.file:
                yield torch.full((3, 16, 16), float(line)), int(line) % CLASSES


class Uncopyable:
    def __deepcopy__(self, memo):
        raise AssertionError("copied")


def test_a_stream_that_keeps_its_place_deep_inside_loses_nothing():
    stream = KeepsIt(Source("deep"))
    assert read_samples(DataLoader(stream, batch_size=2), 5).batch[1].tolist() == [0, 1, 2, 3, 4]
    assert len(list(stream)) == 20, "we took items from the run"


@pytest.mark.parametrize("make", [lambda: Reads(Source("variable")), lambda: ReadsAGlobal()])
def test_a_stream_whose_place_cannot_be_copied_is_left_alone(make):
    stream = make()
    with pytest.raises(UsageError, match=r"can be read only once \(its list_iterator cannot be copied\)"):
        read_samples(DataLoader(stream, batch_size=2), 5)
    assert len(list(stream)) == 20, "we took items from the run"


def test_a_stream_that_reads_its_file_anew_is_not_copied(tmp_path):
    path = tmp_path / "items.txt"
    path.write_text("0\n1\n2\n3\n")
    stream = Reopens(path)
    for _ in range(2):  # the second time it holds a closed file
        assert read_samples(DataLoader(stream, batch_size=2), 3).batch[1].tolist() == [0, 1, 2]
        assert len(list(stream)) == 4


def test_ready_batches_are_cut_to_the_first_rows():
    loader = DataLoader([BATCHES["list"](), BATCHES["list"]()], batch_size=None)
    samples = read_samples(loader, 4)
    assert len(samples.batch[0]) == len(samples.batch[1]) == 4


NORMALIZE = v2.Normalize([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "attributes",
    [
        {"transform": NORMALIZE},
        {"transforms": v2.Compose([v2.Identity(), v2.Compose([NORMALIZE])])},
        {"transform": [v2.Identity(), NORMALIZE]},
    ],
)
def test_normalisation_is_found(attributes):
    class WithTransform:
        pass

    dataset = WithTransform()
    vars(dataset).update(attributes)
    wrapped = WithTransform()
    wrapped.dataset = dataset
    for one in (dataset, wrapped):
        found = next(normalizations(SimpleNamespace(dataset=one), []))
        np.testing.assert_allclose(found[:2], [[0.4, 0.5, 0.6], [0.1, 0.2, 0.3]], rtol=1e-6)
    assert list(normalizations(SimpleNamespace(dataset=WithTransform()), [])) == []


def shown_labels(trainer):
    return History.load(trainer.log_dir).labels.tolist()


def shown_images(trainer):
    return History.load(trainer.log_dir).images


@pytest.mark.parametrize(
    "options",
    [{"shuffle": True}, {"batch_size": 1}, {"num_workers": 1}, {"drop_last": True, "batch_size": 7}],
    ids=str,
)
def test_the_same_samples_whatever_the_loader_does(tmp_path, options):
    val = Pictures(augment=True)
    trainers = [make_trainer(tmp_path / str(number), quick_callback(num_samples=7), max_epochs=1) for number in (0, 1)]
    for trainer, loader_options in zip(trainers, ({"batch_size": 4}, options), strict=True):
        torch.manual_seed(len(loader_options))
        trainer.fit(ToyModule(), loaders()["train_dataloaders"], DataLoader(val, **loader_options))
    assert shown_labels(trainers[0]) == [0, 1, 2, 3, 4, 0, 2] == shown_labels(trainers[1])
    assert (shown_images(trainers[0]) == shown_images(trainers[1])).all(), "augmented differently"


@pytest.mark.parametrize(
    "samples", [[19, 3], (19, 3), np.array([19, 3]), torch.tensor([19, 3]), list(np.array([19, 3]))]
)
def test_samples_by_index(tmp_path, samples):
    trainer = make_trainer(tmp_path, quick_callback(samples=samples), max_epochs=1)
    trainer.fit(ToyModule(), **loaders())
    assert shown_labels(trainer) == [4, 0]


def resumable(folder, val, max_epochs, **options):
    saver = ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True)
    trainer = make_trainer(folder, quick_callback(**options), saver, max_epochs=max_epochs, enable_checkpointing=True)
    path = folder / "checkpoints" / "last.ckpt"
    trainer.fit(ToyModule(), **loaders(val=val), ckpt_path=path if path.exists() else None, **WEIGHTS_ONLY)
    return trainer


def test_a_resume_goes_on_with_the_same_samples(tmp_path, caplog):
    first = resumable(tmp_path, Pictures(), 2)
    assert "samples of the checkpoint" not in caplog.text
    second = resumable(tmp_path, Pictures(), 4, num_samples=8)
    assert "GFICallback(num_samples=8) goes on with the 3 samples of the checkpoint" in caplog.text
    assert image_steps(first) == [0, 3, 7]
    assert image_steps(second) == [11, 15], "no second picture of the step that the checkpoint was written at"
    assert shown_labels(second) == shown_labels(first) == [0, 1, 3]
    assert scalar_steps(second, "gfi/drift") == [11, 15], "the checkpoint's maps are there to compare with"
    assert not any("gfi" in name for name in second.logged_metrics), "ours stay out of the run's own metrics"


def half_gray(images):
    return images * 0 + 0.5


def probability(logits, targets):
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


OTHER_MAPS = {
    "recipe=": {"recipe": replace(QUICK, target_steps=1)},
    "background=": {"background": half_gray},
    "targets=": {"targets": "predicted"},
    "layer=": {"layer": "network.fine"},
    "explainer=": {"recipe": "default", "explainer": lambda model, images, targets: images.mean(1)},
    "score= and inversion_layer=": {"score": probability, "inversion_layer": "network.fine"},
    "warm_start=": {"warm_start": True},
}


@pytest.mark.parametrize("changed", OTHER_MAPS)
def test_a_resume_that_makes_maps_otherwise_does_not_compare_them(tmp_path, caplog, changed):
    layer = {} if "explainer" in changed else {"layer": "network.coarse"}
    resumable(tmp_path, Pictures(), 2, **layer)
    resumed = resumable(tmp_path, Pictures(), 4, **layer | OTHER_MAPS[changed])
    assert f"GFICallback makes maps by another {changed} than before the checkpoint" in caplog.text
    assert scalar_steps(resumed, "gfi/drift") == [15], "the run at step 11 is the first of its kind"
    assert len(History.load(resumed.log_dir)) == 5
    again = resumable(tmp_path, Pictures(), 6, **layer | OTHER_MAPS[changed])
    assert caplog.text.count("GFICallback makes maps by another") == 1
    compared = [23] if changed == "warm_start=" else [19, 23]  # whose first run is cold after each checkpoint
    assert scalar_steps(again, "gfi/drift") == compared


def test_other_layers_are_found_for_another_recipe(tmp_path):
    """The checkpoint's are those of one that asks for another number of them."""
    layers = []
    for epochs, recipe in enumerate(("default", QUICK), 1):
        resumable(tmp_path, Pictures(), epochs, recipe=recipe)
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        layers.append(saved["gfi_lightning"]["gfi"]["layer"])
    assert layers == [["network.fine", "network.coarse"], "network.coarse"]


def test_the_next_process_knows_the_method_again(tmp_path):
    """Where functions lie elsewhere in memory."""
    resumable(tmp_path, Pictures(), 1, background=half_gray, targets=lambda logits, labels: labels, score=probability)
    method = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["gfi_lightning"]["gfi"]["method"]
    assert method["background"] == "half_gray"
    assert method["score"] == "probability"
    assert "mask=upsample_then_divide_by_maximum" in method["recipe"]
    assert " at 0x" not in str(method)


SAME_MAPS = {
    "numbers": ({"targets": 3}, {"targets": np.int64(3)}),
    "lists": ({"targets": [3, 1]}, {"targets": list(np.array([3, 1]))}),
    "recipes": ({"recipe": QUICK}, {"recipe": replace(QUICK, inversion_penalty=np.float64(5))}),
    "the found layer": ({}, {"layer": "network.coarse"}),
    "the usual score": ({}, {"score": "softmax"}),
    "a score that is left to the labels": ({"score": "softmax"}, {}),
    "schedules and samples": ({}, {"every_n_steps": 4, "num_samples": 2, "per_sample": True}),
}


@pytest.mark.parametrize("name", SAME_MAPS)
def test_a_resume_that_makes_the_same_maps_compares_them(tmp_path, caplog, name):
    before, after = SAME_MAPS[name]
    resumable(tmp_path, Pictures(), 1, **before)
    resumed = resumable(tmp_path, Pictures(), 2, **after)
    assert "makes maps by another" not in caplog.text
    assert scalar_steps(resumed, "gfi/drift")[0] == 7


def test_a_checkpoint_of_before_is_taken_for_the_same(tmp_path, caplog):
    resumable(tmp_path, Pictures(), 1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["gfi_lightning"]["gfi"]["method"]
    torch.save(checkpoint, path)
    assert scalar_steps(resumable(tmp_path, Pictures(), 2), "gfi/drift") == [7]
    assert "makes maps by another" not in caplog.text


def test_other_targets_are_explained_in_the_layer_of_the_checkpoint(tmp_path):
    resumable(tmp_path, Pictures(), 1, layer="network.fine")
    resumable(tmp_path, Pictures(), 2, targets="predicted")
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["gfi_lightning"]["gfi"]["layer"] == ["network.fine"]


@pytest.mark.filterwarnings("default:.*GFICallback.*")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (Pictures(24), "validation set has 24 items, and had 20 .* chooses its samples anew"),
        (Pictures(20, seed=9), "are not those of the checkpoint: the data set or its transform has changed"),
    ],
)
def test_a_resume_with_other_data_says_so_once(tmp_path, changed, message):
    resumable(tmp_path, Pictures(), 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumable(tmp_path, changed, 3)
    (said,) = [str(warning.message) for warning in caught if "GFICallback" in str(warning.message)]
    assert re.search(message, said)
