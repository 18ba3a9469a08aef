"""A bar, in the style of the Trainer's own, for explanations that take longer than two seconds."""

import sys
import time
from itertools import pairwise

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress import tqdm_progress

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.recipes import DEFAULT, PAPER
from gfi_lightning.training import progress
from tests.networks import ToyCNN, ToyPatches, random_images
from tests.training.modules import ToyModule, loaders, make_trainer, quick_callback

TITLE = "GFICallback explains"


class Slow(ToyModule):
    """Of which an explanation by QUICK, 6 passes, takes 3 seconds; and its training none."""

    def forward(self, images):
        if not self.training:
            time.sleep(0.5)
        return super().forward(images)

    def validation_step(self, batch, batch_idx):
        pass


def explained_once(tmp_path, bar, module=None, **options):
    """The Trainer after a fit of which only the run of the untrained model is slow."""
    module = Slow() if module is None else module
    callback = quick_callback(targets="predicted", **options)
    trainer = make_trainer(
        tmp_path, callback, *([] if bar is None else [bar]), enable_progress_bar=bar is not None, max_epochs=1
    )
    # Without an optimiser's step the end of the training is no other place, and there is no second run.
    trainer.fit(module, **loaders())
    return trainer


class Once(Slow):
    """Slow until it is trained."""

    def forward(self, images):
        return super().forward(images) if self.global_step == 0 else ToyModule.forward(self, images)


def test_tqdm(tmp_path, capsys):
    trainer = explained_once(tmp_path, TQDMProgressBar(), Once())
    shown = capsys.readouterr().out
    parts = [part for part in shown.split("\r") if part.startswith(TITLE)]
    done = [int(part.split("|")[2].split("/")[0]) for part in parts]
    totals = {int(part.split("/")[1].split()[0]) for part in parts}
    assert len(parts) >= 3
    assert done[0] > 0  # what was done before it appeared
    assert all(one <= another for one, another in pairwise(done))
    assert max(done) <= max(totals)
    after = shown[shown.rindex(TITLE) :]
    assert "Epoch 0: 100%" in after
    assert "4/4" in after
    assert trainer.progress_bar_callback.train_progress_bar.disable  # closed as ever
    assert not tqdm_progress.Tqdm._instances  # and nothing of ours is left


@pytest.mark.rich_bar
@pytest.mark.parametrize("live", [True, False], ids=["a line of Lightning's display", "a display of its own"])
def test_rich(tmp_path, monkeypatch, live):
    added = []
    bar = RichProgressBar(refresh_rate=10)
    monkeypatch.setattr("rich.progress.Progress.add_task", watched(added))
    trainer = explained_once(tmp_path, bar, Once()) if live else None
    if trainer is None:
        callback = quick_callback(targets="predicted")
        trainer = make_trainer(tmp_path, callback, bar, enable_progress_bar=True, max_epochs=1, num_sanity_val_steps=0)
        trainer.fit(Once(), **loaders())
    (ours,) = [one for one in added if one[1] == TITLE]
    display, _, task = ours
    shown = display.tasks[task]
    assert (display is bar.progress) == live
    assert not shown.visible
    assert 0 < shown.completed < shown.total
    assert not display.live.is_started
    assert bar.train_progress_bar.completed == bar.train_progress_bar.total == 4
    assert bar.train_progress_bar.description.startswith("Epoch 0")


def watched(added):
    """Rich's own way to add a task, of which it is noted what it added."""
    from rich.progress import Progress

    own = Progress.add_task

    def add_task(self, description, *args, **options):
        task = own(self, description, *args, **options)
        added.append((self, description, task))
        return task

    return add_task


@pytest.mark.parametrize(
    ("bar", "options"),
    [(None, {}), (TQDMProgressBar(), {"verbose": False}), (TQDMProgressBar(refresh_rate=0), {})],
    ids=["the Trainer has none", "verbose=False", "disabled"],
)
def test_none(tmp_path, capsys, monkeypatch, bar, options):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    explained_once(tmp_path, bar, ToyModule(), **options)
    assert TITLE not in capsys.readouterr().out


def test_none_for_what_is_quick(tmp_path, capsys):
    explained_once(tmp_path, TQDMProgressBar(), ToyModule())
    assert "Epoch 0: 100%" in (shown := capsys.readouterr().out)
    assert TITLE not in shown


class Broken(TQDMProgressBar):
    """A bar that another one cannot be made like."""

    BAR_FORMAT = "{nonsense}"

    def init_train_tqdm(self):
        return tqdm_progress.Tqdm(file=sys.stdout, leave=True)

    init_sanity_tqdm = init_validation_tqdm = init_train_tqdm


def test_a_bar_that_fails_is_one_warning_and_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    with pytest.warns(UserWarning, match=r"could not show a progress bar, and the run goes on: KeyError") as said:
        trainer = explained_once(tmp_path, Broken(), ToyModule(), on_error="warn")
    assert len([one for one in said if "GFICallback" in str(one.message)]) == 1
    assert "gfi/preserved" in trainer.callback_metrics


@pytest.mark.parametrize("bar", [TQDMProgressBar, pytest.param(RichProgressBar, marks=pytest.mark.rich_bar)])
def test_training_ends_with_the_same_weights(tmp_path, monkeypatch, bar):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    ends = []
    for callbacks in ([quick_callback()], []):
        L.seed_everything(3)
        module = ToyModule()
        trainer = make_trainer(tmp_path, *callbacks, bar(), enable_progress_bar=True)
        trainer.fit(module, **loaders())
        ends.append(({**module.state_dict()}, torch.get_rng_state()))
    (weights, rng), (plain_weights, plain_rng) = ends
    assert all(torch.equal(one, plain_weights[name]) for name, one in weights.items())
    assert torch.equal(rng, plain_rng)


@pytest.mark.parametrize(
    ("layer", "recipe", "chunk_size", "layers"),
    [
        ("coarse", DEFAULT, None, None),
        ("coarse", DEFAULT, 2, ["fine", "coarse"]),
        ("coarse", PAPER, 3, None),
        ("coarse_patches", DEFAULT, 2, None),
        ("coarse_patches", PAPER, 2, None),
    ],
)
def test_each_pass_is_told_and_foretold(layer, recipe, chunk_size, layers):
    model, told, made = ToyPatches(), [], []
    model.register_forward_pre_hook(lambda *_: made.append(len(told)))
    explainer = GuidedFeatureInversion(
        model, layer, recipe=recipe, chunk_size=chunk_size, layers=layers, on_pass=lambda: told.append(None)
    )
    images = random_images(5).float()
    explainer.explain(images, torch.tensor([[0, 1, 2]] * 5))
    assert made == list(range(1, len(made) + 1))  # told before each
    assert len(made) == sum(explainer.passes(images, 3))


def test_what_a_listener_raises_ends_the_explanation():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuidedFeatureInversion(ToyCNN(), on_pass=stop).explain(random_images(1).float())
