"""A training with the callback is the training without it, in every kind of setting that Lightning and torch offer."""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from torch._dynamo.utils import counters
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from gfi_lightning.testing import assert_harmless, differences, record_fit
from tests.networks import random_images
from tests.training.modules import ON_EXCEPTION, Pictures, ToyModule, make_trainer, quick_callback
from tests.training.peculiar import (
    GAN,
    CountsReads,
    Data,
    FrozenPart,
    Hooked,
    InstanceNormed,
    Lazy,
    Normed,
    Recomputing,
    Remembering,
    Scheduled,
    Scripted,
    SecondOrder,
    StatefulCollate,
    Stream,
    TiedWeights,
    UsedTwice,
    WithBackbone,
    WithRate,
)

NO_FIRST_LOOK = {"num_sanity_val_steps": 0}


@dataclass
class Setting:
    """One way to train.

    Attributes:
        trainer: options of the Trainer.
        before: gives the callbacks that come before ours in the list.
        after: gives those after it.
        ours: arguments of GFICallback.
        each_epoch: whether a second callback explains after every epoch, beside the one that does so after every step.
        explains: whether anything is explained in it.
        effect: whether the setting had its effect, which otherwise nothing would tell; None: nothing to see.
    """

    trainer: dict[str, Any] = field(default_factory=dict)
    module: Callable[[], Any] = ToyModule
    data: Callable[[], L.LightningDataModule] = Data
    before: Callable[[], list[L.Callback]] = list
    after: Callable[[], list[L.Callback]] = list
    ours: dict[str, Any] = field(default_factory=dict)
    effect: Callable[[L.Trainer], bool] | None = None
    explains: bool = True
    each_epoch: bool = False


def watching(each_epoch=False, **options):
    schedules = [{"every_n_steps": 1}, *[{"every_n_epochs": 1}] * each_epoch]
    return [quick_callback(**{"num_samples": 1} | schedule | options) for schedule in schedules]


def compare(setting, folder, module=None):
    options = {"default_root_dir": folder, **setting.trainer}
    trainers = []

    def make(callbacks):
        trainers.append(make_trainer(folder, *setting.before(), *callbacks, *setting.after(), **options))
        return trainers[-1]

    make_callbacks = partial(watching, setting.each_epoch, **setting.ours)
    expected = nullcontext() if setting.explains else pytest.raises(AssertionError, match="Nothing was explained")
    with expected:
        assert_harmless(make, module or setting.module, setting.data, make_callbacks=make_callbacks)
    assert setting.effect is None or all(map(setting.effect, trainers))


def learning_rates(trainer):
    return [group["lr"] for group in trainer.optimizers[0].param_groups]


def checkpoints(trainer):
    return sorted(path.name for path in Path(trainer.checkpoint_callback.dirpath).glob("*.ckpt"))


def ready_batch():
    return random_images(3, seed=5, dtype=torch.float32), torch.tensor([0, 1, 2])


READY = {"samples": ready_batch()}


def several_labels():
    images, _ = ready_batch()
    return {"samples": (images, torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 1], [0] * 5])), "score": "sigmoid"}


DEPTHS = {"num_samples": 2, "layers": ["network.fine.0", "network.coarse"]}
SETTINGS = {
    "what each depth sees": Setting(ours=DEPTHS),
    "what each depth sees, the default recipe": Setting(ours={**DEPTHS, "recipe": "default"}),
    "contrast": Setting(ours={"num_samples": 2, "targets": "contrast"}, each_epoch=True),
    "several labels": Setting(ours=several_labels()),
    "precision 32-true": Setting({"precision": "32-true"}, ours={"num_samples": 2}, each_epoch=True),
    "precision bf16-mixed": Setting({"precision": "bf16-mixed"}, each_epoch=True),
    "precision bf16-true": Setting({"precision": "bf16-true"}),
    "precision 64-true": Setting({"precision": "64-true"}),
    "accumulated gradients": Setting({"accumulate_grad_batches": 2}, effect=lambda trainer: trainer.global_step == 4),
    "accumulated gradients, epochs that do not divide": Setting(
        {"accumulate_grad_batches": 3}, effect=lambda trainer: trainer.global_step == 4, each_epoch=True
    ),
    "gradients clipped by norm": Setting({"gradient_clip_val": 0.1}),
    "gradients clipped by value": Setting({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "augmentation, worker processes": Setting(
        data=partial(
            Data, augment=True, val=partial(Pictures, 8, augment=True), num_workers=1, persistent_workers=True
        ),
        each_epoch=True,
    ),
    "frozen part in eval mode": Setting(module=FrozenPart),
    "a module used twice": Setting(module=UsedTwice),
    "tied weights": Setting(module=TiedWeights),
    "GAN, manual optimisation": Setting(
        module=GAN, ours={"forward": lambda module, images: module.discriminator(images)}
    ),
    "scheduler by steps": Setting(
        module=partial(Scheduled, "step"), effect=lambda trainer: 0.08 < learning_rates(trainer)[0] < 0.1
    ),
    "scheduler by epochs": Setting(
        module=partial(Scheduled, "epoch"), effect=lambda trainer: learning_rates(trainer) == [0.0025], each_epoch=True
    ),
    "scheduler by a plateau": Setting(
        {"max_epochs": 3},
        partial(Scheduled, "plateau"),
        effect=lambda trainer: learning_rates(trainer)[0] < 1e-3,
        each_epoch=True,
    ),
    "early stopping": Setting(
        {"max_epochs": 4},
        after=lambda: [EarlyStopping("val_loss", patience=1, min_delta=10.0)],
        effect=lambda trainer: trainer.current_epoch == 2,
        each_epoch=True,
    ),
    "checkpoints by a metric": Setting(
        {"max_epochs": 3, "enable_checkpointing": True},
        after=lambda: [ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)],
        effect=lambda trainer: len(checkpoints(trainer)) == 3,
        each_epoch=True,
    ),
    "checkpoints by steps": Setting(
        {"enable_checkpointing": True},
        before=lambda: [ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)],
        effect=lambda trainer: checkpoints(trainer) == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"],
    ),
    "stochastic weight averaging before us": Setting(
        {"max_epochs": 3}, before=lambda: [StochasticWeightAveraging(1e-2, swa_epoch_start=1)], each_epoch=True
    ),
    "stochastic weight averaging after us": Setting(
        {"max_epochs": 3}, after=lambda: [StochasticWeightAveraging(1e-2, swa_epoch_start=1)], each_epoch=True
    ),
    "accumulation by schedule": Setting(
        after=lambda: [GradientAccumulationScheduler({0: 1, 1: 2})],
        effect=lambda trainer: trainer.global_step == 6,
        each_epoch=True,
    ),
    "backbone finetuning": Setting(
        {"max_epochs": 3},
        WithBackbone,
        after=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
        effect=lambda trainer: len(learning_rates(trainer)) == 2,
        each_epoch=True,
    ),
    "pruning before us": Setting(before=lambda: [ModelPruning("l1_unstructured", amount=0.5)], each_epoch=True),
    "pruning after us": Setting(after=lambda: [ModelPruning("l1_unstructured", amount=0.5)], each_epoch=True),
    "learning rate monitor": Setting(module=partial(Scheduled, "step"), after=lambda: [LearningRateMonitor("step")]),
    "LBFGS": Setting(module=SecondOrder),
    "learning rate finder": Setting(
        {"max_epochs": 1},
        WithRate,
        partial(Data, batch_size=1),
        after=lambda: [LearningRateFinder(num_training_steps=16, early_stop_threshold=None)],
        effect=lambda trainer: trainer.lightning_module.lr != 1e-2,
        each_epoch=True,
    ),
    "batch size finder": Setting(
        after=lambda: [BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2)],
        effect=lambda trainer: trainer.datamodule.batch_size > 4,
        each_epoch=True,
    ),
    "validation in mid-epoch": Setting({"val_check_interval": 0.5}, each_epoch=True),
    "validation every second epoch": Setting({"check_val_every_n_epoch": 2, **NO_FIRST_LOOK}, each_epoch=True),
    "validation by steps": Setting({"val_check_interval": 3, "check_val_every_n_epoch": None}, each_epoch=True),
    "max_steps in mid-epoch": Setting(
        {"max_steps": 6}, effect=lambda trainer: trainer.global_step == 6, each_epoch=True
    ),
    "no validation": Setting({"limit_val_batches": 0}, each_epoch=True),
    "no validation loader": Setting(data=partial(Data, val=lambda: None), ours=READY),
    "samples as a ready batch": Setting(ours=READY),
    "validation set that counts its reads": Setting(data=partial(Data, val=partial(CountsReads, 8))),
    "a collate function with a state": Setting(data=lambda: Data(collate_fn=StatefulCollate())),
    "validation set that is a stream": Setting(data=partial(Data, val=partial(Stream, 8)), ours=READY),
    "no sanity check": Setting(NO_FIRST_LOOK),
    "fast_dev_run": Setting({"fast_dev_run": 3}, each_epoch=True),
    "overfit_batches": Setting({"overfit_batches": 2}, each_epoch=True),
    "loaders made anew each epoch": Setting({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}, each_epoch=True),
    "barebones": Setting(
        explains=False,
        trainer={"barebones": True, "logger": None, "log_every_n_steps": None}
        | dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    ),
    "no logger": Setting({"logger": False}),
    "deterministic": Setting({"deterministic": True}),
    "detect_anomaly": Setting({"detect_anomaly": True}),
    "activation checkpointing": Setting(module=partial(Recomputing, use_reentrant=False)),
    "activation checkpointing, reentrant": Setting(module=partial(Recomputing, use_reentrant=True)),
    "spectral norm": Setting(module=partial(Normed, parametrizations.spectral_norm)),
    "spectral norm by hooks": Setting(module=partial(Normed, spectral_norm)),
    "weight norm": Setting(module=partial(Normed, parametrizations.weight_norm)),
    "weight norm by hooks": Setting(module=partial(Normed, weight_norm)),
    "a scripted part": Setting(module=Scripted),
    "lazy layers": Setting(module=Lazy),
    "lazy layers, first called in training": Setting(NO_FIRST_LOOK, Lazy),
    "InstanceNorm with running statistics": Setting(module=InstanceNormed, each_epoch=True),
    **{
        f"forward changes: {kind}": Setting(NO_FIRST_LOOK if "first" in kind else {}, partial(Remembering, kind))
        for kind in (
            *("buffer in place", "buffer replaced", "buffer resized", "buffer set for the first time"),
            *("counter", "list", "tensor in place", "tensor replaced", "attribute set for the first time"),
            *("generator", "hidden module", "torchmetric", "logger", "buffer in place, with its graph"),
            *("an object's counter", "array", "nested", "hyperparameters", "deeply hidden module"),
            *("parameter", "parameter in place"),
        )
    },
    **{
        f"user's {kind} hook": Setting(module=partial(Hooked, kind))
        for kind in ("forward", "forward without gradient", "forward pre", "full backward", "parameter", "accumulated")
    },
}


@pytest.fixture(autouse=True)
def global_settings_restored():
    deterministic = torch.are_deterministic_algorithms_enabled()
    environment = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(deterministic)
    if environment is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_training_is_the_same_with_the_callback(tmp_path, name):
    compare(SETTINGS[name], tmp_path)


@pytest.mark.weight_averaging
@pytest.mark.parametrize("place", ["before", "after"])
def test_the_training_is_the_same_with_averaged_weights(tmp_path, place):
    averaging = {place: lambda: [lightning_callbacks.EMAWeightAveraging(decay=0.5)]}
    compare(Setting({"enable_checkpointing": True}, each_epoch=True, **averaging), tmp_path)


GPU_SETTINGS = {
    "16-mixed": {"precision": "16-mixed"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "32-true": {"precision": "32-true"},
    "sync_batchnorm": {"strategy": "ddp", "sync_batchnorm": True},  # on a CPU torch refuses it
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_SETTINGS)
def test_the_training_is_the_same_on_a_gpu(tmp_path, name):
    options = {"accelerator": "gpu", "devices": 1, "deterministic": True, **GPU_SETTINGS[name]}
    compare(Setting(options, ours={"num_samples": 2}, each_epoch=True), tmp_path)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_fsdp_on_a_single_gpu_is_left_alone(tmp_path):
    records = []
    for callbacks in ([], watching(each_epoch=True)):
        L.seed_everything(0, verbose=False)
        options = {"accelerator": "gpu", "devices": 1, "strategy": "fsdp", "deterministic": True}
        records.append(record_fit(make_trainer(tmp_path, *callbacks, **options), ToyModule(), Data()))
    assert differences(*records) == []


def compiled_whole(backend):
    return torch.compile(ToyModule(), backend=backend)


def compiled_by_its_method(backend):
    module = ToyModule()
    module.compile(backend=backend)
    return module


def compiled_part(backend):
    module = ToyModule()
    module.network.coarse = torch.compile(module.network.coarse, backend=backend)
    return module


@pytest.mark.parametrize(
    ("module", "backend"),
    [
        pytest.param(
            compiled_whole,
            "aot_eager",
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.6."),
                reason="torch 2.6 cannot compile Lightning's self.log, with the callback or without",
            ),
        ),
        (compiled_by_its_method, "aot_eager"),
        (compiled_part, "aot_eager"),
        pytest.param(
            compiled_part,
            "inductor",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
        ),
    ],
)
def test_compiled_code_is_the_same_and_is_compiled_no_oftener(tmp_path, module, backend):
    graphs = []

    def fresh():
        graphs.append(counters["stats"]["unique_graphs"])
        torch._dynamo.reset()
        counters.clear()
        return module(backend)

    compare(Setting(ours={"num_samples": 2}, each_epoch=True), tmp_path, fresh)
    _, without, watched, *_ = [*graphs, counters["stats"]["unique_graphs"]]
    assert watched == without > 0


@pytest.mark.parametrize("source", ["written without the callback", "written with it"])
def test_resuming_in_mid_epoch(tmp_path, source):
    """Both runs go on from the third of an epoch's four batches, one of them with the callback."""

    def fit(folder, callbacks, **options):
        L.seed_everything(3, verbose=False)
        saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = make_trainer(tmp_path, *callbacks, saving, enable_checkpointing=True)
        record = record_fit(trainer, ToyModule(), Data(augment=True), **options)
        assert record.error is None
        return record

    first = fit(tmp_path / "without", [])
    first_watched = fit(tmp_path / "with", watching(each_epoch=True))
    folder = tmp_path / ("with" if source == "written with it" else "without")
    resumed = fit(tmp_path / "resumed", [], ckpt_path=tmp_path / "without" / "step=3.ckpt")
    resumed_watched = fit(tmp_path / "resumed, with", watching(each_epoch=True), ckpt_path=folder / "step=3.ckpt")
    assert first_watched.explained > resumed_watched.explained > 1
    assert differences(first, first_watched) == []
    assert differences(resumed, resumed_watched) == []


class Interrupting(ToyModule):
    """Is interrupted in mid-explanation, by the third batch: there, gradients are on in eval mode."""

    def __init__(self, interrupt):
        super().__init__()
        self.interrupt = interrupt

    def forward(self, images):
        result = super().forward(images)
        if torch.is_grad_enabled() and not self.training and self.trainer.fit_loop.epoch_loop.batch_idx == 2:
            self.interrupt()
        return result


class InterruptingCallback(L.Callback):
    """The plain run's: interrupts at the same place."""

    def __init__(self, interrupt):
        self.interrupt = interrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            self.interrupt()


@pytest.fixture
def handlers_restored():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_restored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "KeyboardInterrupt"])
def test_a_signal_in_mid_explanation(tmp_path, number):
    records, sent = [], tmp_path / "sent"  # a variable would be put back

    def interrupt():
        sent.touch()
        os.kill(os.getpid(), number)

    for callbacks in ([InterruptingCallback(interrupt)], watching(each_epoch=True)):
        L.seed_everything(4, verbose=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        saving = ModelCheckpoint(tmp_path / str(len(records)), **ON_EXCEPTION)
        trainer = make_trainer(tmp_path, *callbacks, saving, enable_checkpointing=True)
        record = record_fit(trainer, Interrupting(interrupt), Data())
        assert isinstance(record.error, SystemExit)
        assert trainer.interrupted
        sent.unlink()
        assert list(record.moments)[:3] == ["the start", "batch 0", "batch 1"]
        assert "batch 3" not in record.moments
        assert all(value == 0 for (kind, _), value in record.end.items() if kind == "hooks")
        records.append(record)
    assert records[1].explained >= 1
    assert differences(*records) == []
