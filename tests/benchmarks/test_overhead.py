"""The arithmetic of the benchmark, its tables, and a tiny training. No time is asserted."""

import json
import sys

import overhead
import pytest
from overhead import LENGTHS, LIMITS, SIZES, Costs, Setting, Stopwatch, Timed

from gfi_lightning.training import budget
from tests.networks import ToyCNN

TOY = Setting("a toy", ToyCNN, 16, 5, 1000, 200, 8)
COSTS = Costs(validation=0.5, first=30.0, runs=[8.0, 10.0, 40.0], end=5.0)


def test_an_epoch_is_its_training_and_validation_images():
    assert COSTS.epoch(TOY, 1) == 1100
    assert COSTS.epoch(TOY, 100) == 11
    assert COSTS.run == 10


def test_without_a_limit_every_run_takes_place():
    outcome = overhead.simulate(1, epochs=4, epoch=90, first=30, run=10)
    assert (outcome.explained, outcome.scheduled) == (5, 5)
    assert outcome.overhead == pytest.approx((30 + 4 * 10) / (30 + 4 * 100))
    assert str(outcome) == "5 of 5, 16.28%"


def test_a_limit_that_is_never_reached_changes_nothing():
    assert overhead.simulate(0.05, 30, 1000, 10, 10).explained == 31


def test_a_limit_is_held_once_a_training_is_long_enough():
    """A run takes 20, which 10 epochs of 100 earn."""
    outcome = overhead.simulate(0.02, epochs=1000, epoch=100, first=20, run=20)
    assert 95 <= outcome.explained <= 101
    assert 0.018 < outcome.overhead <= 0.02


def test_three_runs_and_the_last_take_place_whatever_they_cost():
    outcome = overhead.simulate(0.01, epochs=10, epoch=1, first=50, run=50)
    assert (outcome.explained, outcome.scheduled) == (4, 11)
    assert outcome.overhead == pytest.approx(200 / 210)


def test_the_clock_is_put_back():
    real = budget.time
    overhead.simulate(0.01, 3, 1, 1, 1)
    assert budget.time is real


def test_runs_are_measured_by_the_steps_of_their_own_epoch():
    stopwatch, callback = Stopwatch(), Timed()
    stopwatch.training = [[9.0, 8.0, 8.0], [2.0, 2.0, 7.0], [4.0, 4.0, 4.0]]  # of 2 images each
    stopwatch.validation = [[9.0], [1.5], [1.5]]
    callback.first, callback.runs, callback.end = [30.0], [8.0, 8.0, 8.0], [3.0]
    assert overhead.costs_of(stopwatch, callback, batch=2) == Costs(0.5, 20.0, [2.0, 8.0, 4.0], 2.0)


def test_the_tables_show_the_figures():
    lines = overhead.tables([(TOY, COSTS)]).split("\n")
    assert "| a toy | 8 | 0.50 | 30 | 10 | 8 – 40 | 5 |" in lines
    assert "| a toy | full size | 1100 training images | 0.90% |" in lines
    assert "| a toy | 1/100 | 11 training images | 47.62% |" in lines
    (line,) = [line for line in lines if line.startswith("| a toy | 1/100 | 10 |")]
    cells = line.strip("| ").split(" | ")[3:]
    assert cells[0] == f"11 of 11, {130 / 240:.2%}"
    assert cells[1] == f"4 of 11, {60 / 170:.2%}"
    assert len(cells) == len(LIMITS)
    assert sum(line.startswith("| a toy") for line in lines) == 1 + len(SIZES) * (1 + len(LENGTHS))


def test_a_real_training_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(overhead.SETTINGS, "cifar", TOY)
    path = tmp_path / "results" / "out.json"
    command = ["overhead.py", "--settings", "cifar", "--epochs", "3", "--steps", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    overhead.main()
    (row,) = json.loads(path.read_text())
    costs = row["in_training_images"]
    assert len(costs["runs"]) == 3
    assert all(value > 0 for value in [costs["validation"], costs["first"], costs["end"], *costs["runs"]])
    assert len(row["outcomes"]) == len(SIZES) * len(LENGTHS)
    assert "| a toy | 8 |" in capsys.readouterr().out


def test_a_real_training_is_compared_with_what_the_callback_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overhead, "SMALL", TOY)
    path = tmp_path / "out.json"
    command = ["overhead.py", "--real", "--rounds", "1", "--epochs", "4", "--steps", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    overhead.main()
    unlimited, limited = json.loads(path.read_text())
    assert unlimited["said"].startswith("explained 5 of 5 scheduled runs, ")
    assert limited["said"].startswith("explained 4 of 5 scheduled runs, ")
    for row in (unlimited, limited):
        assert 0 < row["share_said"] < 1
        assert 0 < row["share_of_end"] < row["share_of_hooks"] < 1
        assert row["share_on_top"] < 1
    assert f"| 1 | median {unlimited['share_said']:.1%} | " in capsys.readouterr().out
