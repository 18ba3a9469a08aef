"""The curves of a run: in every logger, for other callbacks, and the floor below which nothing moves."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from gfi_lightning import GFICallback, GuidedFeatureInversion, History, UsageError
from gfi_lightning.metrics import heatmap_drift
from gfi_lightning.training import share
from gfi_lightning.training.share import nudged
from tests.training.modules import (
    QUICK,
    WEIGHTS_ONLY,
    Pictures,
    ToyModule,
    loaders,
    make_trainer,
    quick_callback,
    read_events,
    scalar_steps,
)

CURVES = {
    "preserved",
    "removed",
    "drift",
    "drift_from_first",
    "top_fifth_iou",
    "top_fifth_iou_from_first",
    "entropy",
    "area",
    "drift_floor",
    "settled",
}


def fit(folder, *callbacks, **options):
    trainer = make_trainer(folder, *callbacks, **options)
    module = ToyModule()
    trainer.fit(module, **loaders())
    return trainer, module


def test_every_logger_has_every_curve_at_the_steps_of_the_runs(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, name=None), CSVLogger(tmp_path / "csv", name=None)]
    trainer, _ = fit(tmp_path, quick_callback(), logger=loggers)
    tags = {tag for tag in read_events(trainer).Tags()["scalars"] if tag.startswith("gfi/")}
    assert tags == {f"gfi/{name}" for name in (*CURVES, "overhead")}
    assert scalar_steps(trainer, "gfi/removed") == scalar_steps(trainer, "gfi/drift_floor") == [0, 3, 7]
    assert scalar_steps(trainer, "gfi/drift") == [3, 7]
    with Path(loggers[1].log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gfi/removed"]]
    assert [int(row["step"]) for row in rows] == [0, 3, 7]
    history = History.load(trainer.log_dir)
    assert set(history.curves) == CURVES
    for name in CURVES:
        means = [event.value for event in read_events(trainer).Scalars(f"gfi/{name}")]
        np.testing.assert_allclose(means, history.curve(name).mean(1)[-len(means) :], rtol=1e-6, atol=1e-9)
        assert float(rows[-1][f"gfi/{name}"]) == pytest.approx(means[-1], rel=1e-5)


@pytest.mark.parametrize("schedule", [{}, {"every_n_steps": 1}, {"schedule": "log"}], ids=str)
def test_a_checkpoint_is_chosen_by_a_curve(tmp_path, schedule):
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="gfi/removed", save_top_k=-1, filename="{epoch}")
    trainer, _ = fit(tmp_path, checkpoint, quick_callback(**schedule), max_epochs=3, enable_checkpointing=True)
    values = {event.step: event.value for event in read_events(trainer).Scalars("gfi/removed")}
    kept = {int(Path(path).stem.split("=")[1]): float(score) for path, score in checkpoint.best_k_models.items()}
    assert kept == pytest.approx({0: values[3], 1: values[7], 2: values[11]})
    assert checkpoint.best_model_score == pytest.approx(min(kept.values()))


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}], ids=str)
def test_a_run_is_stopped_by_a_curve(tmp_path, options):
    stopping = EarlyStopping("gfi/removed", stopping_threshold=2.0, mode="min")  # which any probability is below
    trainer, _ = fit(tmp_path, stopping, quick_callback(), max_epochs=5, **options)
    assert trainer.current_epoch == options.get("check_val_every_n_epoch", 1)


@pytest.mark.parametrize(
    ("schedule", "saving", "warned"),
    [
        ({}, {}, True),
        ({"schedule": "log"}, {}, True),
        ({}, {"save_on_train_epoch_end": True}, False),
        ({}, {"every_n_train_steps": 2}, True),
        ({"every_n_steps": 2}, {}, False),
    ],
)
@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_who_would_judge_weights_by_earlier_ones_is_told(tmp_path, schedule, saving, warned):
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="gfi/removed", **saving)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"val_check_interval": 0.5, "max_epochs": 1, "enable_checkpointing": True}
        fit(tmp_path, checkpoint, quick_callback(**schedule), **options)
    told = [str(one.message) for one in caught if "saves elsewhere than at the end of an epoch" in str(one.message)]
    assert len(told) == warned
    assert all("monitor='gfi/removed'" in message and "save_on_train_epoch_end=True" in message for message in told)


def test_the_progress_bar_shows_what_is_asked_for(tmp_path):
    trainer, _ = fit(tmp_path, quick_callback(prog_bar=["removed", "drift"]))
    shown = {name for name in trainer.progress_bar_metrics if name.startswith("gfi/")}
    assert shown == {"gfi/removed", "gfi/drift"}
    with pytest.raises(UsageError, match=r"prog_bar='removed' must be a list of names of curves"):
        GFICallback(prog_bar="removed")
    for name in ("gfi/drift", "energy", "overhead"):
        with pytest.raises(UsageError, match=rf"there is no curve '{name}' to show. Use some of .*'energy/object'"):
            GFICallback(prog_bar=["removed", name])


def test_the_runs_own_metrics_are_those_without_us(tmp_path):
    (trainer, _), (plain, _) = fit(tmp_path, quick_callback(every_n_steps=1)), fit(tmp_path)
    assert trainer.logged_metrics.keys() == plain.logged_metrics.keys()
    ours = {name for name in trainer.callback_metrics if name.startswith("gfi/")}
    assert ours == {f"gfi/{name}" for name in CURVES}
    assert trainer.callback_metrics.keys() - ours == plain.callback_metrics.keys()
    assert read_events(trainer).Scalars("epoch")[0].step == read_events(plain).Scalars("epoch")[0].step
    assert len(read_events(trainer).Scalars("epoch")) == len(read_events(plain).Scalars("epoch"))


def test_curves_of_classes_and_samples(tmp_path):
    trainer, _ = fit(tmp_path, quick_callback(samples=[0, 1, 8], per_class=True, per_sample=True))
    history = History.load(trainer.log_dir)
    assert history.labels.tolist() == [0, 0, 2]
    removed = history.curve("removed")
    events = read_events(trainer)
    for tag, values in {
        "kind 0": removed[:, :2].mean(1),
        "kind 2": removed[:, 2],
        "sample_1": removed[:, 1],
    }.items():
        found = [event.value for event in events.Scalars(f"gfi/removed/{tag}")]
        np.testing.assert_allclose(found, values, rtol=1e-6)
    assert "gfi/drift/kind 0" in events.Tags()["scalars"]


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_without_labels_there_are_no_classes(tmp_path):
    samples = Pictures().images[:2], None
    with pytest.warns(UserWarning, match=r"per_class=True\) needs a class index for each sample, and there is none"):
        fit(tmp_path, quick_callback(samples=samples, targets="predicted", per_class=True), max_epochs=1)


def test_names_on_several_lines_are_shown_on_one(tmp_path):
    names = ["great\nblue heron", "ant\r\n", " bee", "cat", "dog"]
    trainer, _ = fit(tmp_path, quick_callback(class_names=names, per_class=True), max_epochs=1)
    assert History.load(trainer.log_dir).class_names == ["great blue heron", "ant", "bee", "cat", "dog"]
    tags = read_events(trainer).Tags()
    assert "gfi/removed/great blue heron" in tags["scalars"]
    assert {"gfi/sample_0", "gfi/film_0", "gfi/animation"} <= set(tags["images"])


def test_the_floor_is_that_of_the_same_weights_and_images_that_hardly_differ(tmp_path, monkeypatch):
    """Against two explanations of our own; here images differ by so much that there is something to be compared."""
    monkeypatch.setattr(share, "_NUDGE", 0.1)
    images = Pictures().images[[0, 4, 12]]
    module = ToyModule()
    gfi = GuidedFeatureInversion(module.eval(), recipe=QUICK)
    maps = [gfi.explain(some, torch.tensor([0, 1, 3])).heatmaps for some in (images, nudged(images))]
    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=1)
    trainer.fit(module.train(), **loaders())
    history = History.load(trainer.log_dir)
    floor, grid = history.curve("drift_floor"), history.heatmaps(0).shape[-2:]
    expected = heatmap_drift(*(torch.nn.functional.adaptive_avg_pool2d(one, grid) for one in maps))
    assert (expected > 1e-3).all()
    np.testing.assert_allclose(floor, np.tile(expected.float(), (2, 1)), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_images_are_moved_by_a_millionth_of_their_range(dtype):
    images = (torch.rand(2, 3, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 50.0])[:, None, None, None]).to(dtype)
    moved = nudged(images)
    assert moved.dtype == dtype
    assert (moved != images).double().mean() > 0.99
    wide = images.double()
    span = wide.amax((1, 2, 3)) - wide.amin((1, 2, 3))
    allowed = (1.2e-6 * span[:, None, None, None]).maximum(2 * torch.finfo(dtype).eps * wide.abs())
    assert ((moved.double() - wide).abs() <= allowed).all()
    assert torch.equal(moved, nudged(images))


def test_the_floor_is_measured_once_and_survives_a_resume(tmp_path):
    logger, path, passes = TensorBoardLogger(tmp_path, name=None), None, []

    class Counting(ToyModule):
        def forward(self, images):
            passes[-1] += not self.training
            return super().forward(images)

    for epochs in (1, 2):
        passes.append(0)
        callback = quick_callback(targets=0)
        trainer = make_trainer(tmp_path, callback, max_epochs=epochs, logger=logger, limit_val_batches=0)
        trainer.fit(Counting(), **loaders(), ckpt_path=path, **WEIGHTS_ONLY)
        path = tmp_path / f"{epochs}.ckpt"
        trainer.save_checkpoint(path)
    history = History.load(trainer.log_dir)
    assert history.steps == [0, 3, 7]
    floor = history.curve("drift_floor")
    assert np.isfinite(floor).all()
    assert (floor == floor[0]).all()
    assert not np.isnan(history.curve("drift")[1:]).any(), "compared with the maps before the resume"
    assert len(History.run_ids(trainer.log_dir)) == 1
    assert passes == [12, 4], "two runs and the floor, and then a single run"


def test_in_another_precision_the_floor_is_another(tmp_path):
    floors = []
    for epochs, precision in ((1, "32-true"), (2, "bf16-true")):
        trainer = make_trainer(tmp_path, quick_callback(), max_epochs=epochs, precision=precision)
        path = tmp_path / "before.ckpt" if epochs > 1 else None
        trainer.fit(ToyModule(), **loaders(), ckpt_path=path, **WEIGHTS_ONLY)
        trainer.save_checkpoint(tmp_path / "before.ckpt")
        floors.append(History.load(trainer.log_dir).curve("drift_floor")[-1].mean())
    assert floors[1] > 10 * floors[0]


def test_a_resume_goes_on_in_another_folder(tmp_path):
    """As by default, where Lightning numbers the folders; and where the training goes on before the checkpoint."""
    first, _ = fit(tmp_path, quick_callback(), ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True)
    second = make_trainer(tmp_path, quick_callback(), max_epochs=3)
    second.fit(ToyModule(), **loaders(), ckpt_path=tmp_path / "last.ckpt", **WEIGHTS_ONLY)
    assert first.log_dir != second.log_dir
    before, whole = History.load(first.log_dir), History.load(second.log_dir)
    assert before.steps == [0, 3, 7]
    assert whole.steps == [0, 3, 7, 11]
    assert whole.run_id == before.run_id
    np.testing.assert_array_equal(whole.heatmaps(0)[:3], before.heatmaps(0))


def test_two_trainings_in_one_folder(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    for epochs in (3, 1):
        fit(tmp_path, quick_callback(), logger=logger, max_epochs=epochs)
    assert History.load(tmp_path).steps == [0, 3]
    first, second = History.run_ids(tmp_path)
    assert History.load(tmp_path, run_id=first).steps == [0, 3, 7, 11]
    assert History.load(tmp_path, run_id=second).epochs == [0, 0]


def test_channel_weights_are_kept_where_asked_for(tmp_path):
    trainer, _ = fit(tmp_path, quick_callback(keep_weights=True, targets=[0, 3]))
    weights = History.load(trainer.log_dir).weights(1)
    assert weights.shape[:2] == (3, 2)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
