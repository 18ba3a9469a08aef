"""A validation step that gives the model other images than its batch holds is noticed, and nothing else is."""

import re
import warnings

import pytest
import torch
from torch import nn

from gfi_lightning.training.steps import StepWatch
from tests.training.modules import Pictures, ToyModule, loaders, make_trainer, quick_callback

WARNING = (
    r"validation_step gives the model other images \(3 × 16 × 16, mean -?\d.*, standard deviation \d.*\) than those in "
    r"its batch \(3 × 16 × 16, mean .*\), which GFICallback explains, so .* or give batch= "
)


class Normalizes(ToyModule):
    """In its steps, where nobody else can know of it."""

    def validation_step(self, batch, batch_idx):
        self.log("val_score", self((batch[0] - 0.5) / 0.25).mean())


class NormalizesInPlace(ToyModule):
    def validation_step(self, batch, batch_idx):
        self.log("val_score", self(batch[0].sub_(0.5)).mean())


class Crops(ToyModule):
    def validation_step(self, batch, batch_idx):
        self.log("val_score", self(batch[0][:, :, 2:-2, 2:-2]).mean())


class LooksTwice(ToyModule):
    """At the images, and at their mirror images."""

    def validation_step(self, batch, batch_idx):
        self.log("val_score", (self(batch[0].flip(3)) + self(batch[0])).mean())


class Rounds(ToyModule):
    def validation_step(self, batch, batch_idx):
        self.log("val_score", self(batch[0].bfloat16().float()).mean())


class UsesAPart(ToyModule):
    def validation_step(self, batch, batch_idx):
        self.log("val_score", self.network(batch[0]).mean())


class Normalized(ToyModule):
    """By its forward."""

    def forward(self, images):
        return super().forward((images - 0.5) / 0.25)


class Fails(ToyModule):
    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            raise ZeroDivisionError


def fit(folder, module, trainer_options=None, **options):
    torch._dynamo.utils.counters.clear()  # of other tests: where something was compiled, nothing is watched
    trainer = make_trainer(folder, quick_callback(**options), **{"max_epochs": 2} | (trainer_options or {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, **loaders())
        finally:
            assert not module._forward_pre_hooks
            assert not module._forward_pre_hooks_with_kwargs
    return [str(one.message) for one in caught if "GFICallback" in str(one.message)]


@pytest.mark.parametrize("kind", [Normalizes, NormalizesInPlace])
def test_other_images_are_said_once(tmp_path, kind):
    (said,) = fit(tmp_path, kind(), on_error="warn")
    assert re.search(WARNING, said)


def test_crops_are_other_images(tmp_path):
    (said,) = fit(tmp_path, Crops(), on_error="warn")
    assert "other images (3 × 12 × 12, " in said


@pytest.mark.parametrize("kind", [ToyModule, LooksTwice, Rounds, UsesAPart, Normalized])
def test_the_same_images_are_not_noticed(tmp_path, kind):
    assert fit(tmp_path, kind()) == []


def test_who_says_what_the_step_does_is_believed(tmp_path):
    assert fit(tmp_path, Normalizes(), batch=lambda batch: ((batch[0] - 0.5) / 0.25, batch[1])) == []
    assert fit(tmp_path, Normalizes(), forward=lambda module, images: module((images - 0.5) / 0.25)) == []
    images = torch.stack([Pictures()[number][0] for number in range(3)])
    assert fit(tmp_path, Normalizes(), samples=((images - 0.5) / 0.25, torch.tensor([0, 1, 2]))) == []


def test_where_something_was_compiled_nothing_is_watched(tmp_path):
    module = Normalizes()
    module.network.coarse = torch.compile(module.network.coarse, backend="eager")
    assert fit(tmp_path, module, on_error="warn") == []


def test_a_step_that_fails_leaves_no_hook(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Fails())


@pytest.mark.parametrize("form", [lambda images: {"x": [images]}, lambda images: (images, 3), lambda images: images])
def test_images_are_found_in_whatever_a_forward_takes(form):
    images, watch, called = torch.rand(4, 3, 8, 8), StepWatch(), nn.Identity()
    watch.begin(called, images)
    called(form(images + 1))
    assert watch.end() is not None
    watch = StepWatch()
    watch.begin(called, images)
    called(form(images.permute(0, 2, 3, 1)))
    assert watch.end() is None
    assert watch.is_over


def test_images_that_are_no_numbers_are_the_same_images():
    images, watch, called = torch.full((4, 3, 8, 8), torch.nan), StepWatch(), nn.Identity()
    watch.begin(called, images)
    called(images.clone())
    assert watch.end() is None
    assert watch.is_over


def test_what_cannot_be_looked_at_is_left_alone():
    images, watch, called = torch.rand(4, 3, 8, 8), StepWatch(), nn.Identity()
    watch.begin(called, images)
    called(torch.empty(0, 3, 8, 8))
    called("text")
    called(images[0])
    assert watch.end() is None
    assert not called._forward_pre_hooks


@pytest.mark.parametrize(("kind", "count"), [(ToyModule, 0), (Normalizes, 1)])
def test_in_each_of_several_processes(tmp_path, two_ranks, kind, count):
    assert [len(said) for said in two_ranks(fit_on_ranks, str(tmp_path), kind)] == [count, 0]


def fit_on_ranks(folder, kind):
    return fit(folder, kind(), {"strategy": "ddp", "devices": 2, "num_sanity_val_steps": 0}, on_error="warn")
