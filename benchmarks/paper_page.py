"""The page on the paper's experiments, from the JSON files that their scripts wrote.

    python benchmarks/paper_page.py docs/paper.md

What stands on the page above its first section is written by hand, and stays.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paper_adversarial
import paper_backgrounds
import paper_base_layers
import paper_class_discrimination
import paper_pointing_game
import paper_stages
from bench.experiments import RESULTS, section
from bench.tables import handwritten

from gfi_lightning import UsageError

EXPERIMENTS = [
    script.EXPERIMENT
    for script in (
        paper_pointing_game,
        paper_class_discrimination,
        paper_base_layers,
        paper_adversarial,
        paper_stages,
        paper_backgrounds,
    )
]

INTRODUCTION = """\
# The paper's experiments

Du, Liu, Song, Hu: "Towards Explanation of DNN-based Prediction with Guided Feature Inversion", KDD 2018, repeated as
far as network and images could be had. Everywhere here the network is MobileNetV2 with ImageNet weights instead of
VGG-19, the images are from PASCAL VOC 2007's test set, squeezed to 224 × 224 pixels without cropping, a few dozen
instead of thousands, and "GFI, default" is this package's default recipe. The paper's own, which takes ten times as
long, was run on fewer images. **As network and images are others, the paper's figures are context, not a target.**
Brackets: 95 % bootstrap intervals over the images (2,000 resamples); with so few images most differences within a table
are within them.

Each section is the output of a script, `benchmarks/paper_….py`, and `benchmarks/paper_page.py` joins them.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files are")
    options = parser.parse_args(arguments)
    columns = [reports_of(recipe, options.results) for recipe in ("default", "paper")]
    sections = [section(*parts) for parts in zip(EXPERIMENTS, *columns, strict=True)]
    options.page.write_text("\n".join([handwritten(options.page, INTRODUCTION), *sections]), encoding="utf-8")


def reports_of(recipe: str, folder: Path) -> list[dict[str, Any]]:
    """What each experiment has found with a recipe.

    Raises:
        UsageError: they are not all of the same version of it.
    """
    files = [folder / experiment.file_name(recipe) for experiment in EXPERIMENTS]
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    stale = [str(file) for file, report in zip(files, reports, strict=True) if report["recipe"] != reports[0]["recipe"]]
    if stale:
        raise UsageError(f"{', '.join(stale)} is of another {recipe} recipe than {files[0]}: run those scripts again.")
    return reports


if __name__ == "__main__":
    main()
