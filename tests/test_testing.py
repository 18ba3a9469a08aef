"""assert_harmless is judged itself: it must find every harm that is planted."""

import os
import random
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gfi_lightning.testing import assert_harmless, differences, record_fit
from tests.training.modules import ToyModule, loaders, make_trainer, quick_callback


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loaders()["train_dataloaders"]

    def val_dataloader(self):
        return loaders()["val_dataloaders"]


class FrozenPart(ToyModule):
    """Keeps a part frozen and in eval mode, as fine-tuning does."""

    def __init__(self):
        super().__init__()
        self.network.coarse.eval().requires_grad_(False)


class Harm(L.Callback):
    """Does something to the run, once, after the third batch."""

    def __init__(self, deed):
        self.deed = deed

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 0 and batch_idx == 2:
            self.deed(self, trainer, pl_module)


class HarmedCheckpoint(L.Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["extra"] = 1


class HarmedState(L.Callback):
    def state_dict(self):
        return {"extra": 1}


class Stopped(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


class Failed(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        raise RuntimeError("planted")


def nudge(callback, trainer, module):
    with torch.no_grad():
        module.network.head[-1].bias[0] += 1e-7


def set_option(callback, trainer, module):
    trainer.optimizers[0].param_groups[0]["foreach"] = False  # gives the same numbers


def backward(callback, trainer, module):
    F.cross_entropy(module(torch.ones(2, 3, 16, 16)), torch.tensor([0, 1])).backward()


def leave_a_hook(callback, trainer, module):
    module.network.pool.register_forward_hook(lambda *_: None)


def leave_a_gradient_hook(callback, trainer, module):
    module.network.head[-1].bias.register_hook(lambda _: None)


def thaw(callback, trainer, module):
    module.network.coarse[0].weight.requires_grad_(True)


def shift_buffer(callback, trainer, module):
    module.network.coarse[1].running_mean[1] += 0.5


def set_rate(callback, trainer, module):
    trainer.optimizers[0].param_groups[0]["lr"] *= 0.5


def change_momentum(callback, trainer, module):
    trainer.optimizers[0].state[module.network.head[-1].bias]["exp_avg"][0] += 1


PLANTED = {
    "torch's random numbers": (lambda *_: torch.rand(1), ["random stream torch: differs, first at batch 2"]),
    "numpy's random numbers": (lambda *_: np.random.rand(), ["random stream numpy: differs, first at batch 2"]),
    "python's random numbers": (lambda *_: random.random(), ["random stream python: differs, first at batch 2"]),
    "a weight": (nudge, ["weight network.head.3.bias: max abs difference", "first at batch 2"]),
    "a mode": (lambda _, __, m: m.network.coarse[1].train(), ["training mode network.coarse.1", "first at batch 2"]),
    "backward": (backward, ["gradient network.fine.0.weight", "first at batch 2", "weight network.fine.0.weight"]),
    "a buffer": (shift_buffer, ["buffer network.coarse.1.running_mean: max abs difference 0.5, first at batch 2"]),
    "the learning rate": (
        set_rate,
        [
            "learning rate of optimizer 0, group 0: 0.01 without the callback, 0.005 with it, first at batch 2",
            "weight network.fine.0.weight",
        ],
    ),
    "an optimizer's option": (set_option, ["optimizer 0.param_groups.0.foreach: None without", "at batch 2"]),
    "an optimizer's state": (change_momentum, ["optimizer 0.state.", "exp_avg: max abs difference", "at batch 2"]),
    "a metric more": (
        lambda callback, *_: callback.log("extra", 1.0),
        ["logged metric extra at step 2: only with it", "callback_metrics.extra: only with it"],
    ),
    "another metric": (
        lambda callback, *_: callback.log("train_loss", 9.0),
        ["logged metric train_loss at step 2: [", "without the callback, [9.0] with it"],
    ),
    "a metric past Lightning": (
        lambda _, trainer, __: trainer.logger.log_metrics({"own": 1.0}, 7),
        ["logged metric own at step 7: only with it"],
    ),
    "a hook": (leave_a_hook, ["hooks network.pool: 0 without the callback, 1 with it, first at batch 2"]),
    "a tensor's hook": (leave_a_gradient_hook, ["hooks network.head.3.bias: 0 without", "first at batch 2"]),
    "requires_grad": (thaw, ["requires_grad network.coarse.0.weight: False without the callback, True with it"]),
    "an attribute": (
        lambda _, __, module: setattr(module.network, "seen", [1, 2]),
        ["attribute network.seen.0: only with it"],
    ),
}


@pytest.mark.parametrize("deed", PLANTED)
def test_planted_harm_is_found_and_named(tmp_path, deed):
    harm, parts = PLANTED[deed]
    make = partial(make_trainer, tmp_path, accumulate_grad_batches=2 if deed == "backward" else 1)
    with pytest.raises(AssertionError) as raised:
        assert_harmless(lambda callbacks: make(*callbacks), FrozenPart, Data, make_callbacks=lambda: [Harm(harm)])
    assert str(raised.value).startswith("The training is not the same with the callback.")
    for part in parts:
        assert part in str(raised.value)


OTHER_HOOKS = {
    HarmedCheckpoint: "checkpoint entry extra: differs, first at checkpoint 0",
    HarmedState: "checkpoint entry callbacks.HarmedState.extra: differs, first at checkpoint 0",
    Stopped: "batch 4: only without the callback",
    Failed: "error: None without the callback, RuntimeError('planted') with it",
}


@pytest.mark.parametrize("callback", OTHER_HOOKS)
def test_harm_in_other_hooks_is_found_and_named(tmp_path, callback):
    with pytest.raises(AssertionError) as raised:
        assert_harmless(
            lambda: make_trainer(tmp_path, enable_checkpointing=True),
            FrozenPart,
            Data,
            make_callbacks=lambda: [callback()],
        )
    assert OTHER_HOOKS[callback] in str(raised.value)
    assert isinstance(raised.value.__cause__, RuntimeError if callback is Failed else type(None))


def test_a_long_list_is_shortened_by_kind_and_not_in_differences(tmp_path):
    with pytest.raises(AssertionError, match="and 7 more of 'weight'"):
        assert_harmless(
            lambda: make_trainer(tmp_path), ToyModule, Data, make_callbacks=lambda: [Harm(lambda *_: torch.rand(1))]
        )
    records = []
    for callbacks in ([], [Harm(lambda *_: torch.rand(1))]):
        L.seed_everything(0, verbose=False)
        records.append(record_fit(make_trainer(tmp_path, *callbacks), ToyModule(), Data()))
    found = differences(*records)
    assert sum(line.startswith("weight ") for line in found) == 10
    assert differences(records[0], records[0]) == []


class Unreproducible(ToyModule):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + os.urandom(1)[0])


def test_a_training_that_differs_from_itself_is_told_as_such(tmp_path):
    with pytest.raises(AssertionError) as raised:
        assert_harmless(lambda: make_trainer(tmp_path), Unreproducible, Data, make_callbacks=lambda: [quick_callback()])
    assert "not reproducible by itself" in str(raised.value)
    assert "gradient network.fine.0.weight: " in str(raised.value)
    assert "first at batch" in str(raised.value)


class Clock(ToyModule):
    def on_train_start(self):
        self.started = os.urandom(8).hex()  # what nothing depends on


def test_an_attribute_that_differs_between_any_two_runs_is_no_harm(tmp_path):
    assert_harmless(lambda: make_trainer(tmp_path), Clock, Data, make_callbacks=lambda: [quick_callback()])
    harmful = [quick_callback(), Harm(nudge)]
    with pytest.raises(AssertionError, match=r"weight network\.head\.3\.bias") as raised:
        assert_harmless(lambda: make_trainer(tmp_path), Clock, Data, make_callbacks=lambda: list(harmful))
    assert "started" not in str(raised.value)


def test_that_nothing_was_explained_is_told(tmp_path):
    with pytest.raises(AssertionError, match="Nothing was explained"):
        assert_harmless(lambda: make_trainer(tmp_path), ToyModule, Data, make_callbacks=lambda: [L.Callback()])


def test_an_error_of_the_training_itself_is_raised_as_it_is(tmp_path):
    class Broken(ToyModule):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match="of the user"):
        assert_harmless(lambda: make_trainer(tmp_path), Broken, Data)


def optional_callbacks(folder, callbacks=()):
    return make_trainer(folder, *callbacks, enable_checkpointing=True)


@pytest.mark.parametrize("form", ["of no arguments", "of the callbacks", "with a default"])
def test_forms_of_make_trainer(tmp_path, form):
    trainers = []

    def keep(trainer):
        trainers.append(trainer)
        return trainer

    make = {
        "of no arguments": lambda: keep(make_trainer(tmp_path, enable_checkpointing=True)),
        "of the callbacks": lambda callbacks: keep(make_trainer(tmp_path, *callbacks, enable_checkpointing=True)),
        "with a default": lambda callbacks=(): keep(optional_callbacks(tmp_path, callbacks)),
    }[form]
    assert_harmless(make, ToyModule, Data)
    names = [[type(one).__name__ for one in trainer.callbacks] for trainer in trainers]
    assert len(names) == 2
    assert names[0][-2:] == ["_Watcher", "ModelCheckpoint"]
    ours = [name for name in names[1] if name == "GFICallback"]
    assert ours
    assert names[1] == names[0][:-2] + ours + names[0][-2:]


@pytest.mark.parametrize("seeded", [True, False])
def test_the_process_is_left_as_it_was(tmp_path, monkeypatch, seeded):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    if seeded:
        L.seed_everything(7, verbose=False)
    environment, torch_state = dict(os.environ), torch.get_rng_state()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    assert_harmless(lambda: make_trainer(tmp_path), ToyModule, Data, make_callbacks=lambda: [quick_callback()])
    with pytest.raises(AssertionError):
        assert_harmless(lambda: make_trainer(tmp_path), Unreproducible, Data)
    assert dict(os.environ) == environment
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2] == numpy_state[2]
    assert random.getstate() == python_state


def test_two_runs_in_one_folder_and_in_two_are_compared_alike(tmp_path):
    """Checkpoints hold paths, whose versions and folders differ between any two runs."""
    folders = iter(["first", "second"])

    def make():
        saving = L.pytorch.callbacks.ModelCheckpoint(
            tmp_path / next(folders), monitor="val_loss", save_top_k=2, save_last=True
        )
        callbacks = [saving, L.pytorch.callbacks.ModelCheckpoint(tmp_path)]
        return L.Trainer(**QUIET, logger=False, default_root_dir=tmp_path, callbacks=callbacks)

    assert_harmless(make, ToyModule, Data)


def test_without_loggers_the_runs_are_still_compared(tmp_path):
    with pytest.raises(AssertionError, match=r"weight network\.head\.3\.bias"):
        assert_harmless(
            lambda: L.Trainer(**QUIET, logger=False, default_root_dir=tmp_path, enable_checkpointing=False),
            ToyModule,
            Data,
            make_callbacks=lambda: [Harm(nudge)],
        )


QUIET = {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False}
