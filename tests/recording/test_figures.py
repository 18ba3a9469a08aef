"""The figure of all curves draws what the history holds, and nothing else is touched by that."""

from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers, colors
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gfi_lightning import History, UsageError
from gfi_lightning.recording import figures
from gfi_lightning.recording.arrays import run_array, sample_arrays
from gfi_lightning.recording.figures import drift_figure
from gfi_lightning.recording.record import Record, SampleRecord, TargetRecord

BAND = colors.to_rgba("tab:red")[:3]
DRIFT = "drift since the run before"


def history(curves, samples=1):
    """Curves by name, (runs, samples), of which None is missing in a run."""
    heatmap = torch.rand(4, 4)
    target = TargetRecord(0, heatmap, 0.5, 0.5, 0.5, False)
    seen = [SampleRecord(torch.zeros(3, 4, 4), 0, 0, 0.5, heatmap, [target])] * samples
    runs = len(next(iter(curves.values()), ()))

    def run(number):
        there = {name: values[number] for name, values in curves.items() if values[number] is not None}
        tensors = {name: torch.as_tensor(values, dtype=torch.float32) for name, values in there.items()}
        return run_array(Record(10 * number, (4, 4), seen), tensors)

    return History("figures", sample_arrays(Record(0, (4, 4), seen), None), [run(number) for number in range(runs)])


def training(runs, samples, floor=0.05, regions=("object",)):
    """All curves, as a training has them; drift from its second run on."""
    generator = np.random.default_rng(0)
    progress = np.linspace(0, 1, runs)[:, None]

    def around(values):
        return np.clip(values + generator.normal(0, 0.02, (runs, samples)), 0, 2)

    drift, since_first = around(0.8 * (1 - progress) ** 2), around(progress**0.5)
    curves = {
        "drift": [None, *drift[1:]],
        "drift_from_first": [None, *since_first[1:]],
        "drift_floor": np.full((runs, samples), floor) * np.linspace(0.5, 1.5, samples),
        "preserved": around(0.2 + 0.6 * progress),
        "removed": around(0.8 - 0.6 * progress),
        "area": around(0.3 - 0.2 * progress),
        "entropy": around(0.9 - 0.1 * progress),
    }
    for region in regions:
        curves[f"energy/{region}"] = around(progress)
        curves[f"pointing/{region}"] = (generator.random((runs, samples)) < progress).astype(float)
    return history(curves, samples)


@pytest.fixture
def drawn(monkeypatch):
    """Draws a figure and gives the pixels and, by their titles, its axes."""

    def draw(of):
        canvases = []

        class Canvas(FigureCanvasAgg):
            def __init__(self, figure):
                super().__init__(figure)
                canvases.append(self)

        monkeypatch.setattr(figures, "FigureCanvasAgg", Canvas)
        pixels = drift_figure(of)
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (700, 3)
        return pixels, {axes.get_title(loc="left"): axes for axes in canvases[0].figure.axes}

    return draw


def lines(axes, width):
    return [line for line in axes.get_lines() if line.get_linewidth() == width and len(line.get_xdata()) > 1]


def legend(axes):
    return [text.get_text().strip() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def test_thin_lines_are_samples_and_the_bold_one_is_their_mean(drawn):
    of = training(runs=20, samples=3)
    pixels, axes = drawn(of)
    assert len(axes) == 7
    assert len(pixels) == pytest.approx(7 * 230, rel=0.1)
    (thin,), (bold,) = lines(axes[DRIFT], 0.7), lines(axes[DRIFT], 2)
    every, places = thin.get_ydata().reshape(3, 20 + 1), thin.get_xdata().reshape(3, 20 + 1)
    np.testing.assert_allclose(every[:, :20], of.curve("drift").T, rtol=1e-6)
    assert np.isnan(every[:, 20]).all(), "there is a gap between one sample's line and the next one's"
    np.testing.assert_array_equal(places[:, :20], np.tile(bold.get_xdata(), (3, 1)))
    np.testing.assert_allclose(bold.get_ydata()[1:], of.curve("drift")[1:].mean(1), rtol=1e-5)
    assert np.isnan(bold.get_ydata()[0]), "before the second run there is nothing to compare with"
    kept, removed = lines(axes["score of what is kept, and of what is removed"], 2)
    np.testing.assert_allclose(kept.get_ydata(), of.curve("preserved").mean(1), rtol=1e-5)
    np.testing.assert_allclose(removed.get_ydata(), of.curve("removed").mean(1), rtol=1e-5)


def test_a_mean_is_of_those_that_have_a_value_and_a_gap_where_none_has(drawn):
    nan = np.nan
    values = [[0.2, nan], [nan, nan], [0.2, 0.6], [np.inf, 0.4]]
    _, axes = drawn(history({"preserved": values, "removed": [[nan, nan]] * 4}, samples=2))
    (bold,) = lines(axes["score of what is kept, and of what is removed"], 2)
    np.testing.assert_allclose(bold.get_ydata(), [0.2, nan, 0.4, 0.4], rtol=1e-6)
    assert legend(axes["score of what is kept, and of what is removed"]) == ["kept"]


def test_the_noise_floor_is_a_band_and_says_how_high_it_is(drawn):
    of = training(runs=10, samples=5, floor=0.2)
    pixels, axes = drawn(of)
    for one in (axes[DRIFT], axes["drift since the first run"]):
        tops = sorted(float(band.get_datalim(one.transData).ymax) for band in one.collections)
        assert tops == pytest.approx([0.2, 0.3], rel=1e-5), "the mean and the largest of the samples' floors"
        assert "noise floor: 0.2, at most 0.3" in legend(one)
    assert reddish(pixels) > 10 * reddish(drawn(training(runs=10, samples=5, floor=np.nan))[0])
    # However low it is, its edge is seen, and drift that is as low does not fill the axes.
    curves = {"drift": [None, *[[1e-8]] * 9], "drift_floor": [[1e-7]] * 10}
    pixels, axes = drawn(history(curves))
    assert reddish(pixels) > 300
    assert axes[DRIFT].get_ylim()[1] == pytest.approx(0.1)


def reddish(pixels):
    """Pixels in the colour of the band, or lighter."""
    red, green, blue = np.moveaxis(pixels.astype(int), 2, 0)
    return int(((red - green > 20) & (abs(green - blue) < 12)).sum())


def test_marks_show_when_samples_have_settled(drawn):
    curves = {
        "drift": [None, [0.5, 0.5, 0.3], [0.3, 0.05, 0.3], [0.01, 0.01, 0.3], [0.01, 0.01, 0.3]],
        "drift_floor": [[0.0, 0.0, 0.4]] * 5,
    }
    of = history(curves, samples=3)
    _, axes = drawn(of)
    (marks,) = [line for line in axes[DRIFT].get_lines() if line.get_marker() == "v"]
    assert of.settled() == [20, 10, 0], "what does not exceed the floor is no movement"
    assert marks.get_xdata().tolist() == [2, 1, 0]
    assert "settled: 3 of 3" in legend(axes[DRIFT])


def test_steps_are_told_and_early_runs_lie_wider_apart(drawn):
    _, axes = drawn(training(runs=100, samples=1))
    bold, *_ = lines(axes[DRIFT], 2)
    distances = np.diff(bold.get_xdata())
    assert distances[0] > 5 * distances[-1]
    assert distances[:10].sum() > distances.sum() / 4
    last = list(axes.values())[-1]
    numbers = [int(label.get_text()) for label in last.get_xticklabels()]
    assert numbers[0] == 0
    assert numbers[-1] == 990
    assert numbers == sorted(numbers)
    assert "wider apart" in last.get_xlabel()
    places = dict(zip(range(0, 1000, 10), bold.get_xdata(), strict=True))
    assert last.get_xticks().tolist() == [places[number] for number in numbers]


@pytest.mark.parametrize(("runs", "samples"), [(1, 3), (2, 1), (1000, 2), (3, 64)])
def test_any_number_of_runs_and_samples(drawn, runs, samples):
    pixels, axes = drawn(training(runs, samples))
    assert len(pixels) < 2000
    assert all(len(legend(one)) <= 2 for one in axes.values()), "samples have no entry in a legend"
    if runs == 1:
        assert [text.get_text() for text in axes[DRIFT].texts] == ["no earlier run to compare with"]
        assert not axes[DRIFT].get_lines()
    else:
        assert f"settled: {sum(step is not None for step in training(runs, samples).settled())} of {samples}" in legend(
            axes[DRIFT]
        )
    assert all(box_inside(text, pixels) for one in axes.values() for text in texts(one)), "a text is cut off"


def texts(axes):
    bottom, top = axes.get_ylim()
    ticks = [label for label in axes.get_yticklabels() if bottom <= label.get_position()[1] <= top]
    found = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *ticks, *axes.texts]
    found += [axes.title, axes._left_title, *(axes.get_legend().get_texts() if axes.get_legend() else [])]
    return [text for text in found if text.get_text()]


def box_inside(text, pixels):
    box = text.get_window_extent()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= pixels.shape[1] and box.y1 <= pixels.shape[0]


def test_only_the_drift_has_a_panel_without_values(drawn):
    _, axes = drawn(history({"unknown": [[1.0]] * 3, "drift": [[np.nan]] * 3, "area": [[np.nan]] * 3}))
    assert list(axes) == [DRIFT]


def test_many_regions_with_names_of_any_kind(drawn):
    names = ["_hidden", r"$\alpha_", "a name that goes on and on and on", *map(str, range(20))]
    pixels, axes = drawn(training(runs=5, samples=2, regions=names))
    entries = legend(axes["share of a map's energy in a region"])
    assert entries[:3] == ["_hidden", r"$\alpha_", "a name that goes on and…"]
    assert entries[-1] == f"and {len(names) - len(entries) + 1} more"
    assert len(entries) < 10
    assert all(box_inside(text, pixels) for one in axes.values() for text in texts(one))


def test_without_runs():
    with pytest.raises(UsageError, match="no runs yet"):
        drift_figure(history({}))


def test_nobody_elses_figures_and_styles_matter_or_change():
    of = history({"area": [[0.1, 0.2], [0.3, 0.2]], "drift": [None, [0.1, 0.2]]}, samples=2)
    expected = drift_figure(of)
    before = dict(matplotlib.rcParams)
    with matplotlib.style.context("dark_background"):
        np.testing.assert_array_equal(drift_figure(of), expected)
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.get_all_fig_managers()
    with ThreadPoolExecutor(3) as pool:
        for pixels in pool.map(drift_figure, [of] * 3):
            np.testing.assert_array_equal(pixels, expected)
