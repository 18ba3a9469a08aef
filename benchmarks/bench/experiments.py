"""What the scripts on the paper's experiments share: options, loops over images, tables, and the page's sections."""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.bootstrap import Estimate, estimate, paired_difference
from bench.cases import Batch, Case, batches, hits, predicted_cases
from bench.methods import recipe_fields
from bench.networks import Network, find_network, peer_layers
from bench.progress import say
from bench.tables import table
from bench.voc import of_one_class, read_ids, read_photographs
from gfi_lightning import UsageError, metrics
from gfi_lightning.inversion.recipes import RECIPES

RESULTS = Path(__file__).resolve().parents[1] / "results"

Cell = Estimate | str
Figures = Mapping[str, Mapping[str, Cell]]
"""A table: row to column to what stands there."""
Values = dict[str, dict[str, np.ndarray]]
"""Row to column to one number for each image, NaN where it was not measured."""


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper.

    Attributes:
        name: of its JSON files.
        title: of its section.
        text: what is asked and measured, and what differs from the paper.
    """

    name: str
    title: str
    text: str

    def file_name(self, recipe: str) -> str:
        """What the JSON file of a recipe's findings is called."""
        return f"paper_{self.name}.json" if recipe == "default" else f"paper_{self.name}_{recipe}.json"


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        images: the ids that are reported.
        tables: caption, or "", to a table.
        remarks: further sentences.
        values: what the tables' estimates are made of.
        reference: the row to which the others are compared, image by image; "": none.
    """

    images: Sequence[str]
    tables: Mapping[str, Figures]
    remarks: Sequence[str] = ()
    values: Values = field(default_factory=dict)
    reference: str = ""


def parser_of(experiment: Experiment, description: str, limit: int) -> argparse.ArgumentParser:
    """The options that all of the experiments have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with JPEGImages and Annotations")
    parser.add_argument("--ids", type=Path, required=True, help="list of the images that are reported")
    parser.add_argument("--network", default="mobilenet_v2_100", help="module:function, or one of bench.networks")
    parser.add_argument("--recipe", default="default", choices=[*RECIPES], help="of ours (%(default)s)")
    parser.add_argument("--limit", type=int, default=limit, help="images that are reported (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=7, help="what is optimised at once on a CPU (%(default)s)")
    parser.add_argument("--json", type=Path, help=f"benchmarks/results/{experiment.file_name('default')}, or the like")
    return parser


def add_train(parser: argparse.ArgumentParser, use: str) -> None:
    """--train, a list of other images."""
    parser.add_argument("--train", type=Path, required=True, help=f"list of other images, {use}")


def network_of(options: argparse.Namespace) -> Network:
    """The network that the options name."""
    logging.getLogger("gfi_lightning").setLevel(logging.WARNING)  # else each explanation tells its layers
    return find_network(options.network)


def last_layer(network: Network, images: Tensor) -> str:
    """The name of the last feature map, for Grad-CAM."""
    return (network.layers or peer_layers(network.model, images[:1]))[-1]


def right_cases(network: Network, folder: Path, ids: Sequence[str], limit: int) -> list[Case]:
    """The first images of one class that the network predicts right; of a network without names any prediction.

    Raises:
        UsageError: there is none.
    """
    photographs = of_one_class(read_photographs(folder, ids))
    cases: list[Case] = []
    for start in range(0, len(photographs), 8):
        if len(cases) < limit:
            predicted = predicted_cases(network, photographs[start : start + 8])
            cases += hits(predicted, network.class_names) if network.class_names else predicted
    if not cases:
        raise UsageError(f"{folder} holds no image of these ids with objects of one class that is predicted right.")
    return cases[:limit]


def reported_batches(network: Network, options: argparse.Namespace) -> tuple[list[str], Iterable[Batch]]:
    """The images that are reported: their ids, and they, in batches."""
    cases = right_cases(network, options.data, read_ids(options.ids), options.limit)
    return [case.photograph.id for case in cases], batches(cases, network, options.batch_size)


def on_object(maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Does each map lie on the object?"""
    maps = maps.cpu()
    return {
        "pointing hit": metrics.pointing_hits(maps, batch.regions),
        "energy in the box": metrics.energy_in_region(maps, batch.regions),
    }


def over_batches(parts: Iterable[Any], measure: Callable[[Any], Mapping[str, Mapping[str, Tensor]]]) -> Values:
    """What is measured of each batch, row by row and column by column, as one array over all images.

    Args:
        parts: the batches.
        measure: from a batch to its values, one for each image; the same rows and columns each time.
    """
    start, measured, count = time.perf_counter(), [], 0
    for part in parts:
        measured.append(measure(part))
        count += len(part)
        say(f"{count} images, {time.perf_counter() - start:.0f} s")
    return {
        row: {column: _joined([found[row][column] for found in measured]) for column in cells}
        for row, cells in measured[0].items()
    }


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([part.detach().double().cpu() for part in parts]).numpy()


def estimates(values: Values) -> dict[str, dict[str, Cell]]:
    """The mean of each row and column over the images, with its interval."""
    return {row: {column: estimate(series) for column, series in cells.items()} for row, cells in values.items()}


def publish(experiment: Experiment, options: argparse.Namespace, findings: Findings) -> None:
    """Write the findings as JSON, without any path of this machine, and print their section."""
    report = {
        "network": options.network,
        "data": options.data.name,
        "ids": options.ids.name,
        "images": list(findings.images),
        "recipe": recipe_fields(RECIPES[options.recipe]),
        "torch": torch.__version__,
        "tables": {caption: _plain_figures(figures) for caption, figures in findings.tables.items()},
        "remarks": list(findings.remarks),
        "reference": findings.reference,
        "values": {
            row: {column: _plain(series) for column, series in cells.items()} for row, cells in findings.values.items()
        },
    }
    file = options.json or RESULTS / experiment.file_name(options.recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(section(experiment, report) if options.recipe == "default" else tables(report))


def _plain_figures(figures: Figures) -> dict[str, dict[str, Any]]:
    return {
        row: {column: vars(cell) if isinstance(cell, Estimate) else cell for column, cell in cells.items()}
        for row, cells in figures.items()
    }


def _plain(series: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in series]


def section(experiment: Experiment, report: Mapping[str, Any], of_paper: Mapping[str, Any] | None = None) -> str:
    """An experiment's part of the page, from its JSON: with the default recipe, and with the paper's own."""
    parts = [f"## {experiment.title}", experiment.text.strip(), tables(report)]
    if of_paper is not None:
        parts += ["### With the paper's own recipe", tables(of_paper)]
    return "\n\n".join(parts) + "\n"


def tables(report: Mapping[str, Any]) -> str:
    """What was found, from its JSON."""
    on_what = f"`{report['network']}`, {len(report['images'])} images of {report['data']}/{report['ids']}."
    parts = [" ".join([on_what, *report["remarks"]])]
    for caption, figures in report["tables"].items():
        parts += [*([f"{caption}:"] if caption else []), _as_table(figures)]
    if report["reference"]:
        paired = _plain_figures(differences(report["values"], report["reference"]))
        parts += [f"Less {report['reference']}, paired:", _as_table(paired, sign="+")]
    return "\n\n".join(parts)


def differences(values: Mapping[str, Mapping[str, Sequence[float | None]]], reference: str) -> Figures:
    """Each row less the reference's, image by image, in the columns that both have."""
    base = {column: np.array(series, dtype=float) for column, series in values[reference].items()}
    return {
        row: {
            column: paired_difference(np.array(series, dtype=float), base[column])
            for column, series in cells.items()
            if column in base
        }
        for row, cells in values.items()
        if row != reference
    }


def _as_table(figures: Mapping[str, Mapping[str, Any]], sign: str = "") -> str:
    columns = list(dict.fromkeys(column for cells in figures.values() for column in cells))
    counts = [cell["images"] for cells in figures.values() for cell in cells.values() if isinstance(cell, Mapping)]
    most = max(counts, default=0)
    lines = [
        [row, *(_text(cells.get(column, "–"), most, sign) for column in columns)] for row, cells in figures.items()
    ]
    return table(["", *columns], lines)


def _text(cell: Any, most: int, sign: str) -> str:
    if isinstance(cell, str):
        return cell
    if not cell["images"]:
        return "–"
    value, low, high = (f"{cell[part]:{sign}.3f}" for part in ("value", "low", "high"))
    return f"{value} ({low} … {high})" + ("" if cell["images"] == most else f", n = {cell['images']}")
