"""One line at the start of a fit, and one at its end."""

import logging
import re
import shlex
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.cli import main
from gfi_lightning.training import budget, session
from gfi_lightning.training.notices import duration, shown
from gfi_lightning.training.schedule import Schedule
from tests.networks import ToyCNN, random_images
from tests.training.modules import (
    QUICK,
    SeveralLabels,
    TellsEach,
    ToyModule,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
)


@pytest.fixture
def said(caplog):
    """What was said, line by line."""
    caplog.set_level(logging.INFO, "gfi_lightning")
    return lambda: [line for line in ours(caplog) if "own range" not in line]


def ours(caplog):
    return [one.getMessage() for one in caplog.records if one.name == "gfi_lightning"]


def fitted(folder, *callbacks, module=None, data=None, **options):
    trainer = make_trainer(folder, *callbacks, **options)
    trainer.fit(ToyModule() if module is None else module, **(data or loaders()))
    return trainer


def test_two_lines(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = fitted("logs", quick_callback(num_samples=5), max_epochs=3)
    first, last = said()
    assert re.fullmatch(
        r"GFICallback explains 5 validation images of 5 classes after every epoch\. "
        r"Base layer: network\.coarse, feature maps of 6 × 8 × 8\. "
        r"A run takes about [\d.]+ s, the 3 to come about [\d.]+ s\.",
        first,
    )
    assert re.fullmatch(
        r"GFICallback explained 4 of 4 scheduled runs, [\d.]+% of the time\. Its pictures are in TensorBoardLogger\. "
        r"Its maps are in logs/version_0/gfi\. "
        r"To look at them: tensorboard --logdir logs/version_0  or  gfi-lightning report logs/version_0",
        last,
    )
    assert Path("logs/version_0/gfi").is_dir()
    assert Path(trainer.log_dir) == Path("logs/version_0")


def test_quiet(tmp_path, said):
    fitted(tmp_path, quick_callback(verbose=False))
    assert said() == []


def test_quiet_about_how_it_understands_the_data_but_not_about_what_is_wrong(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gfi_lightning")
    data = loaders(SeveralLabels(16, seed=1), SeveralLabels())
    callback = quick_callback(verbose=False, score="sigmoid", num_samples=30)
    with pytest.warns(UserWarning, match="explains only 20: the validation set has no more"):
        fitted(tmp_path, callback, module=TellsEach(), data=data)
    assert ours(caplog) == []


@pytest.mark.parametrize(
    ("options", "trainer_options", "words"),
    [
        ({"every_n_epochs": 2}, {"max_epochs": 5}, "every 2 epochs"),
        ({"every_n_epochs": 2}, {"max_epochs": 4}, "every 2 epochs"),
        ({"every_n_steps": 3}, {}, "every 3 steps"),
        ({"every_n_steps": 4}, {}, "every 4 steps"),
        ({"every_n_steps": 1}, {"max_epochs": 1}, "after every optimiser step"),
        ({"schedule": "log"}, {}, "at steps 1, 2, 4, 8, … of the first epoch, and after every epoch"),
        ({}, {"max_epochs": -1, "max_steps": 6}, "after every epoch"),
        ({}, {"accumulate_grad_batches": 3}, "after every epoch"),
        ({"every_n_steps": 2}, {"accumulate_grad_batches": 3}, "every 2 steps"),
    ],
)
def test_so_many_runs_as_were_foretold(tmp_path, said, options, trainer_options, words):
    trainer = fitted(tmp_path, quick_callback(**options), **trainer_options)
    line = said()[0]
    assert f"classes {words}. " in line
    runs = len(image_steps(trainer)) - 1
    assert f", {runs} to come." in line if runs == 1 else f", the {runs} to come about " in line


def test_where_nobody_can_tell_how_many(tmp_path, said):
    fitted(tmp_path, quick_callback(schedule=lambda steps: steps == 3, max_overhead=0.5))
    assert re.search(
        r"by a schedule of your own\. .* A run takes about [\d.]+ s, and all no more than 0\.5 of", said()[0]
    )


def test_many_runs_are_counted_at_once():
    assert Schedule.of(None, 1, 7).runs(10**9, 10**6) == -(-(10**9) // 7)


class Clock:
    """A time that only the model's passes take."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_the_cost_is_that_of_a_run_without_the_noise_floor(tmp_path, said, monkeypatch):
    clock = Clock()
    for user in (budget, session):
        monkeypatch.setattr(user, "time", clock)

    class Slow(ToyModule):
        def forward(self, images):
            clock.now += 0 if self.training else 10
            return super().forward(images)

    fitted(tmp_path, quick_callback(targets="predicted"), module=Slow(), max_epochs=1, num_sanity_val_steps=0)
    passes = sum(GuidedFeatureInversion(ToyCNN(), recipe=QUICK).passes(random_images(3)))
    (seconds,) = re.findall(r"takes about (\d+) s", said()[0])
    # The first run finds the layer, too; but not that of the noise floor's passes, which are as many again.
    assert 10 * passes <= int(seconds) < 10 * 2 * passes


def test_each_says_its_own(tmp_path, said):
    callbacks = [
        quick_callback(layer="network.fine", samples=(random_images(2).float(), torch.tensor([1, 1]))),
        quick_callback(),
        quick_callback(name="deep"),
    ]
    fitted(tmp_path, *callbacks, max_epochs=1)
    lines = said()
    assert len(lines) == 6
    assert (
        "explains 2 images of 1 class after every epoch. Base layer: network.fine, feature maps of 8 × 16 × 16."
        in (lines[0])
    )
    assert [line.split(" explain")[0] for line in lines] == ["GFICallback", "GFICallback '2'", "GFICallback 'deep'"] * 2
    assert "gfi/deep. To look" in lines[-1]


def test_a_resumed_fit_says_so_once_it_has_explained(tmp_path, said):
    trainer = fitted(tmp_path, quick_callback(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    before = len(said())
    make_trainer(tmp_path, quick_callback()).fit(ToyModule(), **loaders(), ckpt_path=tmp_path / "a.ckpt")
    resumed, first, last = said()[before:]
    assert resumed == "GFICallback goes on where the checkpoint left off, after every epoch."
    assert "Base layer: network.coarse, feature maps of 6 × 8 × 8. A run takes about" in first
    assert "to come" not in first
    assert "explained 1 of 1" in last


def test_commands_can_be_typed_as_they_are(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted("my logs", quick_callback(), max_epochs=1)
    command = shlex.split(said()[-1].partition("  or  ")[2])
    assert command == ["gfi-lightning", "report", "my logs/version_0"]
    assert main(command[1:]) == 0
    assert Path("report.html").stat().st_size > 10_000


def test_no_tensorboard_without_its_logger(tmp_path, said):
    fitted(tmp_path, quick_callback(), max_epochs=1, logger=CSVLogger(tmp_path))
    assert "tensorboard --logdir" not in said()[-1]
    assert "gfi-lightning report" in said()[-1]
    assert re.search(r"Its pictures are in files in \S+/gfi/pictures\. Its maps are in", said()[-1])


def test_nothing_is_promised_that_is_not_there(tmp_path, said):
    (tmp_path / "a file").touch()
    with pytest.warns(UserWarning, match="could not write its maps"):
        fitted(
            tmp_path,
            quick_callback(on_error="warn"),
            max_epochs=1,
            logger=False,
            default_root_dir=tmp_path / "a file",
        )
    assert "Its maps" not in said()[-1]
    assert "report" not in said()[-1]


def test_a_fast_dev_run_keeps_nothing(tmp_path, said):
    fitted(tmp_path, quick_callback(), fast_dev_run=True)
    assert said()[-1].endswith("Nothing of it was kept.")


def test_paths_as_short_as_they_can_be(tmp_path, monkeypatch):
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shown(str(tmp_path / "a")) == "a"
    assert shown("a/b c") == "'a/b c'"
    monkeypatch.chdir("/")
    assert shown("/tmp") == "tmp"
    monkeypatch.chdir(tmp_path / "a" / "b" / "c" / "d")
    assert shown("/tmp") == "/tmp"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.001, "0.01 s"), (0.04, "0.04 s"), (0.66, "0.7 s"), (12.3, "12 s"), (150, "2 min"), (5400, "1.5 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_who_explains_outside_of_a_training_announces_the_layer_by_a_function_of_ones_own(said):
    announced = []
    GuidedFeatureInversion(ToyCNN(), announce=announced.append).explain(random_images(1).float())
    assert announced == [
        "Base layers: fine, feature maps of 8 × 16 × 16 and coarse, feature maps of 6 × 8 × 8.",
    ]
    assert said() == []
