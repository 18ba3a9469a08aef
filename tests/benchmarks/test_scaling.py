"""Ratios, tables and the picture, of durations that a simulated clock tells."""

import json

import numpy as np
import pytest
import ranks
import scaling
import torch
from bench import cost
from bench.turns import ratios, take_turns
from PIL import Image

from gfi_lightning import GuidedFeatureInversion
from tests.networks import ToyCNN


class Clock:
    """Time passes only where it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    return clock


def test_works_take_turns_there_and_back():
    called = []
    works = {key: lambda key=key: called.append(key) or len(called) for key in "abc"}
    rounds = take_turns(works, 3)
    assert "".join(called) == "abccbaabc"
    assert rounds[1] == {"c": 4, "b": 5, "a": 6}
    assert ratios(rounds, "c", "a") == [3 / 1, 4 / 6, 9 / 7]


def test_the_median_of_the_rounds_ratios_counts():
    durations = {1: iter([1, 10, 2]), 2: iter([2, 30, 8])}  # ratios 2, 3, 4; that of the medians would be 8 / 2
    series = scaling.Series("number", {point: lambda it=it: next(it) for point, it in durations.items()}, lambda x: x)
    first, second = scaling.measure(series, 3)["points"]
    assert first == {"point": 1, "ratio": 1, "linear": 1, "ratio_to_linear": 1, "ratios": [1, 1, 1]}
    assert second == {"point": 2, "ratio": 3, "linear": 2, "ratio_to_linear": 1.5, "ratios": [2, 3, 4]}
    line = scaling.as_text(scaling.measure(scaling.Series("n", {1: lambda: 4, 2: lambda: 5}, lambda x: x), 1))
    assert [cell.strip() for cell in line.splitlines()[-1].strip("|").split("|")] == [
        "2",
        "1.25",
        "1.25 – 1.25",
        "2.00",
        "0.62",
    ]


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_growth_of_another_power_than_the_work_is_seen(power, clock):
    def explain(images, targets):
        clock.now += (targets.numel() * images[0].numel()) ** power

    every = [
        scaling.by_samples(explain, (1, 2, 8), 16),
        scaling.by_targets(explain, (1, 2, 8), 16),
        scaling.by_side(lambda side: explain, (16, 32, 64)),
    ]
    for series, growth in zip(every, (8, 8, 16), strict=True):
        last = scaling.measure(series, 2)["points"][-1]
        assert last["linear"] == growth
        assert last["ratio_to_linear"] == pytest.approx(growth ** (power - 1))


def test_processes_are_compared_with_perfect_sharing(monkeypatch):
    monkeypatch.setattr(ranks, "seconds_per_run", lambda training, count: {ranks.WHOLE: {1: 10.0, 2: 6.0}[count]})
    one, two = scaling.measure(scaling.by_ranks(ranks.Training()), 2)["points"]
    assert (one["ratio"], one["linear"]) == (1, 1)
    assert (two["ratio"], two["linear"], two["ratio_to_linear"]) == (0.6, 0.5, 1.2)


def test_a_real_training_tells_its_seconds():
    seconds = ranks.seconds_per_run(ranks.Training(samples=2, size=32, runs=1), 1)
    parts = [seconds[part] for part in (ranks.EXPLAINING, ranks.DRAWING, ranks.FIRST)]
    assert min(parts) > 0
    assert sum(parts) < seconds[ranks.WHOLE]
    assert seconds[ranks.FLOOR] > 0


def test_what_two_processes_make_of_each_part():
    one = dict(zip(ranks.PARTS, (10.0, 6.0, 2.0, 1.0, 8.0), strict=True))
    two = dict(zip(ranks.PARTS, (6.0, 3.0, 1.0, 1.0, 5.0), strict=True))
    cells = [
        [cell.strip() for cell in line.split("|")[1:4]] for line in ranks.as_table([{1: one, 2: two}]).splitlines()
    ]
    assert cells[2:] == [
        ["whole run", "1.00", "0.60"],
        ["explaining", "0.60", "0.50"],
        ["drawing", "0.20", "0.50"],
        ["the first one alone", "0.10", "1.00"],
        ["bare passes", "", "0.62"],
    ]


def test_real_explanations_are_timed():
    explain = GuidedFeatureInversion(ToyCNN()).explain
    for series in (scaling.by_samples(explain, (1, 2), 16), scaling.by_targets(explain, (1, 2), 16)):
        assert all(point["ratio"] > 0 for point in scaling.measure(series, 1)["points"])


def test_the_report_and_the_picture(tmp_path, monkeypatch, clock, capsys):
    def explain(images, targets):
        clock.now += len(images)

    monkeypatch.setattr(scaling, "explain_at", lambda side: explain)
    monkeypatch.setattr(ranks, "seconds_per_run", lambda training, count: {ranks.WHOLE: 1 / count})
    file, picture = tmp_path / "results" / "scaling.json", tmp_path / "pictures" / "scaling.png"
    series = ["--series", "samples", "ranks", "targets"]
    scaling.main([*series, "--rounds", "2", "--json", str(file), "--picture", str(picture)])
    report = json.loads(file.read_text())
    assert report["torch"] == torch.__version__
    assert list(report["series"]) == ["samples", "ranks", "targets"]
    assert [point["ratio"] for point in report["series"]["samples"]["points"]] == list(scaling.SAMPLES)
    assert [point["ratio"] for point in report["series"]["targets"]["points"]] == [1] * len(scaling.TARGETS)
    assert "| 256 " in capsys.readouterr().out
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == 1800
    assert (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10  # lines, letters


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 256], [1, 4, 16, 64, 256]), ([1, 7], [1, 2, 4, 8]), ([0.6, 0.5, 1], [0.5, 1]), ([1, 1], [1])],
)
def test_ticks_are_powers_of_two_around_the_values(values, expected):
    assert scaling.powers(values) == expected
