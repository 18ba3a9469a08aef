"""The table as text, which is Markdown, and as plain numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.bootstrap import Estimate
from bench.rows import GROUPS, METRICS, Metric, Row, best_of_layers

_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_NOTHING = "–"
_OURS = "GFI, default"
_SAME_PICTURE = "Is it the same picture again?"  # where a difference to Grad-CAM's floor of 0 tells nothing new
_BARS = ("pointing", "energy", "localization_error", "insertion_deletion", "sensitivity")


def to_json(rows: Sequence[Row], reference: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that was measured, with intervals and paired differences to the reference."""
    base = _named(rows, reference)
    methods = {}
    for row in [*rows, *best_of_layers(rows)]:
        figures = {}
        for key in row.values:
            metric = METRICS[key]
            figures[key] = vars(row.estimate(metric)) | {"worst": _worst(row, metric)}
            if base is not None and row is not base and key in base.values:
                figures[key]["difference"] = vars(row.difference(base, metric))
        methods[row.name] = {"figures": _finite(figures), **row.to_json()}
    titles = {key: {"title": metric.title, "better": metric.better} for key, metric in METRICS.items()}
    return {**about, "reference": reference, "metrics": titles, "methods": methods}


def rows_from_json(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a report by :func:`to_json`, without those that were picked from others."""
    rows = [Row.from_json(data) for data in report["methods"].values()]
    return [row for row in rows if not row.layers]


def markdown(report: Mapping[str, Any]) -> str:
    """The report's tables: what was measured, the paired differences to the reference and of ours to all, the cost."""
    rows = rows_from_json(report)
    base = _named(rows, report["reference"])
    everyone = [*rows, *best_of_layers(rows)]
    parts = []
    for heading, metrics in GROUPS.items():
        columns = [metric for metric in metrics if any(metric.key in row.values for row in everyone)]
        if not columns:
            continue
        parts += [f"### {heading}", _figures(everyone, columns)]
        compared = [metric for metric in columns if base is not None and metric.key in base.values]
        if heading == _SAME_PICTURE:
            compared = []
        if base is not None and compared and len(everyone) > 1:
            others = [row for row in everyone if row is not base]
            parts += [f"Less {base.name}, paired:", _differences(others, base, compared)]
    ours = _named(rows, _OURS)
    bars = [METRICS[key] for key in _BARS if ours is not None and key in ours.values]
    if ours is not None and bars and len(everyone) > 1:
        parts += [f"### {_OURS}, less each of the others, paired", _lead(ours, everyone, bars)]
    parts += ["### What does it cost?", _costs(rows)]
    stages = [row for row in rows if row.stages]
    if stages:
        parts += ["### Similarity to the trained network's map, layer by layer", _stages(stages)]
    notes = [f"- {row.name}: {note}" for row in rows for note in row.notes]
    return "\n\n".join([*parts, *(["Not measured:\n\n" + "\n".join(notes)] if notes else [])]) + "\n"


def handwritten(page: Path, otherwise: str) -> str:
    """What stands on a page above its first section, which is written by hand and stays."""
    return page.read_text(encoding="utf-8").partition("\n## ")[0].rstrip() + "\n" if page.is_file() else otherwise


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left."""
    cells = [header, *lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(_aligned(line, widths)) + " |" for line in [cells[0], rule, *cells[1:]])


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def _figures(rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    counts = {metric.key: _usual_count(rows, metric) for metric in metrics}
    header = ["", *(f"{metric.title}{_ARROWS[metric.better]} (n = {counts[metric.key]})" for metric in metrics)]
    lines = [[row.name, *(_figure(row, metric, counts[metric.key]) for metric in metrics)] for row in rows]
    return table(header, lines)


def _figure(row: Row, metric: Metric, usual: int) -> str:
    if metric.key not in row.values:
        return _NOTHING
    found = row.estimate(metric)
    worst = f", worst {_worst(row, metric):.{metric.digits}f}" if metric.worst and found.images else ""
    return _interval(found, metric.digits, "") + worst + _other_count(found, usual)


def _differences(rows: Sequence[Row], base: Row, metrics: Sequence[Metric]) -> str:
    header = ["", *(f"{metric.title}{_ARROWS[metric.better]}" for metric in metrics)]
    lines = [[row.name, *(_difference(row, base, metric) for metric in metrics)] for row in rows]
    return table(header, lines)


def _lead(ours: Row, rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    header = ["less", *(f"{metric.title}{_ARROWS[metric.better]}" for metric in metrics)]
    others = [row for row in rows if row is not ours]
    return table(header, [[row.name, *(_difference(ours, row, metric) for metric in metrics)] for row in others])


def _difference(row: Row, base: Row, metric: Metric) -> str:
    if metric.key not in row.values or metric.key not in base.values:
        return _NOTHING
    found = row.difference(base, metric)
    return _interval(found, metric.digits, "+") + _other_count(found, max(_count(row, metric), _count(base, metric)))


def _interval(found: Estimate, digits: int, sign: str) -> str:
    if not found.images:
        return _NOTHING
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} … {high})"


def _other_count(found: Estimate, usual: int) -> str:
    return "" if found.images in (0, usual) else f", n = {found.images}"


def _count(row: Row, metric: Metric) -> int:
    return int((~np.isnan(row.values[metric.key])).sum())


def _usual_count(rows: Sequence[Row], metric: Metric) -> int:
    counts = Counter(_count(row, metric) for row in rows if metric.key in row.values)
    return counts.most_common(1)[0][0]


def _costs(rows: Sequence[Row]) -> str:
    header = ["", "forward passes", "backward passes", "time / Grad-CAM's (range over batches)", "α"]
    return table(header, [_cost(row) for row in rows])


def _cost(row: Row) -> list[str]:
    passes = [_NOTHING if count is None else f"{count:.4g}" for count in (row.forwards, row.backwards)]
    ratio = _NOTHING
    if row.seconds:
        middle, low, high = np.median(row.seconds), min(row.seconds), max(row.seconds)
        ratio = f"{middle:.3g} ({low:.3g} … {high:.3g})"
    return [row.name, *passes, ratio, _NOTHING if row.alpha is None else f"{row.alpha:g}"]


def _stages(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.stages))
    lines = [
        [row.name, *(f"{row.stages[name]:.2f}" if name in row.stages else _NOTHING for name in names)] for row in rows
    ]
    return table(["randomised from the head down to", *names], lines)


def _worst(row: Row, metric: Metric) -> float | None:
    values = row.values[metric.key]
    if not metric.better or np.isnan(values).all():
        return None
    return float(np.nanmin(values) if metric.better > 0 else np.nanmax(values))


def _named(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row.name == name), None)


def _finite(value: Any) -> Any:
    """NaN as None, which JSON knows."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
