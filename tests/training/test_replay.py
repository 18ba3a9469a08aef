"""A training that is over is explained from its checkpoints, as if the callback had been there."""

import argparse
import logging
import re
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from gfi_lightning import History, UsageError, replay
from gfi_lightning.recording.film import film_strip
from gfi_lightning.training import internals
from tests.training.modules import (
    ON_EXCEPTION,
    Pictures,
    ToyModule,
    TwoOptimizers,
    loaders,
    make_trainer,
    quick_callback,
)

RUN = "version_0"
EVERY = {"save_top_k": -1, "filename": "{step}"}


def on_the_cpu(**options):
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **({"devices": 1} | options))


def trained(folder, *callbacks, module=None, checkpoints=None, ckpt_path=None, after=None, **options):
    """A run in <folder>/version_0, with its checkpoints where Lightning puts them, and perhaps one of afterwards."""
    L.seed_everything(0, verbose=False)
    writes = [] if checkpoints is None else [ModelCheckpoint(**(EVERY | checkpoints))]
    trainer = make_trainer(folder, *callbacks, *writes, **({"enable_checkpointing": bool(writes)} | options))
    trainer.fit(ToyModule() if module is None else module, **loaders(), ckpt_path=ckpt_path)
    log_dir = Path(trainer.log_dir)
    if after is not None:
        trainer.save_checkpoint(log_dir / f"checkpoints/{after}.ckpt")
    return log_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two checkpoints of a run without the callback, at steps 3 and 7."""
    return trained(tmp_path_factory.mktemp("run"), checkpoints={"every_n_train_steps": 4})


@pytest.fixture
def copied(run, tmp_path):
    """The same, to be tampered with."""
    for path in (run / "checkpoints").iterdir():
        (tmp_path / RUN / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / RUN / "checkpoints" / path.name).write_bytes(path.read_bytes())
    return tmp_path / RUN


def replayed(run, model=None, **options):
    options = {"dataloaders": loaders()["val_dataloaders"], "trainer": on_the_cpu()} | options
    options = {"callback": quick_callback(num_samples=1)} | options
    return replay(run / "checkpoints", ToyModule() if model is None else model, **options)


def check_like_live(live, again, both):
    """Bit for bit, at the places in both that are the same step."""
    assert (again.images == live.images).all()
    assert (again.labels == live.labels).all()
    assert again.class_names == live.class_names == Pictures.classes
    for then, now in both:
        assert (live.steps[then], live.epochs[then]) == (again.steps[now], again.epochs[now])
        assert (again.predicted[now] == live.predicted[then]).all()
        for sample in range(len(live.labels)):
            for name in ("heatmaps", "foregrounds", "targets", "scores"):
                one, other = (getattr(history, name)(sample)[at] for history, at in ((again, now), (live, then)))
                shared = min(len(one), len(other))  # without places for targets that there are at other steps
                np.testing.assert_array_equal(one[:shared], other[:shared])


def test_steps_maps_and_curves_are_those_of_a_live_run(tmp_path, caplog):
    """Whenever the checkpoints were written: after each step, after the validation, at the epoch's end and later."""
    writers = [
        ModelCheckpoint(filename="validated"),
        ModelCheckpoint(filename="whole", save_on_train_epoch_end=True, mode="max"),
    ]
    callback = quick_callback(samples=[7, 3], every_n_steps=1)
    log_dir = trained(tmp_path, callback, *writers, checkpoints={"every_n_train_steps": 1}, after="later", max_epochs=1)
    with caplog.at_level(logging.INFO):
        live, again = History.load(log_dir), replayed(log_dir, callback=quick_callback())  # whose samples the run tells
    assert live.steps == again.steps == [0, 1, 2, 3]
    check_like_live(
        live, again, [(at, at) for at in (1, 2, 3)]
    )  # 0 is the untrained model's, and then the first step's
    (line,) = [one for one in caplog.messages if "at the same step" in one]
    assert line.endswith(" step=4.ckpt, validated.ckpt, whole.ckpt.")
    for name in ("preserved", "removed", "entropy", "area"):
        np.testing.assert_array_equal(again.curve(name)[1:], live.curve(name)[1:])
    for name in ("drift", "top_fifth_iou"):  # since the run before
        np.testing.assert_array_equal(again.curve(name)[2:], live.curve(name)[2:])


def test_where_gradients_are_accumulated(tmp_path):
    callback = quick_callback(num_samples=1, schedule=lambda steps: steps > 1)
    log_dir = trained(tmp_path, callback, checkpoints={"every_n_train_steps": 1}, accumulate_grad_batches=2)
    live, again = History.load(log_dir), replayed(log_dir)
    assert live.steps == again.steps == [0, 1, 2, 3]
    assert again.epochs == [0, 0, 1, 1]
    check_like_live(live, again, [(at, at) for at in (1, 2, 3)])


def test_with_two_optimizers(tmp_path):
    log_dir = trained(tmp_path, quick_callback(num_samples=1), module=TwoOptimizers(), checkpoints={})
    live, again = History.load(log_dir), replayed(log_dir, TwoOptimizers())
    assert again.steps == [3, 7]
    check_like_live(live, again, [(1, 0), (2, 1)])


class Spy(L.Callback):
    """Writes a checkpoint in every hook, and knows where a live callback would have shown the weights last."""

    def __init__(self, folder):
        self.folder, self.last, self.written = folder, (0, 0), []

    def write(self, trainer, where):
        path = self.folder / f"{len(self.written)}_{where}.ckpt"
        trainer.save_checkpoint(path)
        self.written.append((path, self.last))

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed:  # else it would have shown what is untrained
            self.write(trainer, "batch_start")

    def on_train_batch_end(self, trainer, *_):
        if internals.optimizer_stepped(trainer):
            self.last = internals.batches_that_stepped(trainer), trainer.current_epoch
        self.write(trainer, "batch_end")

    def on_validation_end(self, trainer, *_):
        self.write(trainer, "validation_end")

    def on_train_epoch_end(self, trainer, *_):
        self.write(trainer, "epoch_end")

    def on_train_end(self, trainer, *_):
        self.write(trainer, "train_end")

    def on_exception(self, trainer, *_):
        self.write(trainer, "exception")


class Breaks(ToyModule):
    """In the middle of a batch of its second epoch."""

    def training_step(self, batch, batch_idx):
        if self.trainer.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("power cut")
        return super().training_step(batch, batch_idx)


def check_moments(written):
    for path, expected in written:
        assert internals.moment(torch.load(path, weights_only=True)["loops"]) == expected, path.name


def spied(folder, module, resumed=None, **options):
    spy = Spy(folder / "checkpoints")
    spy.folder.mkdir(parents=True)
    trained(folder, spy, module=module, num_sanity_val_steps=0, ckpt_path=resumed, **options)
    return spy


@pytest.mark.parametrize(
    ("module", "options", "count"),
    [
        (ToyModule, {}, 20),
        (ToyModule, {"val_check_interval": 2}, 22),
        (ToyModule, {"max_epochs": -1, "max_steps": 6}, 15),
        (TwoOptimizers, {"val_check_interval": 1}, 26),
    ],
    ids=str,
)
def test_moment_of_a_checkpoint(tmp_path, module, options, count):
    spy = spied(tmp_path, module(), **options)
    assert len(spy.written) == count
    check_moments(spy.written)


def test_moment_where_gradients_are_accumulated(tmp_path):
    written = spied(tmp_path, ToyModule(), accumulate_grad_batches=3).written
    assert [expected for path, expected in written if "epoch_end" in path.stem] == [(1, 0), (3, 1)]
    # Without those of the second epoch before its first step, whose weights were shown in the first.
    check_moments(written[:10] + written[14:])


def test_moment_in_a_training_that_is_resumed(tmp_path):
    """From a batch's end, an epoch's end, and a crash in the middle of a batch."""
    with pytest.raises(RuntimeError, match="power cut"):
        spied(tmp_path / "first", Breaks())
    for name in ("4_batch_end", "8_epoch_end", "14_exception"):
        path = tmp_path / f"first/checkpoints/{name}.ckpt"
        written = spied(tmp_path / name, ToyModule(), resumed=path, max_epochs=3).written
        assert len(written) > 12
        check_moments([one for one in written if "start" not in one[0].stem])  # where it does not know of the first run


def said(caught, pattern=""):
    return [str(one.message) for one in caught if re.search("is skipped" + pattern, str(one.message))]


class WithHyperparameters(ToyModule):
    def __init__(self, options):
        super().__init__()
        self.save_hyperparameters()


class Wider(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(3, 4)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(path, **entries):
    torch.save(torch.load(path) | entries, path)


def refuse(path):
    rewrite(path, hyper_parameters={"options": argparse.Namespace(width=3)})


def exchange_weights(path):
    rewrite(path, state_dict=Wider().state_dict())


BAD = {
    "truncated": (truncate, "it is damaged, or was not written to its end"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "it is damaged, or was not written to its end"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("hello: world\n" * 9), "it is no checkpoint, or a damaged one.$"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "it is no checkpoint, or a damaged one.$"),
    "no loops": (lambda path: rewrite(path, loops={}), "it does not say, in its loops, of which step"),
    "loops of nothing": (lambda path: rewrite(path, loops=None), "it does not say, in its loops, of which step"),
    "foreign": (lambda path: torch.save({"state_dict": {}}, path), "it was not written by a Lightning Trainer"),
    "list": (lambda path: torch.save([1, 2], path), "it was not written by a Lightning Trainer"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "it is a folder.*consolidate_checkpoint"),
    "refused": (refuse, "it holds argparse.Namespace, .* give weights_only=False"),
    "other": (exchange_weights, "it does not fit the model .*Missing key"),
}


def test_what_cannot_be_read_is_skipped_with_one_warning_each(copied):
    for name, (damage, _) in BAD.items():
        path = copied / f"checkpoints/{name}.ckpt"
        path.write_bytes((copied / "checkpoints/step=4.ckpt").read_bytes())
        damage(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert replayed(copied).steps == [3, 7]
    messages = said(caught)
    assert len(messages) == len(BAD)
    for name, (_, reason) in BAD.items():
        (message,) = [one for one in messages if one.startswith(f"{copied}/checkpoints/{name}.ckpt is skipped: ")]
        assert re.search(reason, message)
        assert "\n" not in message
        assert len(message) < 600


def test_weights_only_false_loads_whatever_it_is(copied):
    path = copied / "checkpoints/step=4.ckpt"
    refuse(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = replay(
            path, ToyModule(), dataloaders=loaders()["val_dataloaders"], callback=quick_callback(), weights_only=False
        )
    assert history.steps == [3]


def test_in_the_order_of_the_steps_whatever_the_files_are_called(run, tmp_path):
    names = {"step=8": "a", "step=4": "val/loss=0.3"}  # a name with the metric val/loss
    for name, other in names.items():
        path = tmp_path / RUN / f"checkpoints/{other}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((run / f"checkpoints/{name}.ckpt").read_bytes())
    again, straight = replayed(tmp_path / RUN), replayed(run, log_dir=tmp_path / "straight")
    assert again.steps == straight.steps == [3, 7]
    assert again.epochs == straight.epochs == [0, 1]
    np.testing.assert_array_equal(again.heatmaps(0)[:, 0], straight.heatmaps(0)[:, 0])


def test_of_several_at_the_same_step_the_first_that_fits(copied, caplog):
    for name in ("then", "before"):
        (copied / f"checkpoints/{name}.ckpt").write_bytes((copied / "checkpoints/step=8.ckpt").read_bytes())
    exchange_weights(copied / "checkpoints/before.ckpt")
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match=r"before.ckpt is skipped"):
        history = replayed(copied)
    assert history.steps == [3, 7]
    (line,) = [one for one in caplog.messages if "at the same step" in one]
    assert line.endswith(" then.ckpt.")


def test_files_instead_of_a_folder(run, tmp_path):
    files = [run / "checkpoints/step=8.ckpt", str(run / "checkpoints/step=4.ckpt"), tmp_path / "nothing.ckpt"]
    with pytest.warns(UserWarning, match=r"nothing.ckpt is skipped: it does not exist"):
        history = replay(
            files, ToyModule(), None, loaders()["val_dataloaders"], callback=quick_callback(), log_dir=tmp_path
        )
    assert history.steps == History.load(tmp_path).steps == [3, 7]


def test_no_checkpoints(copied, tmp_path):
    for folder, message in [
        (tmp_path / "nothing", "nothing does not exist"),
        (tmp_path / "bare", r"bare holds no checkpoints \(\*\.ckpt\)"),
        (tmp_path / "both", r"both holds the checkpoints of several runs: give one of .*version_0.*version_1"),
    ]:
        (tmp_path / "bare").mkdir(exist_ok=True)
        for version in ("version_0", "version_1"):
            (tmp_path / "both" / version / "checkpoints").mkdir(parents=True, exist_ok=True)
            (tmp_path / "both" / version / "checkpoints/a.ckpt").touch()
        with pytest.raises(UsageError, match=message):
            replay(folder, ToyModule())
    for path in (copied / "checkpoints").iterdir():
        path.write_bytes(b"")
    nothing = pytest.raises(UsageError, match="checkpoints holds no checkpoint that can be read: it is empty")
    with pytest.warns(UserWarning, match="is skipped: it is empty") as caught, nothing:
        replayed(copied)
    assert len(said(caught)) == 2
    assert {path.name for path in copied.iterdir()} == {"checkpoints"}  # nothing was begun


def test_no_checkpoint_of_this_model(run, tmp_path):
    none = pytest.raises(UsageError, match=r"None of 2 checkpoints could be loaded into the model: .*Missing key")
    with pytest.warns(UserWarning, match="it does not fit the model") as caught, none:
        replayed(run, Wider(), log_dir=tmp_path)
    assert len(said(caught)) == 2


class NotAgain(ToyModule):
    """Its steps and hooks belong to the training."""

    def fails(self, *_, **__):
        raise AssertionError("the user's hook was run")

    validation_step = on_validation_start = on_validation_epoch_start = on_validation_batch_start = fails
    on_validation_batch_end = on_validation_epoch_end = on_validation_end = on_validation_model_eval = fails
    configure_optimizers = training_step = train_dataloader = fails


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_of_the_run_is_run_logged_or_changed(copied, tmp_path):
    (copied / "hparams.yaml").write_text("width: 3\n")
    (copied / "metrics.csv").write_text("step,loss\n")
    before = files_in(tmp_path)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[ModelCheckpoint(tmp_path / "more", **ON_EXCEPTION)],
        enable_progress_bar=False,
    )
    mine = trainer.callbacks, trainer.loggers
    model = NotAgain()
    replayed(copied, model, trainer=trainer)
    after = files_in(tmp_path)
    assert {name: after.get(name) for name in before} == before
    new = set(after) - set(before)
    assert all(name.startswith((f"{RUN}/gfi/", f"{RUN}/events.out.tfevents.")) for name in new)
    assert (trainer.callbacks, trainer.loggers) == mine
    assert "run" not in vars(trainer.validate_loop)
    events = EventAccumulator(str(copied)).Reload().Tags()
    assert all(tag.startswith("gfi/") for tag in events["scalars"] + events["images"])
    assert {"gfi/preserved", "gfi/drift"} <= set(events["scalars"])
    assert {"gfi/sample_0", "gfi/overview"} <= set(events["images"])
    last = torch.load(copied / "checkpoints/step=8.ckpt")["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())


def test_the_film_of_a_replay(copied):
    history = replayed(copied)
    stored = History.load(copied)
    assert stored.steps == history.steps == [3, 7]
    pixels = film_strip(stored)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 0


class Split(L.LightningDataModule):
    """Makes its sets where it is told to train, as many do; or never."""

    def __init__(self, stage="fit", empty=False):
        super().__init__()
        self.stage = stage
        if empty:
            self.val = None

    def setup(self, stage):
        if stage == self.stage:
            self.val = Pictures()

    def val_dataloader(self):
        return DataLoader(self.val, 4)


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "None"])
def test_validation_set_that_is_made_for_training(run, tmp_path, empty):
    data = {"dataloaders": None, "datamodule": Split(empty=empty)}
    assert replayed(run, log_dir=tmp_path, **data).steps == [3, 7]


class WithoutValidation(ToyModule):
    validation_step = L.LightningModule.validation_step


def test_what_data_is_asked_for(run, tmp_path):
    missing = {"dataloaders": None, "datamodule": Split("never"), "log_dir": tmp_path}
    with pytest.raises(
        UsageError, match=r"validation set cannot be had \(AttributeError: .*val.*\): give dataloaders="
    ):
        replayed(run, **missing)
    with pytest.raises(UsageError, match="There is no validation set to explain: give datamodule="):
        replayed(run, dataloaders=None, log_dir=tmp_path)
    with pytest.raises(UsageError, match="datamodule= is a DataLoader: give loaders as dataloaders="):
        replayed(run, datamodule=loaders()["val_dataloaders"])
    with pytest.raises(UsageError, match="two sources"):
        replayed(run, datamodule=Split())
    with pytest.raises(UsageError, match=r"model= is a .*Linear: give a LightningModule"):
        replayed(run, torch.nn.Linear(3, 4))
    # A ready batch needs no validation set, nor a step to validate.
    batch = Pictures().images[:2], torch.tensor([0, 1])
    module = WithoutValidation()
    history = replayed(run, module, callback=quick_callback(samples=batch), **missing)
    assert history.labels.tolist() == [0, 1]
    assert "validation_step" not in vars(module)


def test_misuse_of_the_callback_is_an_error(run, tmp_path):
    with pytest.raises(UsageError, match="layer='nothing' does not exist"):
        replayed(run, callback=quick_callback(layer="nothing", on_error="warn"), log_dir=tmp_path)


def test_where_explaining_fails_nothing_is_returned(run, tmp_path):
    class Fails(ToyModule):
        def forward(self, images):
            raise RuntimeError("cat on the keyboard")

    with pytest.warns(UserWarning, match="GFICallback could not explain the model, .*cat on the keyboard"):
        assert replayed(run, Fails(), callback=quick_callback(on_error="warn"), log_dir=tmp_path) is None


@pytest.mark.parametrize(
    ("folder", "log_dir"), [("version_3/checkpoints", "version_3"), ("kept", "kept"), ("checkpoints", ".")]
)
def test_history_lies_in_the_log_directory_of_the_run(run, tmp_path, monkeypatch, folder, log_dir):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a.ckpt").write_bytes((run / "checkpoints/step=4.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    callback = quick_callback(num_samples=1)
    replay(folder, ToyModule(), dataloaders=loaders()["val_dataloaders"], callback=callback)  # by the default Trainer
    assert History.load(tmp_path / log_dir).steps == [3]


def test_callbacks_of_the_trainer_and_of_the_model(run, tmp_path):
    class Brings(ToyModule):
        def configure_callbacks(self):
            return [quick_callback(num_samples=1)]

    two = [quick_callback(num_samples=2), quick_callback(num_samples=1, name="other")]
    history = replayed(run, callback=None, trainer=on_the_cpu(callbacks=two), log_dir=tmp_path)
    assert len(history.labels) == len(History.load(tmp_path).labels) == 2
    other = History.load(tmp_path, "other")
    assert other.steps == history.steps == [3, 7]
    assert len(other.labels) == 1
    assert len(replayed(run, Brings(), callback=None, log_dir=tmp_path).labels) == 1


def test_trainer_and_callback_that_have_just_trained(tmp_path):
    callback = quick_callback()
    L.seed_everything(0, verbose=False)
    trainer = make_trainer(tmp_path, callback, ModelCheckpoint(**EVERY), enable_checkpointing=True)
    model = ToyModule()
    trainer.fit(model, **loaders())
    live = History.load(tmp_path / RUN)
    history = replayed(tmp_path / RUN, model, callback=None, trainer=trainer)
    assert (live.steps, history.steps) == ([0, 3, 7], [3, 7])
    assert len(History.run_ids(tmp_path / RUN)) == 2
    assert History.load(tmp_path / RUN, run_id=live.run_id).steps == live.steps
    np.testing.assert_array_equal(history.heatmaps(0)[:, 0], live.heatmaps(0)[1:, 0])


def test_alarm_at_the_first_checkpoint(run, tmp_path):
    everywhere = {"regions": {"all": [(0, 0, 1000, 1000)] * 20}, "alarm": {"all": 0.5}}
    with pytest.warns(UserWarning, match="step 3"):
        replayed(run, callback=quick_callback(**everywhere), log_dir=tmp_path)


class FromTheOtherPackage(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = ToyModule().network

    def forward(self, images):
        return self.network(images)


def test_the_package_pytorch_lightning(run, tmp_path):
    history = replayed(
        run, FromTheOtherPackage(), trainer=None, log_dir=tmp_path, callback=quick_callback(num_samples=1)
    )
    assert history.steps == [3, 7]


def replayed_by(run, log_dir, num_samples, **options):
    """On this rank; what came back, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = replayed(run, callback=quick_callback(num_samples=num_samples), log_dir=log_dir, **options)
    return None if history is None else history.steps, said(caught)


def replayed_by_two(run, log_dir, num_samples):
    return replayed_by(run, log_dir, num_samples, trainer=on_the_cpu(devices=2, strategy="ddp"))


def test_two_ranks_share_the_samples(copied, tmp_path, two_ranks):
    (copied / "checkpoints/empty.ckpt").touch()
    exchange_weights(copied / "checkpoints/step=4.ckpt")
    (first, warned), other = two_ranks(replayed_by_two, copied, tmp_path / "two", 3)
    alone, _ = replayed_by(copied, tmp_path / "one", 3)
    assert first == alone == [7]
    assert other == (None, [])
    assert len(warned) == 2
    assert len(History.run_ids(tmp_path / "two")) == 1
    two, one = (History.load(tmp_path / name) for name in ("two", "one"))
    assert (two.images == one.images).all()
    for sample in range(3):
        np.testing.assert_array_equal(two.targets(sample), one.targets(sample))
        np.testing.assert_allclose(two.heatmaps(sample), one.heatmaps(sample), atol=1e-3)


class Sharded(ToyModule):
    def configure_model(self):
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


def replayed_sharded(run, log_dir):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return replayed_by(run, log_dir, 3, model=Sharded(), trainer=on_the_cpu(devices=2, strategy=strategy))


@pytest.mark.fsdp_on_cpu
def test_a_model_that_is_spread_over_the_ranks(run, tmp_path, two_ranks):
    (first, _), other = two_ranks(replayed_sharded, run, tmp_path / "two")
    replayed_by(run, tmp_path / "one", 3)
    assert (first, other) == ([3, 7], (None, []))
    two, one = (History.load(tmp_path / name) for name in ("two", "one"))
    np.testing.assert_allclose(two.heatmaps(0)[:, 0], one.heatmaps(0)[:, 0], atol=1e-3)
