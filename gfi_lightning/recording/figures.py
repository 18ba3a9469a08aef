"""The curves of a training in one figure."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from gfi_lightning.errors import UsageError
from gfi_lightning.metrics.drift import SETTLED
from gfi_lightning.recording.history import History
from gfi_lightning.recording.pictures import Pixels

Values = NDArray[np.float64]  # (runs, samples), or (runs,); NaN where there is none

_DPI = 140  # TensorBoard's cards show half of these pixels, so letters are twice as large as those of a page
_WIDTH, _LEFT, _RIGHT = 5.0, 0.6, 0.15  # inches, as all lengths
_HEADER, _FOOTER = 0.35, 0.25
_TITLE, _ROW, _AXES, _BELOW = 0.28, 0.19, 1.0, 0.2  # of a panel: its title, a row of its legend, and so on
_LARGE, _SMALL = 10.0, 9.0  # points, of letters
_INK, _GRID, _PAPER, _FLOOR = "0.1", "0.9", "white", "tab:red"
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:olive", "tab:cyan", "tab:pink")
_TINT = 0.4  # of a colour, in white: however many thin lines there are, the bold one stands out
_LEGEND_COLUMNS, _LONGEST_LABEL = 2, 24

_EVENLY = 12  # runs at most that have the same distance, as have the frames of a film strip
_TICKS = 6

_DOTTED = 60  # runs at most that have a dot each


@dataclass(frozen=True)
class _Panel:
    """Curves by their labels, "" where the title says all.

    Attributes:
        by_sample: whether each sample has a thin line.
        is_drift: whether it lies over the noise floor; and small drift is to look small.
        with_marks: whether it shows when samples have settled.
    """

    title: str
    curves: dict[str, Values]
    by_sample: bool = True
    is_drift: bool = False
    with_marks: bool = False


def drift_figure(history: History) -> Pixels:
    """All curves of a training, below each other: how far the maps move, and what becomes of them.

    A thin line is a sample, a bold one the mean of those that have a value. Drift lies over the noise floor, which is
    what rounding alone moves, as a band: darker up to the samples' mean, lighter up to the largest. Marks show when
    samples have settled, see :meth:`~gfi_lightning.History.settled`. Curves without any value are left out. The first
    of many runs lie wider apart than the later ones, as in a film strip.

    Args:
        history: of a training.

    Returns:
        Pixels (height, 700, 3), uint8.

    Raises:
        UsageError: the history holds no runs.
    """
    if not len(history):
        raise UsageError("The history holds no runs yet: there is nothing to show before the first one.")
    drift, *others = _panels(history)
    panels = [drift, *(panel for panel in others if panel.curves)]
    heights = [_TITLE + _ROW * _legend_rows(panel) + _AXES + _BELOW for panel in panels]
    height = _HEADER + sum(heights) + _FOOTER
    figure = Figure((_WIDTH, height), _DPI, facecolor=_PAPER)
    canvas: Any = FigureCanvasAgg(figure)  # not by pyplot, whose state is everybody's
    figure.text(_LEFT / _WIDTH, 1 - 0.1 / height, _header(history), size=_SMALL, color=_INK, va="top")
    bottom, width = height - _HEADER, (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    for panel, room in zip(panels, heights, strict=True):
        bottom -= room
        axes = figure.add_axes((_LEFT / _WIDTH, (bottom + _BELOW) / height, width, _AXES / height))
        _draw(axes, panel, history)
        if panel.is_drift and panel.curves:
            _draw_floor(axes, history)
        if panel.with_marks and panel.curves:
            _draw_settled(axes, history)
        _finish(axes, panel)
        _mark_steps(axes, history.steps, with_numbers=panel is panels[-1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a region's name in letters that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _header(history: History) -> str:
    samples, runs = len(history.images), len(history)
    lines = "s (thin) and their mean (bold)" if samples > 1 else ""
    return f"{samples} sample{lines}, {runs} run{'s' if runs > 1 else ''}"


def _panels(history: History) -> list[_Panel]:
    """Of all curves that have a value; the drift since the run before, which comes first, may be empty."""
    everything = {name: _finite(history.curve(name)) for name in history.curves}

    def panel(title: str, labels: dict[str, str], **options: Any) -> _Panel:
        there = [name for name in labels if name in everything and not np.isnan(everything[name]).all()]
        return _Panel(title, {labels[name]: everything[name] for name in there}, **options)

    def of_regions(kind: str) -> dict[str, str]:
        return {name: name.removeprefix(kind) for name in everything if name.startswith(kind)}

    iou = {"top_fifth_iou": "with the run before", "top_fifth_iou_from_first": "with the first run"}
    return [
        panel("drift since the run before", {"drift": ""}, is_drift=True, with_marks=True),
        panel("drift since the first run", {"drift_from_first": ""}, is_drift=True),
        panel(f"share of samples that have settled (drift below {SETTLED:g})", {"settled": ""}, by_sample=False),
        panel("overlap of the brightest fifth (IoU)", iou),
        panel("score of what is kept, and of what is removed", {"preserved": "kept", "removed": "removed"}),
        panel("area that reaches half of the maximum", {"area": ""}),
        panel("entropy (1: spread evenly)", {"entropy": ""}),
        panel("share of a map's energy in a region", of_regions("energy/")),
        panel("share of maps whose maximum is in a region", of_regions("pointing/"), by_sample=False),
    ]


def _finite(values: NDArray[Any]) -> Values:
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def _mean(values: Values) -> Values:
    """Of the samples that have a value, (runs,); NaN where none has."""
    counts = (~np.isnan(values)).sum(1)
    return np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)


def _places(count: int) -> NDArray[np.float64]:
    """Of runs on the x axis: the first of many lie wider apart, because most of the change comes early."""
    runs = np.arange(count, dtype=np.float64)
    return runs if count <= _EVENLY else np.sqrt(runs)


def _draw(axes: Axes, panel: _Panel, history: History) -> None:
    axes.margins(y=0.1)
    places = _places(len(history))
    dots = "." if len(places) <= _DOTTED else "None"
    for (label, values), color in zip(panel.curves.items(), _colors(len(panel.curves)), strict=True):
        if panel.by_sample and values.shape[1] > 1:
            tint = tuple(1 - _TINT * (1 - part) for part in to_rgb(color))
            # One line with gaps is faster than a line for each sample.
            gap = np.full((1, values.shape[1]), np.nan)
            x, y = np.tile([*places, np.nan], values.shape[1]), np.vstack([values, gap]).T.ravel()
            axes.plot(x, y, color=tint, linewidth=0.7, linestyle="-", marker=dots, markersize=2)
        mean = _mean(values)
        axes.plot(places, mean, color=_PAPER, linewidth=3.5, linestyle="-", marker="None", zorder=4)  # an outline
        (bold,) = axes.plot(places, mean, color=color, linewidth=2, linestyle="-", marker=dots, markersize=7, zorder=4)
        bold.set_label(_shortened(label))


def _colors(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]


def _shortened(label: str) -> str:
    # With a space in front, as Matplotlib hides labels that start with an underscore.
    return "" if not label else " " + (label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…")


def _draw_floor(axes: Axes, history: History) -> None:
    """The band in which nothing has moved."""
    if "drift_floor" not in history.curves:
        return
    floors = _finite(history.curve("drift_floor"))
    known = np.flatnonzero(~np.isnan(floors).all(1))
    if not len(known):
        return
    places, mean, largest = _places(len(history)), _mean(floors), np.fmax.reduce(floors, axis=1)
    label = f" noise floor: {mean[known[-1]]:.1g}, at most {largest[known[-1]]:.1g}"
    axes.fill_between(places, 0, largest, color=_FLOOR, alpha=0.2, linewidth=0, zorder=3)
    axes.fill_between(places, 0, mean, color=_FLOOR, alpha=0.3, linewidth=0, zorder=3, label=label)
    # Its edge is to be seen however low it lies.
    axes.plot(places, largest, color=_FLOOR, linewidth=1, linestyle="-", marker="None", zorder=3)


def _draw_settled(axes: Axes, history: History) -> None:
    """A mark at the upper edge for each sample that has settled."""
    places = dict(zip(history.steps, _places(len(history)), strict=True))
    at = [places[step] for step in history.settled() if step is not None]
    axes.plot(
        at,
        [0.93] * len(at),
        transform=axes.get_xaxis_transform(),
        color=_INK,
        alpha=0.6,
        marker="v",
        markersize=6,
        markeredgewidth=0,
        linestyle="None",
        zorder=5,
        label=f" settled: {len(at)} of {len(history.images)}",
    )


def _legend_rows(panel: _Panel) -> int:
    entries = len(panel.curves.keys() - {""}) + panel.is_drift + panel.with_marks if panel.curves else 0
    return -(-min(entries, len(_COLORS) + 1) // _LEGEND_COLUMNS)


def _finish(axes: Axes, panel: _Panel) -> None:
    """Title, legend and y axis. All is said explicitly, so that it looks the same whatever the user's own style is."""
    title_at = 1 + (_ROW * _legend_rows(panel) + 0.07) / _AXES
    axes.set_title(panel.title, loc="left", y=title_at, pad=0, size=_LARGE, color=_INK, weight="bold")
    axes.set_facecolor(_PAPER)
    axes.set_axisbelow(True)
    axes.grid(True, color=_GRID, linewidth=0.6, linestyle="-")
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(colors=_INK, labelsize=_SMALL)
    axes.spines[:].set_color(_INK)
    if not panel.curves:
        axes.set_yticks([])
        message = "no earlier run to compare with"
        axes.text(0.5, 0.5, message, size=_SMALL, color=_INK, ha="center", va="center", transform=axes.transAxes)
        return
    _add_legend(axes, panel)
    bottom, top = axes.get_ylim()
    lowest = min(np.nanmin(values) for values in panel.curves.values())
    top = max(top, SETTLED) if panel.is_drift else top
    axes.set_ylim(-0.03 * top if lowest >= 0 else bottom, top)


def _add_legend(axes: Axes, panel: _Panel) -> None:
    handles, labels = axes.get_legend_handles_labels()
    left_out = len(panel.curves) - len(_COLORS)
    if left_out > 0:
        handles = [*handles[: len(_COLORS)], *axes.plot([], [], linestyle="None")]
        labels = [*labels[: len(_COLORS)], f" and {left_out} more"]
    legend = axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=_LEGEND_COLUMNS,
        fontsize=_SMALL,
        labelcolor=_INK,
        frameon=False,
        borderpad=0,
        borderaxespad=0.25,
        handlelength=1.3,
        handletextpad=0.2,
        labelspacing=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # regions are named as users like


def _mark_steps(axes: Axes, steps: Sequence[int], with_numbers: bool) -> None:
    places = _places(len(steps))
    margin = max(0.02 * places[-1], 0.05)
    axes.set_xlim(-margin, places[-1] + margin)
    wanted = np.linspace(0, places[-1], _TICKS)
    runs = sorted({int(np.abs(places - place).argmin()) for place in wanted})
    axes.set_xticks([places[run] for run in runs], [str(steps[run]) if with_numbers else "" for run in runs])
    if with_numbers:
        stretched = ", the first runs wider apart" if len(steps) > _EVENLY else ""
        axes.set_xlabel(f"training step{stretched}", size=_SMALL, color=_INK)
