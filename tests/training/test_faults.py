"""Our faults, injected one by one at every boundary, become one warning each, and the next run explains again."""

import errno
import re
import signal
import warnings

import lightning as L
import numpy as np
import pytest
import torch

from gfi_lightning import History
from gfi_lightning.recording import history, pictures
from tests.training.modules import (
    Pictures,
    ToyModule,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
    scalar_steps,
)

pytestmark = pytest.mark.filterwarnings("default:.*GFICallback.*")


def our_warnings(caught):
    return [str(warning.message) for warning in caught if "GFICallback" in str(warning.message)]


class Fault:
    """Something that fails in the second epoch, or before the first step."""

    def __init__(self, error, epoch=1):
        self.error, self.epoch, self.module = error, epoch, None
        Fault.hits = 0  # not of this object: what a forward pass changes in it is put back

    def strike(self):
        if self.module.trainer.current_epoch == self.epoch:
            Fault.hits += 1
            raise self.error


class FaultyModule(ToyModule):
    """Lets a fault strike in the forward passes of an explanation."""

    def __init__(self, fault=None):
        super().__init__()
        self.fault = fault

    def forward(self, images):
        if self.fault is not None and not self.training and torch.is_grad_enabled():
            self.fault.strike()
        return super().forward(images)


def in_forward(fault, monkeypatch):
    return {"module": FaultyModule(fault)}


def in_hook_registration(fault, monkeypatch):
    module = FaultyModule()

    def refuse(*args, **kwargs):
        fault.strike()
        return torch.nn.Module.register_forward_hook(module.network.coarse, *args, **kwargs)

    monkeypatch.setattr(module.network.coarse, "register_forward_hook", refuse)
    return {"module": module}


def in_data_set(fault, monkeypatch):
    class Broken(Pictures):
        def __getitem__(self, index):
            if index == 12 and fault.module.trainer.state.stage == "train":  # not in a validation step
                fault.strike()
            return super().__getitem__(index)

    return {"val": Broken()}


def in_transfer(fault, monkeypatch):
    class OnDevice(FaultyModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if len(batch[0]) == 3:  # ours
                fault.strike()
            return batch

    return {"module": OnDevice()}


def in_drawing(fault, monkeypatch):
    compose = pictures.compose

    def fail(*args, **kwargs):
        fault.strike()
        return compose(*args, **kwargs)

    monkeypatch.setattr(pictures, "compose", fail)
    return {}


def on_disk(fault, monkeypatch):
    fsync = history.os.fsync

    def fail(*args):
        fault.strike()
        return fsync(*args)

    monkeypatch.setattr(history.os, "fsync", fail)
    return {}


def in_pictures(fault, monkeypatch):
    def sabotage(trainer):
        replace_by_faulty(trainer.logger.experiment._get_file_writer(), "add_summary", "sample_0", fault, monkeypatch)

    return {"sabotage": sabotage}


def in_curves(fault, monkeypatch):
    return {"sabotage": lambda trainer: replace_by_faulty(trainer.logger, "log_metrics", "gfi/", fault, monkeypatch)}


def replace_by_faulty(owner, name, of_ours, fault, monkeypatch):
    original = getattr(owner, name)

    def fail(*args, **kwargs):
        if of_ours in str((args, kwargs)):  # Lightning's own metrics go the same way
            fault.strike()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail)


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
EVERYTHING = {"pictures", "curves", "maps"}
# where, what, the epoch, what is lost by it, what the user reads
FAULTS = {
    "forward": (in_forward, RuntimeError("cat on keyboard"), 1, EVERYTHING, "explain the model.*cat.*Give forward="),
    "forward, at once": (in_forward, RuntimeError("cat"), 0, EVERYTHING, "explain the model.*Give forward="),
    "CUDA memory": (in_forward, CUDA, 1, EVERYTHING, "explain the model.*CUDA out of memory.*smaller batch_size"),
    "memory": (in_forward, CPU, 1, EVERYTHING, "explain the model.*can't allocate memory.*smaller batch_size"),
    "hook": (in_hook_registration, RuntimeError("no hooks"), 1, EVERYTHING, "explain the model.*no hooks.*layer="),
    "data set": (in_data_set, OSError("image file is truncated"), 0, EVERYTHING, "read its samples.*Give samples="),
    "transfer": (in_transfer, ValueError("no such device"), 1, EVERYTHING, "bring the samples.*transfer hooks"),
    "drawing": (in_drawing, MemoryError(), 1, {"pictures"}, "draw its pictures.*MemoryError.*maps and curves are kept"),
    "disk full": (on_disk, FULL, 1, {"maps"}, "write its maps to .*No space left.*Make room there"),
    "disk read-only": (on_disk, READ_ONLY, 1, {"maps"}, "write its maps to .*Read-only.*make it writable"),
    "pictures": (
        in_pictures,
        TypeError("no"),
        1,
        {"pictures"},
        "log pictures to TensorBoardLogger.*kept",
    ),
    "curves": (in_curves, OSError("gone"), 1, {"curves"}, "log curves to TensorBoardLogger.*All else"),
}


def state_of(module):
    return {name: value.tolist() for name, value in module.state_dict().items()}


def hooks_of(module):
    return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]


def fit_with(folder, monkeypatch, name, before=None, **options):
    inject, error, epoch, _, _ = FAULTS[name]
    fault = Fault(error, epoch)
    injected = inject(fault, monkeypatch)
    torch.manual_seed(0)
    module = fault.module = injected.get("module") or FaultyModule()
    callback = quick_callback(**{"on_error": "warn"} | options)
    callbacks = [callback] if before is None else [before, callback]
    trainer = make_trainer(folder, *callbacks, max_epochs=4, num_sanity_val_steps=0)
    injected.get("sabotage", lambda trainer: None)(trainer)
    trainer.fit(module, **loaders(val=injected.get("val")))
    return trainer, module


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory):
    torch.manual_seed(0)
    module = FaultyModule()
    trainer = make_trainer(tmp_path_factory.mktemp("plain"), max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(module, **loaders())
    return state_of(module)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_becomes_one_warning_and_the_next_run_explains_again(tmp_path, monkeypatch, plain_weights, name):
    *_, epoch, lost, message = FAULTS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, module = fit_with(tmp_path, monkeypatch, name)
    assert Fault.hits > 0
    assert trainer.current_epoch == 4
    (said,) = our_warnings(caught)
    assert re.search(f"could not {message}", said.replace("\n", " ")), said
    assert "on_error='raise'" in said
    assert "and the run goes on" in said
    assert state_of(module) == plain_weights
    assert hooks_of(module) == [0] * len(hooks_of(module))
    spared, struck = [0, 3, 7, 11, 15], [0, 3] if epoch == 0 else [7]
    # What strikes before the first step and in the first epoch's run has that epoch's place shown by nobody.
    rest = [step for step in spared if step not in struck]
    assert image_steps(trainer) == (rest if "pictures" in lost else spared)
    assert scalar_steps(trainer, "gfi/removed") == (rest if "curves" in lost else spared)
    assert History.load(trainer.log_dir).steps == (rest if "maps" in lost else spared)


@pytest.mark.parametrize("name", FAULTS)
def test_on_error_raise_raises_the_original_error_with_our_context(tmp_path, monkeypatch, name):
    _, error, _, _, message = FAULTS[name]
    with pytest.raises(type(error)) as raised:
        fit_with(tmp_path, monkeypatch, name, on_error="raise")
    assert raised.value is error
    context = " ".join(getattr(error, "__notes__", []))
    assert context.startswith("GFICallback could not ")
    assert re.search(message.split(".*")[0], context)


def test_the_same_fault_with_other_numbers_is_told_once(tmp_path):
    class Counting(ToyModule):
        calls = 0

        def forward(self, images):
            if torch.is_grad_enabled() and not self.training:
                Counting.calls += 1
                raise RuntimeError(f"failed for the {Counting.calls}. time")
            return super().forward(images)

    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"), max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Counting(), **loaders())
    assert Counting.calls == 5  # start, three epochs, end
    assert len(our_warnings(caught)) == 1


class TooLarge(ToyModule):
    """Has memory for so many images at once, and no more."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, images):
        if not self.training and torch.is_grad_enabled() and len(images) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(images)} GiB")
        return super().forward(images)


@pytest.mark.parametrize(("most", "chunk"), [(8, 4), (2, 1)])
def test_out_of_memory_halves_the_chunks_until_it_fits(tmp_path, most, chunk):
    """Stage 2 takes two images for each one, kept and removed."""
    results = []
    for folder, module, options in (("small", TooLarge(most), {}), ("large", ToyModule(), {"chunk_size": chunk})):
        trainer = make_trainer(tmp_path / folder, quick_callback(num_samples=8, **options), max_epochs=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            trainer.fit(module, **loaders())
        results.append((History.load(trainer.log_dir), our_warnings(caught)))
    (halved, (said,)), (expected, nothing) = results
    assert nothing == []
    assert f"ran out of memory with 8 images at once, and goes on with {chunk}. GFICallback(chunk_size={chunk})" in said
    assert halved.steps == expected.steps == [0, 3]
    for sample in range(8):
        np.testing.assert_array_equal(halved.heatmaps(sample), expected.heatmaps(sample))


def test_not_finite_outputs_give_empty_maps_and_one_warning(tmp_path):
    class Diverges(ToyModule):
        def forward(self, images):
            return super().forward(images) * (float("nan") if self.global_step > 4 else 1.0)

    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Diverges(), **loaders())
    (said,) = our_warnings(caught)
    assert "not finite at step 7, for samples [0, 1, 2]: their maps are empty. A lower learning rate" in said
    assert image_steps(trainer) == [0, 3, 7, 11, 15]
    maps = History.load(trainer.log_dir).heatmaps(0)[:, 0]
    assert maps[1].any()
    assert not maps[2:].any()


class Remembers(L.Callback):
    """Comes before the callback, and knows how it found the model."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.module = pl_module
        self.before = self.state()

    def state(self):
        modes = [part.training for part in self.module.modules()]
        return modes, state_of(self.module), hooks_of(self.module), torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["forward", "hook", "transfer", "drawing", "disk full", "pictures", "curves"])
def test_an_interrupt_ends_the_run_and_leaves_the_model_as_it_was(tmp_path, monkeypatch, name):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setitem(FAULTS, name, (FAULTS[name][0], KeyboardInterrupt(), *FAULTS[name][2:]))
    watch = Remembers()
    try:
        with pytest.raises(SystemExit):
            fit_with(tmp_path, monkeypatch, name, before=watch)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has switched it off
    assert watch.module.trainer.interrupted
    assert watch.module.trainer.current_epoch == 1
    assert watch.state() == watch.before
    assert all(parameter.requires_grad for parameter in watch.module.parameters())
