"""Two processes share the work, agree on what failed, and never wait for each other for ever."""

import io
import os
import re
import warnings
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader

from gfi_lightning import History
from gfi_lightning.testing import assert_harmless
from gfi_lightning.training import callback as callback_module
from tests.networks import ToyPatches
from tests.training.modules import CLASSES, Pictures, ToyModule, loaders, make_trainer, quick_callback
from tests.training.peculiar import Data

RANK = int(os.environ.get("RANK", 0))


class Counting(ToyModule):
    """Counts the forward passes of explanations, and may talk to the other ranks in each."""

    count = 0

    def __init__(self, talks=False):
        super().__init__()
        self.talks = talks

    def forward(self, images):
        if torch.is_grad_enabled() and not self.training:
            self.explaining(images)
        return super().forward(images)

    def explaining(self, images):
        Counting.count += 1
        if self.talks:
            distributed.all_reduce(torch.zeros(1))


def fit(folder, module, callback, *others, data=None, ranks=2, **options):
    L.seed_everything(0, verbose=False)
    if ranks > 1:
        options = {"strategy": "ddp", "devices": ranks} | options
    trainer = make_trainer(folder, callback, *others, **{"max_epochs": 2, "num_sanity_val_steps": 0} | options)
    trainer.fit(module, **(data or loaders()))
    return trainer


def explained(folder, num_samples, talks=False, ranks=2):
    """Fits, and returns how many passes this rank made to explain."""
    Counting.count = 0
    fit(folder, Counting(talks), quick_callback(num_samples=num_samples), ranks=ranks)
    return Counting.count


def several_labels():
    labels = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 0, 0, 1], [0] * 5, [0, 0, 0, 0, 1]])
    return Pictures().images[:5], labels


OPTIONS = {
    "contrast": {"targets": "contrast"},
    "present": {"targets": "present", "score": "sigmoid", "samples": several_labels()},
    "depths": {"layers": ["network.fine", "network.coarse"]},
    # Predictions come and go, and with them the pairs that one rank knows and the other does not.
    "warm start": {"warm_start": True, "recipe": "default", "layer": "network.coarse"},
    "patches": {"recipe": "default", "layer": "network.coarse_patches"},
}


def explained_with(folder, options, ranks=2):
    Counting.count = 0
    module = Counting(ranks > 1)
    module.network = ToyPatches(classes=CLASSES, gain=1.0).train()
    fit(folder, module, quick_callback(num_samples=5, **OPTIONS[options]), ranks=ranks)
    return Counting.count


@pytest.mark.parametrize("options", OPTIONS)
def test_whatever_is_explained_is_that_of_one_process(tmp_path, two_ranks, options):
    """Five samples in three and two, of which the one rank's have up to three classes, and the other's one."""
    passes = two_ranks(explained_with, tmp_path / "two", options)
    explained_with(tmp_path / "one", options, ranks=1)
    two, one = (History.load(tmp_path / name / "version_0") for name in ("two", "one"))
    assert passes[0] == passes[1] > 0
    assert two.depth_layers == one.depth_layers
    for sample in range(5):  # at step 0, before the batches differ
        for name in ("targets", "against"):
            np.testing.assert_array_equal(getattr(two, name)(sample)[0], getattr(one, name)(sample)[0])
        for name in ("heatmaps", "depths"):
            np.testing.assert_allclose(getattr(two, name)(sample)[0], getattr(one, name)(sample)[0], atol=1e-3)


def pixels(log_dir, tag):
    events = EventAccumulator(str(log_dir), size_guidance={"images": 0}).Reload()
    (event, *_) = events.Images(tag)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)), dtype=int)


@pytest.mark.parametrize("num_samples", [8, 5, 1], ids=["even", "uneven", "a rank without samples"])
def test_the_pictures_are_those_of_one_process(tmp_path, two_ranks, num_samples):
    passes = two_ranks(explained, tmp_path / "two", num_samples)
    explained(tmp_path / "one", num_samples, ranks=1)
    two, one = (History.load(tmp_path / name / "version_0") for name in ("two", "one"))
    assert passes[0] == passes[1] > 0
    assert two.steps == [0, 1, 3]
    assert (two.images == one.images).all()
    assert (two.labels == one.labels).all()
    for sample in range(num_samples):  # at step 0, before the batches differ
        np.testing.assert_array_equal(two.targets(sample)[0], one.targets(sample)[0])
        np.testing.assert_allclose(two.heatmaps(sample)[0], one.heatmaps(sample)[0], atol=1e-3)
        shown, expected = (pixels(tmp_path / name / "version_0", f"gfi/sample_{sample}") for name in ("two", "one"))
        assert np.abs(shown - expected).max() <= 1


def curves_and_epochs(folder, ranks=2):
    """Fits until a curve says to stop, and returns the curves that other callbacks saw, and the epochs."""
    stopping = EarlyStopping("gfi/removed", stopping_threshold=2.0, mode="min")  # which any probability is below
    left = [(0, 0, 8, 16)] * 5
    callback = quick_callback(num_samples=5, regions={"left": left}, per_sample=True)
    trainer = fit(folder, ToyModule(), callback, stopping, ranks=ranks, max_epochs=5)
    curves = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("gfi/")}
    return curves, trainer.current_epoch


def test_every_rank_can_stop_by_the_curves_of_all_samples(tmp_path, two_ranks):
    (first, epochs), (second, epochs_too) = two_ranks(curves_and_epochs, tmp_path / "two")
    curves_and_epochs(tmp_path / "one", ranks=1)
    two, one = (History.load(tmp_path / name / "version_0") for name in ("two", "one"))
    assert epochs == epochs_too == 1
    assert first == second
    assert {f"gfi/removed/sample_{number}" for number in range(5)} < first.keys()
    for name in two.curves:
        np.testing.assert_allclose(two.curve(name)[0], one.curve(name)[0], atol=1e-3)
        mean = two.curve(name)[-1].mean()
        np.testing.assert_allclose(first[f"gfi/{name}"], mean, rtol=1e-5, err_msg=name)
    assert (two.curve("drift_floor") > 0).any()


class PartlyUsed(ToyModule):
    """Every second batch leaves a part of the parameters without a gradient."""

    def __init__(self):
        super().__init__()
        self.extra = torch.nn.Conv2d(3, 3, 1)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return super().training_step((self.extra(images) if batch_idx % 2 else images, labels), batch_idx)


SETTINGS = {
    "plain": (ToyModule, DDPStrategy, {}),
    "find_unused_parameters": (PartlyUsed, partial(DDPStrategy, find_unused_parameters=True), {}),
    "static graph": (ToyModule, partial(DDPStrategy, static_graph=True), {}),
    "accumulated gradients": (ToyModule, DDPStrategy, {"accumulate_grad_batches": 2}),
    "bf16-mixed": (ToyModule, DDPStrategy, {"precision": "bf16-mixed"}),
}


class Sharded(Counting):
    """FSDP, of the kind that works without a GPU, too."""

    def explaining(self, images):
        Counting.count += 1

    def configure_model(self):
        if self.trainer is not None and not isinstance(self.network.fine, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for part in (self.network.fine, self.network.coarse, self.network):
                fully_shard(part, mesh=mesh)


SETTINGS["FSDP"] = Sharded, partial(ModelParallelStrategy, data_parallel_size=2, tensor_parallel_size=1), {}


def explained_sharded(folder, num_samples):
    Counting.count = 0
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    fit(folder, Sharded(), quick_callback(num_samples=num_samples), strategy=strategy)
    return Counting.count


@pytest.mark.fsdp_on_cpu
def test_a_model_that_is_spread_over_the_ranks(tmp_path, two_ranks):
    passes = two_ranks(explained_sharded, tmp_path / "two", 5)
    explained(tmp_path / "one", 5, ranks=1)
    two, one = (History.load(tmp_path / name / "version_0") for name in ("two", "one"))
    assert passes[0] == passes[1] > 0
    for sample in range(5):
        np.testing.assert_allclose(two.heatmaps(sample)[0], one.heatmaps(sample)[0], atol=1e-3)


def check_harmless(folder, setting):
    module, strategy, options = SETTINGS[setting]

    def make(callbacks):
        return make_trainer(folder, *callbacks, **options, strategy=strategy(), devices=2)

    schedules = {"every_n_steps": 1}, {"every_n_epochs": 1}
    assert_harmless(
        make,
        module,
        partial(Data, augment=True),
        make_callbacks=lambda: [quick_callback(**schedule) for schedule in schedules],
    )


@pytest.mark.parametrize(
    "setting",
    [pytest.param(name, marks=pytest.mark.fsdp_on_cpu if name == "FSDP" else ()) for name in SETTINGS],
)
def test_the_training_is_the_same_with_the_callback(tmp_path, two_ranks, setting):
    two_ranks(check_harmless, tmp_path, setting)


def test_a_forward_that_talks_to_the_other_ranks(tmp_path, two_ranks):
    """Three samples: one rank has nothing new to explain in its second place, and is mistaken elsewhere."""
    passes = two_ranks(explained, tmp_path, 3, True)
    assert passes[0] == passes[1] > 0
    assert History.load(tmp_path / "version_0").steps == [0, 1, 3]


class Faulty(ToyModule):
    """Fails on one rank, in the second epoch unless said otherwise."""

    def __init__(self, place, rank):
        super().__init__()
        self.place, self.rank, self.requests = place, rank, 0

    def fails(self, place, epoch=1):
        return (place, RANK, self.trainer.current_epoch) == (self.place, self.rank, epoch)

    def forward(self, images):
        if torch.is_grad_enabled() and not self.training:
            if self.fails("forward"):
                raise RuntimeError("cat on the keyboard")
            if self.fails("memory") and len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.fails("transfer") and len(batch[0]) == 8:
            raise ValueError("no way there")
        return batch

    def train_dataloader(self):
        return loaders()["train_dataloaders"]

    def val_dataloader(self):
        self.requests += 1
        if self.fails("loader", epoch=0) and self.requests == 1:
            raise OSError("server is down")
        return DataLoader(Unreadable(self), 4, collate_fn=self.collate)

    def collate(self, items):
        batch = torch.utils.data.default_collate(items)
        return [*batch, lambda: None] if self.place == "pickle" and self.trainer.current_epoch == 0 else batch


class Unreadable(Pictures):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def __getitem__(self, index):
        if self.module.trainer.state.stage == "train" and self.module.fails("data set", epoch=0):
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def fit_with_fault(folder, place, rank, on_error):
    module = Faulty(place, rank)
    if place == "drawing" and rank == RANK:
        original = callback_module.draw_sample

        def draw(*args):
            if module.fails("drawing"):
                raise ValueError("no pencil")
            return original(*args)

        callback_module.draw_sample = draw
    callback, error = quick_callback(num_samples=8, on_error=on_error), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(folder, module, callback, data={"train_dataloaders": None}, max_epochs=3, check_val_every_n_epoch=3)
        except (Exception, SystemExit) as raised:
            error = raised
    if place == "drawing" and rank == RANK:
        callback_module.draw_sample = original
    said = [str(warning.message) for warning in caught if "GFICallback" in str(warning.message)]
    hooks = sum(len(part._forward_hooks) for part in module.modules())
    return said, hooks, None if error is None else f"{type(error).__name__}: {error}"


EVERY = [0, 1, 3, 5]
# where, on which rank: the steps with a picture, and what the first rank says of it
FAULTS = {
    ("forward", 0): ([0, 1, 5], "could not explain the model, .*RuntimeError: cat on the keyboard"),
    ("forward", 1): ([0, 1, 5], "could not explain the model, .*RuntimeError: cat on the keyboard"),
    ("memory", 1): (EVERY, "ran out of memory with 4 images at once, and goes on with 2"),
    ("transfer", 1): ([0, 1, 5], "could not bring the samples to the model, .*no way there"),
    ("loader", 1): ([3, 5], "could not get the validation loader, .*server is down"),
    ("data set", 0): ([3, 5], "could not read its samples, .*image file is truncated"),
    ("data set", 1): (EVERY, None),  # it is not read there
    ("pickle", 0): ([3, 5], "could not send its samples to the other ranks, .*pickle.*collate function"),
    ("drawing", 0): (EVERY, "could not draw its pictures, .*no pencil"),
}


@pytest.mark.parametrize(("place", "rank"), FAULTS, ids=str)
def test_a_failure_on_one_rank_is_one_warning_and_nobody_waits(tmp_path, two_ranks, place, rank):
    steps, message = FAULTS[place, rank]
    (said, *first), (said_elsewhere, *second) = two_ranks(fit_with_fault, tmp_path, place, rank, "warn")
    assert first == second == [0, None]
    assert said_elsewhere == []
    assert len(said) == (message is not None)
    assert all(re.search(message, text, re.DOTALL) for text in said)
    events = EventAccumulator(str(tmp_path / "version_0"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("gfi/sample_7")] == steps


@pytest.mark.parametrize(
    ("place", "rank", "errors"),
    [
        ("forward", 0, ["RuntimeError: cat", "FaultElsewhere: rank 0 could not explain the model: RuntimeError: cat"]),
        ("forward", 1, ["FaultElsewhere: rank 1 could not explain the model: RuntimeError: cat", "RuntimeError: cat"]),
        ("drawing", 0, ["ValueError: no pencil", "FaultElsewhere: rank 0 could not draw its pictures: ValueError"]),
    ],
)
def test_on_error_raise_ends_the_run_on_every_rank(tmp_path, two_ranks, place, rank, errors):
    results = two_ranks(fit_with_fault, tmp_path, place, rank, "raise")
    for (said, hooks, error), expected in zip(results, errors, strict=True):
        assert error.startswith(expected)
        assert (said, hooks) == ([], 0)


def misused(folder, options):
    try:
        fit(folder, ToyModule(), quick_callback(on_error="warn", **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer": "nothing"}, "UsageError: layer='nothing' does not exist"), ({"samples": [99]}, "UsageError: samples=")],
)
def test_misuse_ends_the_run_on_every_rank(tmp_path, two_ranks, options, message):
    assert all(error.startswith(message) for error in two_ranks(misused, tmp_path, options))
