"""Explaining takes no more of the training's time than it may."""

import itertools
import logging
import time

import pytest
from lightning.pytorch import Callback

from gfi_lightning.training import budget
from gfi_lightning.training.budget import Budget
from tests.training.modules import ToyModule, image_steps, loaders, make_trainer, quick_callback, read_events


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def train(limit, clock, epochs, epoch, cost):
    """A training by the clock: a run before it, one after each epoch if allowed, and one at the end.

    The limit is held after each run, but for the first three and one that costs more than the last of them did.

    Args:
        epoch: from the epoch's number to its duration without a run.
        cost: likewise of its run.

    Returns:
        The budget, and the numbers of the epochs with a run.
    """
    spent = Budget(limit)
    explained = []

    def run(step):
        with spent.run(step):
            clock.now += cost(step)
        explained.append(step)
        foreseeable = cost(step) == cost(explained[-2]) if len(explained) > 3 else False
        if foreseeable and limit is not None and step < epochs - 1:
            assert spent.overhead <= limit  # of none: a test of its own

    run(-1)
    for number in range(epochs):
        clock.now += epoch(number)
        run(number) if spent.allows_another() else spent.skip(number)
    if explained[-1] != epochs - 1:
        run(epochs - 1)
    return spent, explained


def test_no_limit(clock):
    spent, explained = train(1, clock, 5, lambda _: 1, lambda _: 1)
    assert explained == [-1, 0, 1, 2, 3, 4]
    assert spent.overhead == pytest.approx(6 / 11)


def test_three_runs_then_only_what_time_has_been_earned_for(clock):
    spent, explained = train(0.02, clock, 1000, lambda _: 10, lambda _: 2)
    assert explained[:3] == [-1, 0, 1]
    gaps = [later - earlier for earlier, later in itertools.pairwise(explained[3:-1])]
    assert all(gap in (9, 10, 11) for gap in gaps)  # 2 s of every 100 s
    assert explained[-1] == 999
    assert 0.018 < spent.overhead <= 0.02
    assert str(spent) == f"explained {len(explained)} of 1001 scheduled runs, {spent.overhead:.1%} of the time"


def test_by_default_a_minute_is_free(clock):
    spent, explained = train(None, clock, 40, lambda _: 1, lambda _: 1)
    assert explained == list(range(-1, 40))
    assert spent.overhead == pytest.approx(41 / 81)


def test_by_default_a_long_training_spends_a_minute_and_one_twentieth(clock):
    spent, explained = train(None, clock, 5000, lambda _: 1, lambda _: 1)
    assert explained[:60] == list(range(-1, 59))
    gaps = [later - earlier for earlier, later in itertools.pairwise(explained[70:-1])]
    assert all(gap in (18, 19, 20) for gap in gaps)  # 1 s of every 20 s, from then on
    assert spent.overhead <= 0.05 + 60 / 5000


def test_where_it_is_cheap_nothing_is_skipped(clock):
    _, explained = train(0.02, clock, 50, lambda _: 100, lambda _: 1)
    assert explained == list(range(-1, 50))


@pytest.mark.parametrize("slower", [0.1, 10])
def test_the_estimate_follows_the_costs_and_the_pace(clock, slower):
    """From the middle on, runs or epochs take another time; the limit holds all the while (see train)."""
    changed = lambda number: slower if number >= 500 else 1.0  # noqa: E731
    spent, explained = train(0.05, clock, 1000, lambda _: 10, lambda number: 1 * changed(number))
    often = [sum(first <= one < first + 400 for one in explained) for first in (100, 600)]
    assert (often[1] > 1.5 * often[0]) == (slower < 1)
    assert spent.overhead <= 0.05
    spent, explained = train(0.05, clock, 1000, lambda number: 10 * changed(number), lambda _: 1)
    often = [sum(first <= one < first + 400 for one in explained) for first in (100, 600)]
    assert (often[1] > 1.5 * often[0]) == (slower > 1)
    assert spent.overhead <= 0.05


def test_reading_the_samples_counts(clock):
    spent = Budget(0.5)
    with spent.spending():
        clock.now += 3
    clock.now += 9
    assert spent.overhead == 0.25


def test_a_skipped_step_that_is_the_epochs_end_as_well_counts_once(clock):
    spent = Budget(0.02)
    spent.skip(7)
    spent.skip(7)
    clock.now += 1
    assert str(spent) == "explained 0 of 1 scheduled runs, 0.0% of the time"


def test_what_a_run_costs_is_not_taken_from_those_that_failed(clock):
    def fail():
        clock.now += 1
        raise MemoryError

    spent = Budget(0.02)
    for step in range(3):
        with pytest.raises(MemoryError), spent.run(step):
            fail()
    assert str(spent) == "explained 0 of 3 scheduled runs, 100.0% of the time"
    assert not spent.allows_another()  # until the time of these has been earned
    clock.now += 200
    assert spent.allows_another()


class Slow(Callback):
    """Makes the training slow."""

    def on_train_batch_start(self, *_):
        time.sleep(0.02)


def test_a_real_run(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gfi_lightning")
    callback = quick_callback(every_n_steps=1, max_overhead=0.05)
    trainer = make_trainer(tmp_path, callback, Slow(), max_epochs=40)
    trainer.fit(ToyModule(), **loaders())
    steps = image_steps(trainer)
    assert steps[:3] == [0, 1, 2]
    assert steps[-1] == 159
    assert len(steps) < 40
    (told,) = [record.getMessage() for record in caplog.records if "scheduled runs" in record.getMessage()]
    assert told.startswith(f"GFICallback explained {len(steps)} of 160 scheduled runs, ")
    overhead = [event.value for event in read_events(trainer).Scalars("gfi/overhead")]
    assert len(overhead) == len(steps)
    assert all(0 < share < 1 for share in overhead)


def test_without_a_limit_every_run_takes_place(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gfi_lightning")
    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=2)
    trainer.fit(ToyModule(), **loaders())
    assert any("GFICallback explained 3 of 3 scheduled runs, " in record.getMessage() for record in caplog.records)


def test_what_is_spent_is_logged_but_is_no_metric(tmp_path):
    """A clock makes no two trainings alike, and nobody is to choose a checkpoint by it."""
    trainer = make_trainer(tmp_path, quick_callback(), max_epochs=2)
    trainer.fit(ToyModule(), **loaders())
    events = read_events(trainer).Scalars("gfi/overhead")
    assert [event.step for event in events] == image_steps(trainer) == [0, 3, 7]
    assert all(0 < event.value < 1 for event in events)
    assert "gfi/removed" in trainer.callback_metrics
    assert "gfi/overhead" not in trainer.callback_metrics.keys() | trainer.logged_metrics.keys()
