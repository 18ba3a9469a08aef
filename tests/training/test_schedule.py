"""When the callback runs, and where on the x axis its pictures lie."""

import pytest

from gfi_lightning import UsageError
from tests.training.modules import (
    Pictures,
    ToyModule,
    TwoOptimizers,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
    read_events,
    scalar_steps,
)


# Lightning refuses to accumulate gradients in manual optimisation, which two optimisers need.
@pytest.mark.parametrize(("module", "accumulate"), [(ToyModule, 1), (ToyModule, 2), (TwoOptimizers, 1)])
def test_pictures_lie_on_the_axis_of_lightnings_metrics(tmp_path, module, accumulate):
    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=3, accumulate_grad_batches=accumulate)
    trainer.fit(module(), **loaders())
    steps = image_steps(trainer)
    assert steps == [0, *scalar_steps(trainer, "val_loss")]
    assert set(steps) <= set(scalar_steps(trainer, "train_loss"))
    assert scalar_steps(trainer, "gfi/preserved") == scalar_steps(trainer, "gfi/removed") == steps
    assert scalar_steps(trainer, "gfi/drift") == steps[1:]
    assert image_steps(trainer, "gfi/overview") == steps


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 2, 5, 7]), (100, [0, 7])])
def test_every_n_steps(tmp_path, every, expected):
    trainer = make_trainer(tmp_path, quick_callback(every_n_steps=every))
    trainer.fit(ToyModule(), **loaders())
    assert image_steps(trainer) == expected


def test_every_n_steps_with_accumulation_counts_optimiser_steps(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(every_n_steps=2), max_epochs=3, accumulate_grad_batches=2)
    trainer.fit(ToyModule(), **loaders())
    assert image_steps(trainer) == [0, 1, 3, 5]


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 3, 7, 11, 15, 19]), (2, [0, 7, 15, 19]), (9, [0, 19])])
def test_every_n_epochs(tmp_path, every, expected):
    trainer = make_trainer(tmp_path, quick_callback(every_n_epochs=every), max_epochs=5)
    trainer.fit(ToyModule(), **loaders())
    assert image_steps(trainer) == expected


def test_a_single_step_is_shown_too(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(), max_steps=1)
    trainer.fit(ToyModule(), **loaders())
    assert image_steps(trainer) == [0, 1]


def test_the_first_picture_shows_the_untrained_model(tmp_path):
    seen = []

    class Watched(ToyModule):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(image_steps(self.trainer))

    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=1)
    trainer.fit(Watched(), **loaders())
    assert seen[0] == [0]


def test_nothing_in_the_sanity_check(tmp_path):
    pictures = []

    class Watched(ToyModule):
        def on_validation_end(self):
            pictures.append((self.trainer.sanity_checking, (tmp_path / "version_0" / "gfi").exists()))

    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=1)
    trainer.fit(Watched(), **loaders())
    assert pictures == [(True, False), (False, True)]


@pytest.mark.parametrize(
    "options",
    [
        {"num_sanity_val_steps": 0},
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
        {"limit_val_batches": 0},
        {"val_check_interval": 0.5},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_whenever_validation_runs_or_does_not(tmp_path, options):
    trainer = make_trainer(tmp_path, quick_callback(), **options)
    trainer.fit(ToyModule(), **loaders())
    assert len(image_steps(trainer)) == 3


def test_fast_dev_run_explains_and_writes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(), fast_dev_run=True)
    trainer.fit(ToyModule(), **loaders())
    assert list(tmp_path.rglob("*")) == []


def test_a_barebones_trainer_explains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"limit_val_batches": 1, "barebones": True, "logger": None, "log_every_n_steps": None}
    passes = []
    for callbacks in ([], [quick_callback()]):
        module, calls = ToyModule(), []
        module.network.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        make_trainer(tmp_path, *callbacks, max_epochs=1, **options).fit(module, **loaders())
        passes.append(len(calls))
    assert passes[0] == passes[1]


def test_tags(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(num_samples=2), max_epochs=1)
    trainer.fit(ToyModule(), **loaders())
    tags = read_events(trainer).Tags()
    assert sorted(tags["images"]) == [
        "gfi/animation",
        "gfi/curves",
        "gfi/film_0",
        "gfi/film_1",
        "gfi/overview",
        "gfi/sample_0",
        "gfi/sample_1",
    ]
    assert sorted(tag for tag in tags["scalars"] if tag.startswith("gfi")) == [
        "gfi/area",
        "gfi/drift",
        "gfi/drift_floor",
        "gfi/drift_from_first",
        "gfi/entropy",
        "gfi/overhead",
        "gfi/preserved",
        "gfi/removed",
        "gfi/settled",
        "gfi/top_fifth_iou",
        "gfi/top_fifth_iou_from_first",
    ]
    assert tags["tensors"] == []


def test_log_schedule(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(schedule="log"), max_epochs=3)
    trainer.fit(ToyModule(), **loaders(train=Pictures(36)))
    assert image_steps(trainer) == [0, 1, 2, 4, 8, 17, 26]


def test_log_schedule_with_every_second_epoch(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(schedule="log", every_n_epochs=2), max_epochs=3)
    trainer.fit(ToyModule(), **loaders())
    assert image_steps(trainer) == [0, 1, 2, 7, 11]


def test_a_schedule_of_ones_own(tmp_path):
    asked = []
    trainer = make_trainer(tmp_path, quick_callback(schedule=lambda steps: asked.append(steps) or steps == 3))
    trainer.fit(ToyModule(), **loaders())
    assert asked == [1, 2, 3, 4, 5, 6, 7, 8]
    assert image_steps(trainer) == [0, 2, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule='linear' is unknown"),
        ({"schedule": "log", "every_n_steps": 5}, "give one of them"),
        ({"schedule": bool, "every_n_epochs": 5}, "give one of them"),
        ({"max_overhead": 0}, "max_overhead=0 must be a share"),
        ({"max_overhead": 2}, "max_overhead=2 must be a share"),
        ({"max_overhead": "2%"}, "max_overhead='2%' must be a share"),
    ],
    ids=str,
)
def test_what_is_no_schedule(options, message):
    with pytest.raises(UsageError, match=message):
        quick_callback(**options)
