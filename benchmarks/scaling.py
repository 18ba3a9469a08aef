"""How the time of an explanation grows with the samples, the targets per image, the image side, and the processes.

    python benchmarks/scaling.py [--series samples sides ...] [--rounds 5] [--json FILE] [--picture FILE]

ResNet-18 and random images, of 64 px where the side is not what varies. Each figure is a ratio to the first point of
its series, the median over rounds in which all points take turns. Beside it is what time in proportion to the work
would give. The targets of an image share its stage 1, so more of them should cost less than that. Base layers are
found for each side by itself: at 32 px, where ResNet-18's last map has one place, they lie further up. Processes are
compared as in `ranks.py`, by whole runs of the callback in a training that share 32 samples.
"""

import argparse
import io
import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ranks
import torch
from bench.cost import seconds
from bench.tables import table
from bench.turns import ratios, take_turns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image
from torch import Tensor
from torchvision.models import resnet18

from gfi_lightning import GuidedFeatureInversion

SIDE = 64  # px
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TARGETS, IMAGES_OF_TARGETS = (1, 2, 4, 8, 16), 4
SIDES, IMAGES_OF_SIDES = (32, 64, 128, 256, 384), 2

INK, GRID, LINEAR, MEASURED = "0.1", "0.9", "0.55", "tab:blue"

Explain = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Series:
    """Works of growing size, each of which returns its seconds.

    Attributes:
        axis: what the points are.
        linear: the ratio to the first point that is expected, of a point's ratio to the first one.
    """

    axis: str
    works: Mapping[int, Callable[[], float]]
    linear: Callable[[float], float]


def explain_at(side: int) -> Explain:
    """An explanation with the default settings that knows its layers, which are found by the side, and its kernels."""
    explain = GuidedFeatureInversion(resnet18()).explain
    explain(torch.randn(1, 3, side, side), 0)
    return explain


def timed(explain: Explain, count: int, targets: int, side: int) -> Callable[[], float]:
    """A work: the seconds that an explanation of random images takes."""
    images, wanted = torch.randn(count, 3, side, side), torch.arange(targets).expand(count, targets)
    return lambda: seconds(lambda: explain(images, wanted), images.device)


def by_samples(explain: Explain, counts: Sequence[int] = SAMPLES, side: int = SIDE) -> Series:
    works = {count: timed(explain, count, 1, side) for count in counts}
    return Series("number of samples", works, lambda more: more)


def by_targets(explain: Explain, counts: Sequence[int] = TARGETS, side: int = SIDE) -> Series:
    works = {count: timed(explain, IMAGES_OF_TARGETS, count, side) for count in counts}
    return Series("targets per image", works, lambda more: more)


def by_side(explain_at: Callable[[int], Explain], sides: Sequence[int] = SIDES) -> Series:
    works = {side: timed(explain_at(side), IMAGES_OF_SIDES, 1, side) for side in sides}
    return Series("image side in px", works, lambda more: more**2)


def by_ranks(training: ranks.Training) -> Series:
    return Series("number of processes", ranks.works(training), lambda more: 1 / more)


def measure(series: Series, rounds: int) -> dict[str, Any]:
    """A series as plain numbers."""
    first = next(iter(series.works))
    durations = take_turns(series.works, rounds)
    points = []
    for point in series.works:
        measured, linear = ratios(durations, point, first), series.linear(point / first)
        ratio = statistics.median(measured)
        points.append(
            {"point": point, "ratio": ratio, "linear": linear, "ratio_to_linear": ratio / linear, "ratios": measured}
        )
    return {"axis": series.axis, "points": points}


def as_text(measured: dict[str, Any]) -> str:
    header = [measured["axis"], "time / first", "lowest – highest", "in proportion", "time / in proportion"]
    lines = [
        [
            str(point["point"]),
            f"{point['ratio']:.2f}",
            f"{min(point['ratios']):.2f} – {max(point['ratios']):.2f}",
            f"{point['linear']:.2f}",
            f"{point['ratio_to_linear']:.2f}",
        ]
        for point in measured["points"]
    ]
    return table(header, lines)


def draw(everything: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each series."""
    rows = math.ceil(len(everything) / 2)
    figure = Figure((9, 3.4 * rows), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, measured in zip(panels, everything, strict=False):
        draw_panel(axes, measured)
    for axes in panels[len(everything) :]:
        axes.remove()
    panels[0].legend(frameon=False, fontsize=10, labelcolor=INK)
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=200)  # twice the pixels of a page of 900
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(pixels).convert("RGB").quantize(32).save(path, optimize=True)  # a third of the bytes


def draw_panel(axes: Axes, measured: dict[str, Any]) -> None:
    points, times, linear = ([point[key] for point in measured["points"]] for key in ("point", "ratio", "linear"))
    axes.plot(points, linear, color=LINEAR, linestyle="--", label="in proportion to the work")
    axes.plot(points, times, color=MEASURED, linewidth=2, marker="o", label="measured")
    last = f"{times[-1]:.2f}" if times[-1] < 10 else f"{times[-1]:.0f}"
    at = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(last, (points[-1], times[-1]), **at, size=10, color=MEASURED)
    axes.margins(x=0.18)  # for that number
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis, ticks in ((axes.xaxis, points), (axes.yaxis, powers([*times, *linear]))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(measured["axis"], color=INK, size=11)
    axes.set_ylabel("time, ratio to the first", color=INK, size=11)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.spines[:].set_color(INK)


def powers(values: Sequence[float]) -> list[float]:
    """At most six powers of two around the values, evenly spaced."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    step = math.ceil((high - low + 1) / 6)
    return [2.0**power for power in range(low, high + 1, step)]


def main(arguments: Sequence[str] | None = None) -> None:
    makers = {
        "samples": lambda: by_samples(explain_at(SIDE)),
        "targets": lambda: by_targets(explain_at(SIDE)),
        "sides": lambda: by_side(explain_at),
        "ranks": lambda: by_ranks(ranks.Training()),
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--series", nargs="+", choices=makers, default=list(makers))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--picture", type=Path, default=Path("benchmarks/results/scaling.png"))
    options = parser.parse_args(arguments)
    logging.getLogger("gfi_lightning").setLevel(logging.WARNING)  # else each explanation tells its layers
    everything = {}
    print(f"ResNet-18, {options.rounds} rounds, medians")
    for name in options.series:
        everything[name] = measure(makers[name](), options.rounds)
        print(f"\n{as_text(everything[name])}", flush=True)
    about = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**about, "series": everything}, indent=1) + "\n", encoding="utf-8")
    draw(list(everything.values()), options.picture)


if __name__ == "__main__":
    main()
